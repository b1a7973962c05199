"""Busy workers close some connections, so that their clients reach another worker."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from mlops_img.serving.settings import Settings
from mlops_img.serving.worker import BUSY_IMAGES_PER_THREAD, CLOSE_EVERY, Worker


def make_worker(admitted: int, **settings: Any) -> Worker:
    engine: Any = SimpleNamespace(admission=SimpleNamespace(admitted=admitted))
    return Worker(Settings(**{"threads": 1, **settings}), engine=engine)


def test_busy_worker_closes_some_connections() -> None:
    worker = make_worker(BUSY_IMAGES_PER_THREAD + 1, workers=2)
    closed = [worker.should_close_connection() for _ in range(3 * CLOSE_EVERY)]
    assert sum(closed) == 3


@pytest.mark.parametrize(
    ("admitted", "settings"),
    [
        (BUSY_IMAGES_PER_THREAD, {"workers": 2}),
        (BUSY_IMAGES_PER_THREAD + 1, {"workers": 2, "threads": 2}),
        (50, {"workers": 1}),
    ],
)
def test_idle_or_only_worker_keeps_its_connections(admitted: int, settings: dict[str, int]) -> None:
    worker = make_worker(admitted, **settings)
    assert not any(worker.should_close_connection() for _ in range(3 * CLOSE_EVERY))
