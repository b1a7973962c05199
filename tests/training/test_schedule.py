"""The learning rate of every step, as a share of the highest."""

from __future__ import annotations

import math
from typing import Any

import pytest

from mlops_img.config.train import ScheduleConfig
from mlops_img.errors import UserError
from mlops_img.training.schedule import make_schedule, parse_length

TOTAL = 100
EPOCH = 20


def rates(steps: int = TOTAL, **options: Any) -> list[float]:
    schedule = make_schedule(ScheduleConfig(**options), steps, EPOCH)
    return [schedule(step) for step in range(steps)]


def test_cosine_rises_in_equal_steps_then_falls_by_half_a_cosine() -> None:
    values = rates(name="cosine", warmup="10 steps")
    assert values[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert values[10] == 1
    assert values[10 + 45] == pytest.approx(0.5)
    assert values[10 + 30] == pytest.approx((1 + math.cos(math.pi / 3)) / 2)
    assert 0 < values[-1] < 1e-3
    assert values[10:] == sorted(values[10:], reverse=True)


def test_cosine_ends_at_the_given_fraction() -> None:
    schedule = make_schedule(ScheduleConfig(name="cosine", warmup="0 steps", final_fraction=0.1), TOTAL, EPOCH)
    assert schedule(0) == 1
    assert schedule(TOTAL // 2) == pytest.approx(0.55)
    assert schedule(TOTAL - 1) == pytest.approx(0.1, abs=1e-3)
    assert schedule(TOTAL) == schedule(2 * TOTAL) == pytest.approx(0.1)


def test_one_cycle_rises_and_falls_by_half_cosines() -> None:
    values = rates(name="one_cycle", warmup="30%", final_fraction=0.0)
    assert 0 < values[0] < 0.01
    assert values[14] == pytest.approx(0.5)
    assert values[29] == values[30] == 1
    assert values[65] == pytest.approx(0.5)
    assert 0 < values[-1] < 1e-3
    assert max(values) == 1


def test_steps_fall_by_the_factor_after_each_length() -> None:
    values = rates(name="step", warmup="4 steps", step_length="30 steps", step_factor=0.1)
    assert values[:4] == pytest.approx([0.25, 0.5, 0.75, 1])
    assert values[29] == 1
    assert values[30] == values[59] == pytest.approx(0.1)
    assert values[60] == pytest.approx(0.01)
    assert values[-1] == pytest.approx(0.001)


def test_constant_stays_after_its_warmup() -> None:
    assert rates(name="constant", warmup="0 steps") == [1] * TOTAL
    assert rates(name="constant", warmup="1 epoch")[EPOCH - 2 : EPOCH + 1] == [0.95, 1, 1]


@pytest.mark.parametrize("name", ["cosine", "one_cycle", "step", "constant"])
@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize("warmup", ["0 steps", "5%", "100%", "3 epochs"])
def test_every_rate_of_a_short_run_is_a_share_of_the_highest(name: str, steps: int, warmup: str) -> None:
    values = rates(steps, name=name, warmup=warmup)
    assert all(0 < value <= 1 for value in values)
    assert warmup != "3 epochs" or values == sorted(values)


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("5 steps", 5),
        ("1 step", 1),
        ("2 epochs", 40),
        ("1 epoch", 20),
        ("0.5 epochs", 10),
        ("10%", 10),
        (" 2.5 % ", 2),
        ("0.1%", 1),
        ("0%", 0),
        ("0 steps", 0),
        ("10steps", 10),
    ],
)
def test_lengths_are_counted_in_steps(text: str, steps: int) -> None:
    assert parse_length(text, "schedule.warmup", TOTAL, EPOCH) == steps


@pytest.mark.parametrize("text", ["5", "five epochs", "-1 steps", "5 hours", "10 % of it", "", "nan%"])
def test_unparsable_length_is_a_user_error(text: str) -> None:
    with pytest.raises(UserError, match=r"schedule\.warmup=.*\"5 epochs\", \"500 steps\" or \"10%\""):
        make_schedule(ScheduleConfig(warmup=text), TOTAL, EPOCH)


def test_step_length_of_zero_is_a_user_error() -> None:
    for text in ("0 steps", "soon"):
        with pytest.raises(UserError, match=rf"schedule\.step_length={text}"):
            make_schedule(ScheduleConfig(name="step", step_length=text), TOTAL, EPOCH)
