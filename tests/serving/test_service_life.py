"""The life of a service: too much to do, too little time, killed workers, and its end."""

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

MUCH = 5


@pytest.fixture
def bundle(trained: Path) -> Path:
    return trained / "bundles" / "latest"


@cache
def slow() -> bytes:
    """Return an image that takes a good part of a second to decode."""
    return png(6000, 6000, depth=16)


def much_to_do() -> bytes:
    """Return a request that takes some seconds to answer."""
    return request(form(*[part(slow(), b"images")] * MUCH), line="POST /predict_batch HTTP/1.1")


def asked(service: Service, sent: bytes | None = None) -> Answer | None:
    """Send a request, by default a good one; None if no answer came, as from a worker that dies."""
    try:
        return send(service.url, good() if sent is None else sent, timeout=90)
    except OSError:
        return None


def answers(service: Service) -> bool:
    """Say whether a good request is answered."""
    answer = asked(service)
    return answer is not None and answer.status == 200


def images_inside(service: Service) -> float:
    """Return how many images the metrics say are worked on."""
    text = httpx.get(f"{service.url}/metrics", timeout=30).text
    return float(next(line.split()[1] for line in text.splitlines() if line.startswith("mlops_img_images_inside")))


def test_killed_worker_is_replaced_and_meanwhile_the_other_one_answers(bundle: Path, tmp_path: Path) -> None:
    with serving(bundle, tmp_path, workers=2) as service:
        until(lambda: service.log.read_text().count("initialized") == 2)
        first, second = service.workers()
        os.kill(first, signal.SIGKILL)
        until(lambda: first not in service.workers())
        statuses: Counter[int | None] = Counter()

        def replaced_while_asked() -> bool:
            answer = asked(service)
            statuses[answer and answer.status] += 1
            return service.log.read_text().count("initialized") == 3

        until(replaced_while_asked)
        assert statuses == {200: statuses.total()}
        assert second in service.workers()
        assert len(service.workers()) == 2


def test_only_worker_is_replaced_with_all_that_it_had_to_do_forgotten(bundle: Path, tmp_path: Path) -> None:
    with serving(bundle, tmp_path, timeout=60) as service, ThreadPoolExecutor() as threads:
        lost = threads.submit(asked, service, much_to_do())
        until(lambda: images_inside(service) == MUCH)
        (worker,) = service.workers()
        os.kill(worker, signal.SIGKILL)
        assert lost.result() is None
        until(lambda: answers(service))
        assert service.workers() != [worker]
        assert images_inside(service) == 0


def test_end_waits_for_the_answers_under_way(bundle: Path, tmp_path: Path) -> None:
    with serving(bundle, tmp_path, timeout=60) as service, ThreadPoolExecutor() as threads:
        under_way = threads.submit(asked, service, much_to_do())
        until(lambda: images_inside(service) == MUCH)
        service.process.send_signal(signal.SIGTERM)
        answer = under_way.result()
        assert answer is not None
        assert answer.status == 200
        assert [bool(result["prediction"]) for result in answer.json()["results"]] == [True] * MUCH
        assert service.process.wait(60) == 0
        assert asked(service) is None
        assert "Traceback" not in service.log.read_text()


def test_who_comes_when_there_is_too_much_to_do_is_told_to_come_again(bundle: Path, tmp_path: Path) -> None:
    sent = request(form(part(slow())))
    settings = {"queue": 3, "max_images": 3, "timeout": 90}
    with serving(bundle, tmp_path, **settings) as service, ThreadPoolExecutor(24) as threads:
        received = list(threads.map(lambda _: asked(service, sent), range(24)))
        statuses = Counter(answer and answer.status for answer in received)
        assert statuses.keys() == {200, 429}
        assert statuses[200] >= 3
        for answer in received:
            if answer is not None and answer.status == 429:
                assert problem(answer) is Code.OVERLOADED
                assert int(answer.headers["retry-after"]) >= 1
        assert images_inside(service) == 0
        assert answers(service)


@pytest.fixture(scope="module")
def hasty(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service that gives itself and others hardly any time."""
    with serving(trained / "bundles" / "latest", tmp_path_factory.mktemp("hasty"), timeout=1) as service:
        yield service


def test_answer_that_takes_too_long_is_given_up_and_the_service_goes_on(hasty: Service) -> None:
    answer = asked(hasty, much_to_do())
    assert answer is not None
    assert answer.status == 504
    assert problem(answer) is Code.TIMEOUT
    until(lambda: answers(hasty))  # once the decoder is done with the image that it had begun
    assert images_inside(hasty) == 0


def test_upload_that_trickles_is_given_up(hasty: Service) -> None:
    body = form(part(slow()))
    sent = 0

    def trickle() -> Iterator[bytes]:
        nonlocal sent
        yield request(length=str(len(body)))
        for place in range(len(body)):
            sent += 1
            time.sleep(0.01)  # a slow line
            yield body[place : place + 1]

    answer = send(hasty.url, trickle())
    assert answer is not None
    assert problem(answer) is Code.UPLOAD_TIMEOUT
    assert sent < len(body)
    until(lambda: images_inside(hasty) == 0)
