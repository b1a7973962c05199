"""The client with a real service, and without one."""

from __future__ import annotations

import io
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import mlops_img
from mlops_img.client import Client, ServiceError, UnreachableError
from mlops_img.serving.errors import Code
from tests.helpers.service_process import Service, refused_port, serving, until

# One process starts the service for all of them.
pytestmark = pytest.mark.xdist_group("client")

TOKEN = "one-of-two-tokens"


@pytest.fixture(scope="module")
def service(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("service")
    with serving(trained / "bundles" / "latest", folder, tokens=f"another-token,{TOKEN}", max_images=4) as running:
        yield running


@pytest.fixture
def client(service: Service) -> Iterator[Client]:
    with Client(service.url, token=TOKEN) as opened:
        yield opened


@pytest.fixture
def photos(trained: Path) -> list[Path]:
    return [next((trained / "photos" / kind).iterdir()) for kind in ("circle", "square", "stripes")]


def test_path_bytes_and_open_file_are_predicted_like_by_the_library(
    client: Client, portable: Path, photos: list[Path]
) -> None:
    (expected,) = mlops_img.load(portable).predict([photos[0]], top_k=2)
    with photos[0].open("rb") as file:
        answers = [
            client.predict(image, top_k=2) for image in (photos[0], str(photos[0]), photos[0].read_bytes(), file)
        ]
    for answer in answers:
        assert (answer.label, answer.index) == (expected.label, expected.index)
        assert answer.probability == pytest.approx(expected.probability, abs=1e-6)
        assert [each.label for each in answer.top_k] == [each.label for each in expected.top_k]
        assert (answer.model.name, answer.model.version) == ("test_resnet", "1")
        assert answer.timing.total_ms > 0


def test_batch_keeps_its_order_and_a_bad_image_affects_only_its_own_result(
    client: Client, photos: list[Path], tmp_path: Path
) -> None:
    foreign = tmp_path / "größe.jpg"
    foreign.write_bytes(photos[1].read_bytes())
    results = client.predict_batch([photos[0], b"not an image", foreign, io.BytesIO(photos[2].read_bytes())]).results
    assert [result.filename for result in results] == [photos[0].name, "image", "größe.jpg", "image"]
    assert [result.prediction and result.prediction.label for result in results] == [
        "circle",
        None,
        "square",
        "stripes",
    ]
    assert results[1].error is not None
    assert results[1].error.code is Code.NOT_AN_IMAGE


def test_service_is_ready_and_describes_its_model(client: Client) -> None:
    assert client.ready()
    model = client.model()
    assert (model.name, model.precision, model.classes) == (
        "test_resnet",
        "int8-static",
        ["circle", "square", "stripes"],
    )
    assert model.limits.max_images == 4


def test_many_threads_share_a_client(client: Client, photos: list[Path]) -> None:
    sent = photos * 8
    with ThreadPoolExecutor(8) as pool:
        labels = [answer.label for answer in pool.map(client.predict, sent)]
    assert labels == [path.parent.name for path in sent]


@pytest.mark.parametrize(
    ("ask", "code", "status"),
    [
        (lambda client, photo: client.predict(photo.read_bytes()[:200]), Code.BAD_IMAGE, 400),
        (lambda client, photo: client.predict(b"not an image"), Code.NOT_AN_IMAGE, 415),
        (lambda client, photo: client.predict(photo, top_k=0), Code.INVALID_PARAMETER, 422),
        (lambda client, photo: client.predict_batch([photo] * 5), Code.TOO_LARGE, 413),
    ],
)
def test_client_error_is_raised_at_once_with_its_request_id(
    service: Service, photos: list[Path], ask: Callable[[Client, Path], object], code: Code, status: int
) -> None:
    def sleep(seconds: float) -> None:
        raise AssertionError("must not be retried")

    with Client(service.url, token=TOKEN, sleep=sleep) as client, pytest.raises(ServiceError) as raised:
        ask(client, photos[0])
    assert (raised.value.code, raised.value.status) == (code, status)
    assert raised.value.request_id is not None
    request_id = raised.value.request_id
    until(lambda: request_id in service.log.read_text())  # written after the response
    assert raised.value.message in str(raised.value)


@pytest.mark.parametrize("token", [None, "a-wrong-one"])
def test_request_without_a_valid_token_is_refused(service: Service, photos: list[Path], token: str | None) -> None:
    with Client(service.url, token=token) as client:
        assert client.ready(), "health needs no token"
        with pytest.raises(ServiceError, match="Send one of the service's tokens") as raised:
            client.predict(photos[0])
    assert (raised.value.status, raised.value.code) == (401, Code.UNAUTHORIZED)


def test_line_break_after_a_token_is_ignored(service: Service) -> None:
    assert Client(service.url, token=f"{TOKEN}\n").model().name == "test_resnet"


def test_refused_connection_is_an_unreachable_error() -> None:
    waits: list[float] = []
    with refused_port() as port, Client(f"http://127.0.0.1:{port}", retries=2, sleep=waits.append) as client:
        url = client.url
        assert not client.ready()
        with pytest.raises(UnreachableError, match=f"no response from {url}: .*refused. Is the service running there"):
            client.predict(b"x")
    assert len(waits) == 2


class EndlessResponse(BaseHTTPRequestHandler):
    """Sends a byte now and then, without end."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        try:
            while True:
                self.wfile.write(b" ")
                time.sleep(0.05)
        except OSError:
            pass

    def log_message(self, *arguments: object) -> None:
        pass


def test_endless_response_times_out() -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), EndlessResponse)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with (
        Client(f"http://127.0.0.1:{server.server_port}", timeout=0.3, retries=0) as client,
        pytest.raises(UnreachableError, match="took too long"),
    ):
        client.model()
    server.shutdown()
    server.server_close()


def test_client_is_imported_without_anything_heavy() -> None:
    code = (
        "import sys, mlops_img.client\n"
        "heavy = {'torch', 'numpy', 'bentoml', 'PIL', 'fastapi', 'starlette'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
