"""Admission: how many images may be inside, who is refused, and when to come again."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from mlops_img.serving.admission import FILLED, SMOOTHING, Admission
from mlops_img.serving.errors import Code, RequestError


def admission(queue: int = 8, timeout: float = 10.0, cost: float = 0.0) -> Admission:
    made = Admission(queue, timeout)
    if cost:
        made.learn(cost)
    return made


def test_there_are_places_for_the_queue_and_not_one_more() -> None:
    door = admission(queue=3)
    with door.enter(), door.enter(), door.enter():
        assert door.inside == 3
        with pytest.raises(RequestError) as raised, door.enter():
            pass
        assert raised.value.code is Code.OVERLOADED
    assert door.inside == 0


def test_places_are_free_again_whatever_became_of_those_inside() -> None:
    door = admission(queue=1)
    for _ in range(3):
        with pytest.raises(KeyError), door.enter():
            raise KeyError
        assert door.inside == 0
    with door.enter(), pytest.raises(RequestError), door.enter():
        pass
    assert door.inside == 0, "who was refused took no place and frees none"


def test_several_images_take_several_places_or_none() -> None:
    door = admission(queue=4)
    with door.enter(3):
        with pytest.raises(RequestError), door.enter(2):
            pass
        assert door.inside == 3
        with door.enter():
            assert door.inside == 4
    assert door.inside == 0


@pytest.mark.parametrize(
    ("cost", "places"),
    [
        (0.0, 64),  # nothing is known yet
        (0.001, 64),  # 5,000 would be answered in time
        (0.1, 50),
        (1.0, 5),
        (4.0, 1),
        (60.0, 1),  # one is always tried
    ],
)
def test_places_are_what_can_be_answered_within_half_the_timeout(cost: float, places: int) -> None:
    assert FILLED == 0.5
    assert admission(queue=64, timeout=10.0, cost=cost).places == places


def test_slow_images_close_the_door_earlier_than_the_queue() -> None:
    door = admission(queue=64, timeout=10.0, cost=1.0)
    with ExitStack() as inside:
        for _ in range(5):
            inside.enter_context(door.enter())
        with pytest.raises(RequestError), door.enter():
            pass


def test_an_empty_house_lets_anybody_in() -> None:
    door = admission(queue=64, timeout=10.0, cost=1.0)
    with door.enter(32):
        assert door.inside == 32
        with pytest.raises(RequestError), door.enter():
            pass
    with door.enter(32):
        pass


def test_a_request_that_holds_a_place_already_does_not_stand_in_its_own_way() -> None:
    door = admission(queue=64, timeout=10.0, cost=1.0)
    with door.enter():  # at the door, before the images were counted
        with door.enter(31, held=1):
            assert door.inside == 32
        with door.enter(), pytest.raises(RequestError), door.enter(31, held=1):
            pass  # now another is inside
    assert door.inside == 0


@pytest.mark.parametrize(
    ("cost", "inside", "wait"),
    [(0.0, 4, 1), (0.01, 4, 1), (0.25, 8, 2), (0.3, 8, 3), (5.0, 1, 5)],
)
def test_who_is_refused_is_told_to_come_when_those_inside_are_done(cost: float, inside: int, wait: int) -> None:
    door = admission(queue=8, timeout=10.0, cost=cost)
    with door.enter(inside), pytest.raises(RequestError) as raised, door.enter(8):
        pass
    assert raised.value.retry_after == wait, "in whole seconds, at least one"


def test_the_first_cost_is_taken_as_it_is_and_later_ones_move_it_a_little() -> None:
    door = admission()
    door.learn(1.0)
    assert door.cost == 1.0
    door.learn(2.0)
    assert door.cost == pytest.approx(1.0 + SMOOTHING)


def test_one_slow_image_does_not_close_the_door_and_many_do() -> None:
    door = admission(queue=64, timeout=10.0, cost=0.02)
    door.learn(1.0)
    assert door.places == 64
    for _ in range(200):
        door.learn(1.0)
    assert door.cost == pytest.approx(1.0, rel=0.01)
    assert door.places == 5
    for _ in range(200):
        door.learn(0.02)
    assert door.places == 64, "and it opens again"
