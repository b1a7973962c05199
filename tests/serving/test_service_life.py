"""Overload, timeouts, killed workers and shutdown."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import httpx
import pytest

from mlops_img.serving.errors import Code
from tests.helpers.hostile_requests import good
from tests.helpers.hostile_uploads import png
from tests.helpers.raw_http import Answer, form, part, problem, request, send
from tests.helpers.service_process import Service, serving, until

# One process starts the service for all of them.
pytestmark = pytest.mark.xdist_group("service_life")

SLOW_IMAGES = 5


@pytest.fixture
def bundle(trained: Path) -> Path:
    return trained / "bundles" / "latest"


@cache
def slow_image() -> bytes:
    """Return an image that takes a large part of a second to decode."""
    return png(6000, 6000, depth=16)


def slow_request() -> bytes:
    """Return a request that takes several seconds."""
    return request(form(*[part(slow_image(), b"images")] * SLOW_IMAGES), line="POST /predict_batch HTTP/1.1")


def exchange(service: Service, sent: bytes | None = None) -> Answer | None:
    """Send a request, by default a valid one; None if there was no response, for example from a killed worker."""
    try:
        return send(service.url, good() if sent is None else sent, timeout=90)
    except OSError:
        return None


def is_answering(service: Service) -> bool:
    """Return whether a valid request succeeds."""
    answer = exchange(service)
    return answer is not None and answer.status == 200


def admitted_images(service: Service) -> float:
    """Return the number of admitted images from the metrics."""
    text = httpx.get(f"{service.url}/metrics", timeout=30).text
    return float(next(line.split()[1] for line in text.splitlines() if line.startswith("mlops_img_images_inside")))


def test_killed_worker_is_replaced_while_the_other_one_answers(bundle: Path, tmp_path: Path) -> None:
    with serving(bundle, tmp_path, workers=2) as service:
        until(lambda: service.log.read_text().count("initialized") == 2)
        first, second = service.workers()
        os.kill(first, signal.SIGKILL)
        until(lambda: first not in service.workers())
        statuses: Counter[int | None] = Counter()

        def is_replaced() -> bool:
            answer = exchange(service)
            statuses[answer and answer.status] += 1
            return service.log.read_text().count("initialized") == 3

        until(is_replaced)
        assert statuses == {200: statuses.total()}
        assert second in service.workers()
        assert len(service.workers()) == 2


def test_killed_only_worker_is_replaced_without_its_admitted_images(bundle: Path, tmp_path: Path) -> None:
    with serving(bundle, tmp_path, timeout=60) as service, ThreadPoolExecutor() as threads:
        lost = threads.submit(exchange, service, slow_request())
        until(lambda: admitted_images(service) == SLOW_IMAGES)
        (worker,) = service.workers()
        os.kill(worker, signal.SIGKILL)
        assert lost.result() is None
        until(lambda: is_answering(service))
        assert service.workers() != [worker]
        assert admitted_images(service) == 0


def test_shutdown_waits_for_responses_under_way(bundle: Path, tmp_path: Path) -> None:
    with serving(bundle, tmp_path, timeout=60) as service, ThreadPoolExecutor() as threads:
        under_way = threads.submit(exchange, service, slow_request())
        until(lambda: admitted_images(service) == SLOW_IMAGES)
        service.process.send_signal(signal.SIGTERM)
        answer = under_way.result()
        assert answer is not None
        assert answer.status == 200
        assert [bool(result["prediction"]) for result in answer.json()["results"]] == [True] * SLOW_IMAGES
        assert service.process.wait(60) == 0
        assert exchange(service) is None
        assert "Traceback" not in service.log.read_text()


def test_overloaded_service_answers_429_with_retry_after(bundle: Path, tmp_path: Path) -> None:
    sent = request(form(part(slow_image())))
    settings = {"queue": 3, "max_images": 3, "timeout": 90}
    with serving(bundle, tmp_path, **settings) as service, ThreadPoolExecutor(24) as threads:
        received = list(threads.map(lambda _: exchange(service, sent), range(24)))
        statuses = Counter(answer and answer.status for answer in received)
        assert statuses.keys() == {200, 429}
        assert statuses[200] >= 3
        for answer in received:
            if answer is not None and answer.status == 429:
                assert problem(answer) is Code.OVERLOADED
                assert int(answer.headers["retry-after"]) >= 1
        assert admitted_images(service) == 0
        assert is_answering(service)


@pytest.fixture(scope="module")
def impatient(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with a short timeout."""
    with serving(trained / "bundles" / "latest", tmp_path_factory.mktemp("impatient"), timeout=1) as service:
        yield service


def test_slow_response_times_out_and_the_service_continues(impatient: Service) -> None:
    answer = exchange(impatient, slow_request())
    assert answer is not None
    assert answer.status == 504
    assert problem(answer) is Code.TIMEOUT
    until(lambda: is_answering(impatient))  # once the decoder has finished the image that it had begun
    assert admitted_images(impatient) == 0


def test_slow_upload_times_out(impatient: Service) -> None:
    body = form(part(slow_image()))
    sent = 0

    def send_slowly() -> Iterator[bytes]:
        nonlocal sent
        yield request(length=str(len(body)))
        for place in range(len(body)):
            sent += 1
            time.sleep(0.01)  # a slow connection
            yield body[place : place + 1]

    answer = send(impatient.url, send_slowly())
    assert answer is not None
    assert problem(answer) is Code.UPLOAD_TIMEOUT
    assert sent < len(body)
    until(lambda: admitted_images(impatient) == 0)
