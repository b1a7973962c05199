"""A training that fits into a number of minutes: its length follows from the speed that is measured."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

from mlops_img.training.schedule import Schedule

SMOOTHING = 0.1  # of a step's seconds, as an exponential moving average
FIRST_STEPS = 2  # not measured: memory is allocated and kernels are chosen in them
REPORT_SECONDS = 5.0  # for the figures and the page


class Mark(NamedTuple):
    """From this step on, `progress` (0 to 1) grows evenly and is 1 at step `total`."""

    step: int
    progress: float
    total: int


@dataclass
class Pace:
    """How far a run is on its schedule, and at which step it ends.

    The schedule is stretched or shortened from the current step on, whenever the speed says that the run would end
    too late or too early. Where it was is never changed, so the learning rate has no jumps.

    Attributes:
        nominal: the steps for which the schedule was made; also the most that are done.
        marks: what was decided so far; all that a resumed run needs.
    """

    nominal: int
    marks: list[Mark] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.marks:
            self.marks.append(Mark(0, 0.0, self.nominal))

    @property
    def total(self) -> int:
        """The step at which the run ends, as far as is known now."""
        return self.marks[-1].total

    def progress(self, step: float) -> float:
        """Return the share of the schedule that is done before this step, 0 to 1."""
        mark = next(mark for mark in reversed(self.marks) if mark.step <= step)
        left = mark.total - mark.step
        return 1.0 if left <= 0 else mark.progress + (1 - mark.progress) * min(1.0, (step - mark.step) / left)

    def stretch(self, step: int, steps_left: int) -> None:
        """Let the run end `steps_left` steps after `step`, at least 1, at most at `nominal`."""
        total = min(self.nominal, step + max(1, steps_left))
        if total == self.total:
            return
        mark = Mark(step, self.progress(step), total)
        self.marks = [earlier for earlier in self.marks if earlier.step < step] + [mark]

    def restore(self, marks: list[list[float]]) -> None:
        """Go on from the marks of a checkpoint."""
        self.marks = [Mark(int(step), progress, int(total)) for step, progress, total in marks]

    def schedule(self, nominal: Schedule) -> Schedule:
        """Return a schedule made for `nominal` steps as one that ends with the run."""
        return lambda step: nominal(self.progress(step) * self.nominal)


@dataclass
class Stopwatch:
    """Seconds of each part of a training, measured while it runs.

    Attributes:
        step: of an optimizer step, a moving average; 0 before the first one.
        validation: of the latest validation with its checkpoint; None before the first one.
    """

    step: float = 0.0
    validation: float | None = None
    steps: int = 0

    def add_step(self, seconds: float) -> None:
        """Note the seconds of a step."""
        self.steps += 1
        if self.steps > FIRST_STEPS:
            self.step = seconds if self.step == 0 else self.step + SMOOTHING * (seconds - self.step)

    def steps_within(
        self,
        seconds: float,
        epoch: int,
        done: int,
        split_sizes: tuple[int, int],
        batch: int,
        slowdown: float = 1.0,
    ) -> int:
        """Return how many further steps fit, with the validations after them and the evaluation at the end.

        Args:
            seconds: that are left.
            epoch: steps of an epoch; each ends with a validation.
            done: steps so far.
            split_sizes: images of validation and test.
            batch: images of a step.
            slowdown: how much longer the further steps take than the ones before.
        """
        val, test = split_sizes
        step = self.step * slowdown
        # Before the first validation: a forward pass takes about a third of a step.
        validation = self.validation if self.validation is not None else self.step * val / batch / 3
        final = validation * (val + test) / max(1, val) + REPORT_SECONDS
        left = seconds - final
        fits = math.floor(left / step) if step > 0 else 0
        while fits > 0 and fits * step + self._validations(done, fits, epoch) * validation > left:
            fits -= 1
        return max(0, fits)

    @staticmethod
    def _validations(done: int, further: int, epoch: int) -> int:
        return math.ceil((done + further) / epoch) - done // epoch
