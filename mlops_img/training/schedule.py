"""The learning rate as a pure function of the step: nothing to save, nothing to restore."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from mlops_img.config.train import ScheduleConfig
from mlops_img.errors import UserError

# From the optimizer step, counted from 0, to the share of the highest learning rate. A step may be a fraction, where a
# run has another length than its schedule (train.max_minutes).
Schedule = Callable[[float], float]

LENGTH = re.compile(r"\s*(?P<number>\d+(?:\.\d+)?(?:e-?\d+)?)\s*(?P<unit>epochs?|steps?|%)\s*")


@dataclass(frozen=True)
class Span:
    """The run that a schedule stretches over, in optimizer steps.

    Attributes:
        total: steps of the whole run.
        epoch: steps of an epoch.
        warmup: steps of the warmup, at most `total`.
    """

    total: int
    epoch: int
    warmup: int

    def length(self, text: str, key: str) -> int:
        """Turn "5 epochs", "500 steps" or "10%" into steps; raises a UserError that names `key` if it is neither."""
        return parse_length(text, key, self.total, self.epoch)

    def after_warmup(self, step: float) -> float:
        """Return how far the step is on the way from the warmup's end to the run's end, 0 to 1."""
        return min(1.0, (step - self.warmup) / max(1, self.total - self.warmup))


# By `schedule.name`; `schedule` adds to it.
SCHEDULES: dict[str, Callable[[ScheduleConfig, Span], Schedule]] = {}
S = TypeVar("S", bound=Callable[[ScheduleConfig, Span], Schedule])


def schedule(name: str) -> Callable[[S], S]:
    """Register a schedule, so that `schedule.name` can name it.

    The function takes the configuration and the `Span`, and returns a pure function from the optimizer step, counted
    from 0, to the share of the highest learning rate. Most begin with `warmed_up`.
    """

    def register(function: S) -> S:
        SCHEDULES[name] = function
        return function

    return register


@schedule("cosine")
def cosine(config: ScheduleConfig, span: Span) -> Schedule:
    """Half a cosine from 1 to `final_fraction` (arXiv:1608.03983)."""
    return warmed_up(span, lambda step: _cosine(1, config.final_fraction, span.after_warmup(step)))


@schedule("one_cycle")
def one_cycle(config: ScheduleConfig, span: Span) -> Schedule:
    """Up along half a cosine for the warmup, then down along another (arXiv:1708.07120)."""
    return lambda step: (
        _cosine(0, 1, (step + 1) / span.warmup)
        if step < span.warmup
        else _cosine(1, config.final_fraction, span.after_warmup(step))
    )


@schedule("step")
def step_decay(config: ScheduleConfig, span: Span) -> Schedule:
    """Multiply by `step_factor` every `step_length`."""
    length = span.length(config.step_length, "schedule.step_length")
    if length < 1:
        raise UserError(f"schedule.step_length={config.step_length}: it must be more than 0")
    return warmed_up(span, lambda step: config.step_factor ** (step // length))


@schedule("constant")
def constant(config: ScheduleConfig, span: Span) -> Schedule:
    """Stay at the highest learning rate."""
    return warmed_up(span, lambda step: 1.0)


def warmed_up(span: Span, after: Schedule) -> Schedule:
    """Return the schedule with a linear rise over the warmup before it."""
    return lambda step: (step + 1) / span.warmup if step < span.warmup else after(step)


def make_schedule(config: ScheduleConfig, total_steps: int, steps_per_epoch: int) -> Schedule:
    """Return the schedule of the configuration over `total_steps`.

    Raises:
        UserError: a length cannot be parsed.
    """
    warmup = parse_length(config.warmup, "schedule.warmup", total_steps, steps_per_epoch)
    return SCHEDULES[config.name](config, Span(total_steps, steps_per_epoch, min(warmup, total_steps)))


def parse_length(text: str, key: str, total_steps: int, steps_per_epoch: int) -> int:
    """Turn "5 epochs", "500 steps" or "10%" into a number of steps; what is above 0 is one step at least.

    Raises:
        UserError: the text is not a length; names `key`.
    """
    match = LENGTH.fullmatch(text)
    if match is None:
        raise UserError(f'{key}={text}: a length is written "5 epochs", "500 steps" or "10%"')
    number, unit = float(match["number"]), match["unit"]
    scale = {"e": steps_per_epoch, "s": 1, "%": total_steps / 100}[unit[0]]
    return max(1, round(number * scale)) if number > 0 else 0


def _cosine(start: float, end: float, progress: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2
