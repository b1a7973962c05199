"""The learning rate as a pure function of the step: nothing to save, nothing to restore."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

from mlops_img.config.train import ScheduleConfig
from mlops_img.errors import UserError

# From the optimiser step, counted from 0, to the share of the highest learning rate.
Schedule = Callable[[int], float]

LENGTH = re.compile(r"\s*(?P<number>\d+(?:\.\d+)?(?:e-?\d+)?)\s*(?P<unit>epochs?|steps?|%)\s*")


def make_schedule(config: ScheduleConfig, total_steps: int, steps_per_epoch: int) -> Schedule:
    """Return the schedule of the configuration over `total_steps`.

    Raises:
        UserError: a length that is not one.
    """
    warmup = parse_length(config.warmup, "schedule.warmup", total_steps, steps_per_epoch)
    warmup = min(warmup, total_steps)
    last = config.final_fraction

    if config.name == "cosine":
        return lambda step: _warm(step, warmup) or _cosine(1, last, (step - warmup) / max(1, total_steps - warmup))
    if config.name == "one_cycle":
        return lambda step: (
            _cosine(0, 1, (step + 1) / warmup)
            if step < warmup
            else _cosine(1, last, (step - warmup) / max(1, total_steps - warmup))
        )
    if config.name == "step":
        length = parse_length(config.step_length, "schedule.step_length", total_steps, steps_per_epoch)
        if length < 1:
            raise UserError(f"schedule.step_length={config.step_length}: it must be more than 0")
        return lambda step: _warm(step, warmup) or config.step_factor ** (step // length)
    return lambda step: _warm(step, warmup) or 1.0


def parse_length(text: str, key: str, total_steps: int, steps_per_epoch: int) -> int:
    """Turn "5 epochs", "500 steps" or "10%" into a number of steps; what is above 0 is one step at least.

    Raises:
        UserError: the text says no length; names `key`.
    """
    match = LENGTH.fullmatch(text)
    if match is None:
        raise UserError(f'{key}={text}: a length is written "5 epochs", "500 steps" or "10%"')
    number, unit = float(match["number"]), match["unit"]
    scale = {"e": steps_per_epoch, "s": 1, "%": total_steps / 100}[unit[0]]
    return max(1, round(number * scale)) if number > 0 else 0


def _warm(step: int, warmup: int) -> float | None:
    """Return the share on the way up, and None once there."""
    return (step + 1) / warmup if step < warmup else None


def _cosine(start: float, end: float, progress: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * min(1.0, progress))) / 2
