"""Admission: how many images a worker admits, which requests it refuses, and when it asks them to retry."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from mlops_img.serving.admission import SMOOTHING, TIMEOUT_SHARE, Admission
from mlops_img.serving.errors import Code, RequestError


def make_admission(queue: int = 8, timeout: float = 10.0, seconds: float = 0.0) -> Admission:
    admission = Admission(queue, timeout)
    if seconds:
        admission.observe(seconds)
    return admission


def test_queue_is_the_limit() -> None:
    admission = make_admission(queue=3)
    with admission.reserve(), admission.reserve(), admission.reserve():
        assert admission.admitted == 3
        with pytest.raises(RequestError) as raised, admission.reserve():
            pass
        assert raised.value.code is Code.OVERLOADED
        assert raised.value.message == "The service is overloaded. Retry later."
    assert admission.admitted == 0


def test_reservation_ends_after_success_failure_and_refusal() -> None:
    admission = make_admission(queue=1)
    for _ in range(3):
        with pytest.raises(KeyError), admission.reserve():
            raise KeyError
        assert admission.admitted == 0
    with admission.reserve(), pytest.raises(RequestError), admission.reserve():
        pass
    assert admission.admitted == 0, "a refused request reserved nothing and frees nothing"


def test_all_images_of_a_request_are_admitted_or_none() -> None:
    admission = make_admission(queue=4)
    with admission.reserve(3):
        with pytest.raises(RequestError), admission.reserve(2):
            pass
        assert admission.admitted == 3
        with admission.reserve():
            assert admission.admitted == 4
    assert admission.admitted == 0


@pytest.mark.parametrize(
    ("seconds", "capacity"),
    [
        (0.0, 64),  # nothing is known yet
        (0.001, 64),  # 5,000 would be answered in time
        (0.1, 50),
        (1.0, 5),
        (4.0, 1),
        (60.0, 1),  # one is always tried
    ],
)
def test_capacity_is_what_can_be_answered_within_half_the_timeout(seconds: float, capacity: int) -> None:
    assert TIMEOUT_SHARE == 0.5
    assert make_admission(queue=64, timeout=10.0, seconds=seconds).capacity == capacity


def test_slow_images_are_refused_before_the_queue_is_full() -> None:
    admission = make_admission(queue=64, timeout=10.0, seconds=1.0)
    with ExitStack() as stack:
        for _ in range(5):
            stack.enter_context(admission.reserve())
        with pytest.raises(RequestError), admission.reserve():
            pass


def test_idle_worker_admits_oversized_batch() -> None:
    admission = make_admission(queue=64, timeout=10.0, seconds=1.0)
    with admission.reserve(32):
        assert admission.admitted == 32
        with pytest.raises(RequestError), admission.reserve():
            pass
    with admission.reserve(32):
        pass


def test_request_grows_once_its_images_are_counted() -> None:
    admission = make_admission(queue=64, timeout=10.0, seconds=1.0)
    with admission.reserve() as reservation:
        reservation.resize(32)
        assert admission.admitted == 32, "idle but for this request"
    assert admission.admitted == 0
    with admission.reserve() as reservation, admission.reserve():
        with pytest.raises(RequestError):
            reservation.resize(32)
        assert admission.admitted == 2, "it stays as it was"
        reservation.resize(4)
        assert admission.admitted == 5
    assert admission.admitted == 0


def test_request_may_shrink_above_capacity() -> None:
    admission = make_admission(queue=64, timeout=10.0, seconds=1.0)
    with admission.reserve(2) as reservation, admission.reserve(3):
        for _ in range(200):
            admission.observe(60.0)
        assert admission.capacity == 1
        reservation.resize(1)
        assert admission.admitted == 4


@pytest.mark.parametrize(
    ("seconds", "admitted", "retry_after"),
    [(0.0, 4, 1), (0.01, 4, 1), (0.25, 8, 2), (0.3, 8, 3), (5.0, 1, 5)],
)
def test_retry_after_is_the_time_of_the_admitted_images(seconds: float, admitted: int, retry_after: int) -> None:
    admission = make_admission(queue=8, timeout=10.0, seconds=seconds)
    with admission.reserve(admitted), pytest.raises(RequestError) as raised, admission.reserve(8):
        pass
    assert raised.value.retry_after == retry_after, "in whole seconds, at least one"


def test_first_time_is_taken_as_it_is_and_later_ones_are_averaged() -> None:
    admission = make_admission()
    admission.observe(1.0)
    assert admission.seconds_per_image == 1.0
    admission.observe(2.0)
    assert admission.seconds_per_image == pytest.approx(1.0 + SMOOTHING)


def test_capacity_follows_many_slow_images_but_not_one() -> None:
    admission = make_admission(queue=64, timeout=10.0, seconds=0.02)
    admission.observe(1.0)
    assert admission.capacity == 64
    for _ in range(200):
        admission.observe(1.0)
    assert admission.seconds_per_image == pytest.approx(1.0, rel=0.01)
    assert admission.capacity == 5
    for _ in range(200):
        admission.observe(0.02)
    assert admission.capacity == 64, "and it recovers"
