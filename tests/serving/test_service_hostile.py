"""Hostile requests: each is refused with an error message, and the worker survives."""

from __future__ import annotations

import socket
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

import mlops_img
from mlops_img.serving.errors import Code
from tests.helpers import hostile_requests, hostile_uploads, odd_images
from tests.helpers.hostile_requests import good, never_finished
from tests.helpers.hostile_uploads import png, progressive_jpeg, sound
from tests.helpers.raw_http import form, part, problem, request, send
from tests.helpers.service_process import Service, serving

# One process starts the service for all of them.
pytestmark = pytest.mark.xdist_group("service_hostile")

MAX_PIXELS = 16_000_000
REQUEST_TIMEOUT = 120  # seconds after which a request counts as hanging
# Bytes. The largest upload and the largest image take 60 and 200 MB while they are processed. malloc may keep all of
# it, but it must not grow with every request.
GROWTH = 300e6

FILES = (
    hostile_uploads.cut_short,
    hostile_uploads.with_wrong_magic,
    hostile_uploads.no_images,
    hostile_uploads.foreign_formats,
    hostile_uploads.too_many_pixels,
    hostile_uploads.bombs_inside,
)
# Some of these can still be decoded.
DAMAGED_FILES = (hostile_uploads.flipped, hostile_uploads.zeroed)
REQUESTS = (
    hostile_requests.wrong_top_k,
    hostile_requests.wrong_forms,
    hostile_requests.wrong_lengths,
    hostile_requests.wrong_addresses,
)
ODD_IMAGES = (odd_images.modes, odd_images.several_frames, odd_images.turned, odd_images.extreme_sizes)


@dataclass(frozen=True)
class Watched:
    """A service and its only worker.

    Attributes:
        worker: process id.
        resident: bytes in memory after a few valid images.
    """

    service: Service
    worker: int
    resident: float

    @property
    def url(self) -> str:
        """URL of the service."""
        return self.service.url

    def memory(self, what: str) -> float:
        """Return VmRSS, the resident memory of the worker, or VmHWM, its peak, in bytes."""
        return memory(self.worker, what)


def memory(process: int, what: str) -> float:
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return 1024 * float(next(line.split()[1] for line in lines if line.startswith(what)))


@pytest.fixture(scope="module")
def watched(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    folder = tmp_path_factory.mktemp("service")
    with serving(trained / "bundles" / "latest", folder, max_pixels=MAX_PIXELS) as service:
        for data in sound().values():
            assert send(service.url, request(form(part(data)))).status == 200
        (worker,) = service.workers()
        yield Watched(service, worker, memory(worker, "VmRSS"))


@pytest.fixture(autouse=True)
def worker_survives(watched: Watched) -> Iterator[None]:
    """After each test, check that the same worker predicts, has not grown much and raised no exception."""
    yield
    assert send(watched.url, good()).status == 200
    assert watched.service.workers() == [watched.worker]
    assert watched.memory("VmRSS") - watched.resident < GROWTH
    assert "Traceback" not in watched.service.log.read_text(errors="replace")


def refused(
    watched: Watched, requests: Mapping[str, bytes | Iterable[bytes]], *, images: bool = False
) -> Counter[Code | None]:
    """Send requests that must be refused; with `images`, some may succeed. Returns the counts of the error codes."""
    codes: Counter[Code | None] = Counter()
    for name, sent in requests.items():
        print(name)  # shown if the test fails
        answer = send(watched.url, sent)
        assert answer is not None
        if images and answer.status == 200:
            codes[None] += 1
            continue
        assert 400 <= answer.status < 500, answer
        codes[problem(answer)] += 1
    return codes


def as_requests(files: Mapping[str, bytes]) -> dict[str, bytes]:
    return {name: request(form(part(data))) for name, data in files.items()}


@pytest.mark.parametrize(("depth", "color"), [(16, 0), (8, 6), (8, 2), (1, 0)], ids=["grey16", "rgba", "rgb", "bit"])
def test_large_image_takes_memory_for_its_pixels_only(watched: Watched, depth: int, color: int) -> None:
    side = int(MAX_PIXELS**0.5)
    Path(f"/proc/{watched.worker}/clear_refs").write_text("5")  # resets the peak
    before = watched.memory("VmHWM")
    assert send(watched.url, request(form(part(png(side, side, depth=depth, color=color))))).status == 200
    # 4 bytes for Pillow, 3 for the array, and the rest for the decoder and a strip of the image.
    assert watched.memory("VmHWM") - before < 12 * MAX_PIXELS


def test_corpus_size() -> None:
    families = [*FILES, *DAMAGED_FILES, *REQUESTS, hostile_requests.not_http]
    by_address = [hostile_requests.addresses(""), hostile_requests.other_types("")]
    assert sum(len(family()) for family in families) + sum(map(len, by_address)) >= 500


@pytest.mark.parametrize("family", FILES, ids=lambda family: family.__name__)
def test_invalid_file_is_refused(watched: Watched, family: Callable[[], dict[str, bytes]]) -> None:
    codes = refused(watched, as_requests(family()))
    assert codes.keys() <= {Code.BAD_IMAGE, Code.NOT_AN_IMAGE, Code.TOO_LARGE}


@pytest.mark.parametrize("family", DAMAGED_FILES, ids=lambda family: family.__name__)
def test_damaged_file_is_refused_or_decoded(watched: Watched, family: Callable[[], dict[str, bytes]]) -> None:
    codes = refused(watched, as_requests(family()), images=True)
    assert codes[Code.BAD_IMAGE] > 0
    assert codes[None] < codes.total() * 2 / 3


def test_other_formats_are_not_decoded(watched: Watched) -> None:
    for family in (hostile_uploads.foreign_formats, hostile_uploads.no_images):
        files = {name: data for name, data in family().items() if data}
        assert refused(watched, as_requests(files)).keys() == {Code.NOT_AN_IMAGE}


def test_pixels_are_counted_before_decoding(watched: Watched) -> None:
    codes = refused(watched, as_requests(hostile_uploads.too_many_pixels()))
    assert codes[Code.TOO_LARGE] >= codes.total() - 1  # one BMP declares more than its format allows
    side = int(MAX_PIXELS**0.5)
    assert refused(watched, as_requests({"": png(side + 1, side)})) == {Code.TOO_LARGE: 1}


def test_scans_of_a_progressive_jpeg_are_limited(watched: Watched) -> None:
    assert send(watched.url, request(form(part(progressive_jpeg(64, scans=50))))).status == 200
    assert refused(watched, as_requests({"": progressive_jpeg(64, scans=150)})) == {Code.BAD_IMAGE: 1}


def test_batch_has_an_error_for_each_invalid_file(watched: Watched) -> None:
    files = [sound()["png"], *hostile_uploads.no_images().values(), *hostile_uploads.bombs_inside().values()]
    body = form(*(part(data, b"images") for data in files))
    answer = send(watched.url, request(body, line="POST /predict_batch HTTP/1.1"))
    assert answer is not None
    assert answer.status == 200
    results = answer.json()["results"]
    assert len(results) == len(files)
    assert results[0]["prediction"]
    for result in results[1:]:
        assert result["prediction"] is None
        assert set(result["error"]) == {"code", "message", "request_id"}
        assert result["error"]["code"] in (Code.BAD_IMAGE, Code.NOT_AN_IMAGE)


@pytest.mark.parametrize("family", REQUESTS, ids=lambda family: family.__name__)
def test_invalid_request_is_refused(watched: Watched, family: Callable[[], dict[str, bytes]]) -> None:
    refused(watched, family())


def test_unusual_file_names_are_accepted(watched: Watched) -> None:
    names = (b"", b"\xff\xfe\x80.png", b"a\0b.png", b"../../../etc/passwd", b"http://127.0.0.1/a.png", b"a" * 1000)
    for name in (*names, "größe.png".encode(), b"CON", b"a.php", b"%2e%2e%2f", b"$(id)"):
        for line, field in (("/predict", b"image"), ("/predict_batch", b"images")):
            body = form(part(sound()["png"], field, name))
            answer = send(watched.url, request(body, line=f"POST {line} HTTP/1.1"))
            assert answer is not None
            assert answer.status == 200, name


def test_url_instead_of_an_image_is_never_fetched(watched: Watched) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"http://127.0.0.1:{listener.getsockname()[1]}/secret.png"
        refused(watched, hostile_requests.addresses(address))
        codes = refused(watched, hostile_requests.other_types(address))
        assert codes == {Code.NOT_AN_IMAGE: codes.total()}
        listener.settimeout(0)
        with pytest.raises(BlockingIOError):  # a connection would be waiting here
            listener.accept()
        with socket.create_connection(listener.getsockname()):
            listener.accept()


def test_bytes_that_are_not_http_are_refused_or_disconnected(watched: Watched) -> None:
    for name, sent in hostile_requests.not_http().items():
        answer = send(watched.url, sent)
        assert answer is None or problem(answer) is Code.BAD_REQUEST, name


def test_unfinished_request_times_out(trained: Path, tmp_path: Path) -> None:
    def slow_bytes() -> Iterator[bytes]:
        end = time.monotonic() + REQUEST_TIMEOUT
        while time.monotonic() < end:
            time.sleep(0.1)
            yield b"x"

    requests = never_finished(slow_bytes())
    # A service of its own with a short timeout; the other one has a long one, for a busy machine.
    with (
        serving(trained / "bundles" / "latest", tmp_path, timeout=2) as service,
        ThreadPoolExecutor(len(requests)) as threads,
    ):
        workers = service.workers()
        answers = list(threads.map(lambda sent: send(service.url, sent, timeout=REQUEST_TIMEOUT), requests.values()))
        assert service.workers() == workers
        assert "Traceback" not in service.log.read_text()
    for name, answer in zip(requests, answers, strict=True):
        if name == "nothing":
            assert answer is None
        else:
            assert answer is not None, name
            assert problem(answer) is Code.UPLOAD_TIMEOUT, name
            assert answer.headers["connection"] == "close", name


@pytest.mark.parametrize("family", ODD_IMAGES, ids=lambda family: family.__name__)
def test_unusual_image_is_predicted_like_by_the_library(
    watched: Watched, portable: Path, family: Callable[[], dict[str, bytes]]
) -> None:
    model = mlops_img.load(portable)
    for name, data in family().items():
        answer = send(watched.url, request(form(part(data))))
        assert answer is not None
        assert answer.status == 200, f"{name}: {answer}"
        body, (expected,) = answer.json(), model.predict([data])
        assert body["label"] == expected.label, name
        assert body["probability"] == pytest.approx(expected.probability, abs=1e-6), name


def test_idle_connections_do_not_block_others(watched: Watched) -> None:
    where = ("127.0.0.1", int(watched.url.rsplit(":", 1)[1]))
    silent = [socket.create_connection(where) for _ in range(200)]
    try:
        assert send(watched.url, good()).status == 200
    finally:
        for connection in silent:
            connection.close()
