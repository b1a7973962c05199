"""Hooks that fit a run into `train.max_minutes`."""

from __future__ import annotations

from mlops_img.core.interrupts import StopRequest
from mlops_img.runs.checkpoint import Checkpoints, TrainState
from mlops_img.training.context import RunContext
from mlops_img.training.hooks import RunHooks
from mlops_img.training.pace import Pace, Stopwatch

TOLERANCE = 0.02  # of the steps that are left: smaller changes of the speed do not change the plan


class PacedHooks(RunHooks):
    """Hooks that also fit the run into `train.max_minutes`, by what each part of it has taken so far."""

    def __init__(self, run: RunContext, checkpoints: Checkpoints, stop: StopRequest, pace: Pace) -> None:
        super().__init__(run, checkpoints, stop)
        self.pace = pace
        self.seconds = 60 * (run.setup.config.train.max_minutes or 0.0)
        self.watch = Stopwatch()
        self.since = run.clock.seconds
        self.aside = 0.0  # seconds since then that were no part of a step

    def end_epoch(self, state: TrainState, train_loss: float) -> bool:
        """Validate as `RunHooks` does, and note how long it took."""
        start = self.run.clock.seconds
        enough = super().end_epoch(state, train_loss)
        self.watch.validation = self.run.clock.seconds - start
        self.aside += self.watch.validation
        return enough

    def save(self, state: TrainState) -> None:
        """Write a checkpoint, with what was decided on the length of the run."""
        start = self.run.clock.seconds
        state.marks = [list(mark) for mark in self.pace.marks]
        super().save(state)
        self.aside += self.run.clock.seconds - start

    def stop_requested(self) -> bool:
        """Return whether a signal asked the run to stop; called after each step, so that its length is set here."""
        now = self.run.clock.seconds
        self.watch.add_step(now - self.since - self.aside)
        self.since, self.aside = now, 0.0
        if self.watch.step > 0:
            self._fit_into_time(self.seconds - now)
        return super().stop_requested()

    def _fit_into_time(self, seconds_left: float) -> None:
        setup, step = self.setup, self.setup.state.step
        if step >= setup.intervals.total:
            return  # it ends here
        splits = setup.dataset.splits
        sizes = len(splits["val"]), len(splits.get("test", ()))
        batch = setup.config.train.batch_size * setup.config.train.accumulate
        slowdown = setup.resolution.slowdown(setup.progress(step)) if setup.resolution else 1.0
        steps = self.watch.steps_within(seconds_left, setup.intervals.epoch, step, sizes, batch, slowdown)
        planned = setup.intervals.total - step
        if abs(steps - planned) > TOLERANCE * planned:
            self.pace.stretch(step, steps)
            setup.intervals.total = self.progress.total = self.progress.bar.total = self.pace.total
