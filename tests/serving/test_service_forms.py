"""Invalid forms and unsupported images are refused with the specific reason."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from mlops_img.bundle.predictor import Predictor
from mlops_img.registry.load import load
from mlops_img.serving import libtiff
from mlops_img.serving.admission import Admission
from mlops_img.serving.app import build_app
from mlops_img.serving.engine import TimedPrediction
from mlops_img.serving.errors import Code, RequestError
from mlops_img.serving.middleware import with_middleware
from mlops_img.serving.settings import Settings
from mlops_img.serving.uploads import prepare_upload
from mlops_img.serving.worker import Worker
from tests.helpers.hostile_requests import CHARSETS, image
from tests.helpers.hostile_uploads import encoded, picture, sound, tiff
from tests.helpers.raw_http import FORM, form, part


@pytest.fixture(scope="module")
def predictor(trained: Path) -> Predictor:
    return load(trained / "bundles" / "test_resnet-1")


@pytest.fixture(scope="module")
def client(predictor: Predictor) -> Iterator[TestClient]:
    """A client of the service, whose engine runs in the thread of the test."""

    async def predict(data: bytes, top_k: int) -> TimedPrediction:
        pixels = prepare_upload(predictor, data, 10**6)
        prediction = predictor.interpret(predictor.run(pixels.unsqueeze(0))[0], top_k)[0]
        return TimedPrediction(prediction, 0.0, 0.0, 0.0)

    settings = Settings()
    engine: Any = SimpleNamespace(
        predictor=predictor, settings=settings, admission=Admission(64, 10.0), predict=predict
    )
    app = build_app(engine)
    with TestClient(with_middleware(app, Worker(settings, engine=engine, app=app))) as made:
        yield made


def post(client: TestClient, body: bytes, kind: str = FORM) -> tuple[int, str]:
    """Post a form; returns the status and the error message."""
    answer = client.post("/predict", content=body, headers={"Content-Type": kind})
    return answer.status_code, answer.json()["error"]["message"] if answer.status_code != 200 else ""


TOO_MANY = "The form has too many parts: at most 1,000"


@pytest.mark.parametrize(
    ("parts", "status", "reason"),
    [
        ([part(b"x", b"f") for _ in range(1001)], 413, f"{TOO_MANY} files."),
        ([part(b"x", b"f%d" % number, None) for number in range(10_000)], 413, f"{TOO_MANY} fields."),
        ([image(filename=b"a" * 100_000)], 413, "file name"),
        ([b"X-%s: y\r\n" % (b"a" * 5000) + image()], 413, "is too long"),
        ([b"".join(b"X-%d: y\r\n" % number for number in range(50)) + image()], 413, "too many headers: at most 8"),
        ([part(b"x" * 2**21, b"top_k", None), image()], 413, "at most 1,048,576 bytes"),
        ([b'Content-Disposition: form-data; filename="a"\r\n\r\nx'], 400, "has no name"),
        ([b"Content-Type: image/png\r\n\r\nx"], 400, "has no name"),
        ([b"no header at all\r\n\r\nx"], 400, "headers of a part"),
        ([part(b"", b"image")], 400, "The file is empty."),
    ],
    ids=["files", "fields", "file name", "header", "headers", "text", "no name", "no disposition", "no colon", "empty"],
)
def test_invalid_form_is_refused_with_the_reason(
    client: TestClient, parts: list[bytes], status: int, reason: str
) -> None:
    refused, message = post(client, form(*parts))
    assert refused == status
    assert reason in message


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("multipart/form-data", "send multipart/form-data with a boundary"),
        (f"multipart/form-data; boundary={'b' * 300}", "The boundary is too long: at most 256 characters."),
        ("multipart/form-data; boundary=other", "does not use the boundary in its Content-Type header"),
    ],
)
def test_wrong_boundary_is_refused_with_the_reason(client: TestClient, kind: str, reason: str) -> None:
    status, message = post(client, form(image()), kind)
    assert status == 400
    assert reason in message


@pytest.mark.parametrize("charset", CHARSETS)
def test_text_that_cannot_be_decoded_is_refused(client: TestClient, charset: str) -> None:
    body = form(image(), part(b"\xff5\xfe", b"top_k", None))
    assert post(client, body, f"{FORM}; charset={charset}")[0] in (400, 422)


@pytest.mark.parametrize("kind", ["multipart/form-datax; boundary=edge", "multipart/mixed; boundary=edge", "", "a/b"])
def test_other_content_types_are_refused(client: TestClient, kind: str) -> None:
    assert post(client, form(image()), kind)[0] == 415


def test_truncated_body_is_refused(client: TestClient) -> None:
    whole = form(image())
    end = len(b"--edge--\r\n")
    # Without the line break after the last boundary it is complete.
    assert post(client, whole[:-2])[0] == 200
    for cut in (*range(3, end + 3), 100, len(whole) - 10, len(whole) - 3, len(whole)):
        status, message = post(client, whole[:-cut])
        assert status == 400, cut
        assert "ended early" in message, cut


def test_epilogue_of_a_form_is_ignored(client: TestClient) -> None:
    whole = form(image())
    assert post(client, b"\r\n" + whole)[0] == 200
    assert post(client, whole + b"an epilogue\r\n--edge\r\n")[0] == 200
    status, message = post(client, b"a preamble\r\n" + whole)
    assert status == 400
    assert "boundary" in message


@pytest.mark.parametrize(
    "head",
    [
        b"content-disposition:form-data;name=image;filename=a.png",
        b'Content-Disposition: form-data; name="image"; filename="a;b\\"c.png"',
        b"Content-Disposition: form-data; name=image; filename=a; filename*=UTF-8''%e2%82%ac.png",
        b'Content-Type: multipart/mixed; boundary=inner\r\nContent-Disposition: form-data; name="image"; filename="a"',
        b'Content-Disposition: form-data; name="image"; filename=""',
    ],
    ids=["bare", "escaped", "extended", "multipart", "no file name"],
)
def test_unusual_dispositions_are_accepted(client: TestClient, head: bytes) -> None:
    status, message = post(client, form(head + b"\r\n\r\n" + sound()["png"]))
    assert status == 200, message


def test_nested_form_is_not_parsed(client: TestClient) -> None:
    inner = b"--inner\r\n" + image() + b"\r\n--inner--\r\n"
    kind = b'Content-Type: multipart/mixed; boundary=inner\r\nContent-Disposition: form-data; name="image"; filename=a'
    assert post(client, form(kind + b"\r\n\r\n" + inner))[0] == 415


def test_head_is_answered_like_get(client: TestClient) -> None:
    for path in ("/model", "/", "/samples/0"):
        assert client.head(path).status_code == 200
    assert client.head("/predict").status_code == 405
    assert client.head("/nothing").status_code == 404


def twelve_bit_jpeg() -> bytes:
    """Return a JPEG whose frame header declares 12 bits."""
    data = bytearray(encoded(picture(), "JPEG"))
    place = data.index(b"\xff\xc0")
    data[place + 1], data[place + 4] = 0xC1, 12
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (twelve_bit_jpeg(), "12-bit JPEG"),
        (encoded(Image.fromarray(np.linspace(0, 1, 64 * 64, dtype=np.float32).reshape(64, 64)), "TIFF"), "floating"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100), "HEIC"),
    ],
    ids=["12-bit jpeg", "float tiff", "heic"],
)
def test_unsupported_kind_of_image_is_named(client: TestClient, data: bytes, kind: str) -> None:
    answer = client.post("/predict", content=form(part(data)), headers={"Content-Type": FORM})
    assert answer.status_code == 415
    assert answer.json()["error"]["code"] == "unsupported"
    assert kind in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "data", [sound()["jpeg"][:500], sound()["png"][:300], sound()["lzw tiff"][:300]], ids=["jpeg", "png", "tiff"]
)
@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_damaged_image_is_not_called_unsupported(predictor: Predictor, data: bytes) -> None:
    with pytest.raises(RequestError) as raised:
        prepare_upload(predictor, data, 10**6)
    assert raised.value.code is Code.BAD_IMAGE


def test_libtiff_writes_nothing_to_standard_error(capfd: pytest.CaptureFixture[str]) -> None:
    assert libtiff.silence()
    with pytest.raises(OSError):  # noqa: PT011  # Pillow's message is only that decoding failed
        Image.open(io.BytesIO(tiff(64, 64, b"\xff" * 4000))).load()
    assert capfd.readouterr().err == ""
