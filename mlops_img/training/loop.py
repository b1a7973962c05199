"""The training loop.

Read `fit` for the run and `train_step` for one update. Both know nothing of files, configuration or
tracking: what happens around the steps is handed in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from mlops_img.core.memory import freed_memory_kept
from mlops_img.core.precision import Precision
from mlops_img.core.seeding import seed_step
from mlops_img.data.augment import BatchAugment
from mlops_img.data.batch import Batch
from mlops_img.data.division import Division
from mlops_img.data.prefetch import on_device
from mlops_img.errors import StoppedOnRequest
from mlops_img.preprocessing.transforms import Preprocessing
from mlops_img.runs.checkpoint import TrainState
from mlops_img.training.distill import Distillation
from mlops_img.training.optim import set_learning_rate
from mlops_img.training.progress import Speed
from mlops_img.training.ranks import DataParallel, SingleProcess
from mlops_img.training.schedule import Schedule


@dataclass(frozen=True)
class Recipe:
    """What one step does."""

    loss: nn.Module
    preprocessing: Preprocessing
    augment: BatchAugment
    precision: Precision
    schedule: Schedule
    lr: float
    seed: int
    accumulate: int = 1
    grad_clip: float | None = 1.0
    channels_last: bool = True
    distillation: Distillation | None = None
    division: Division = field(default_factory=Division)
    may_skip_weights: bool = False  # in a forward pass of the model

    def take_part(self, model: nn.Module, stop_requested: Callable[[], bool]) -> SingleProcess:
        """Return this process's part in the steps that train the model."""
        given = (model, self.division, self.accumulate, self.precision.device, stop_requested)
        if self.division.world.alone:
            return SingleProcess(*given)
        return DataParallel(*given, may_skip_weights=self.may_skip_weights)


@dataclass
class Intervals:
    """When, in optimizer steps, something else happens between two steps; 0 is never.

    `total` may change while a run is under way (train.max_minutes).
    """

    total: int
    epoch: int
    log: int = 20
    checkpoint: int = 0


class LoopHooks(Protocol):
    """What happens around the steps."""

    def log(self, state: TrainState, loss: Tensor, speed: Speed) -> None:
        """Report progress; reading `loss` (float32, ()) waits for the device."""

    def end_epoch(self, state: TrainState, train_loss: float) -> bool:
        """Validate and keep the best weights; True ends the training early."""

    def save(self, state: TrainState) -> None:
        """Write a checkpoint."""

    def stop_requested(self) -> bool:
        """Return whether the run was asked to stop."""


class NonFiniteLossError(Exception):
    """The loss is infinite or not a number.

    The weights are those from before this step; only batch norm's running statistics have seen its images.
    """

    def __init__(self, step: int, rows: list[int]) -> None:
        super().__init__(f"the loss of step {step} is not finite")
        self.step = step
        self.rows = rows


@freed_memory_kept()
def fit(state: TrainState, batches: Iterable[Batch], recipe: Recipe, intervals: Intervals, hooks: LoopHooks) -> None:
    """Train `state` from its step on to step `intervals.total`.

    Args:
        state: what is trained; changed in place.
        batches: the forward passes from step `state.step` on, `recipe.accumulate` for each step.
        recipe: what a step does.
        intervals: when to log, save and validate.
        hooks: how to.

    Raises:
        NonFiniteLossError: a loss was not finite; the optimizer did not use it.
        StoppedOnRequest: a stop was requested; a checkpoint was saved.
    """
    speed = Speed(recipe.division.world.size)
    stream = speed.timed(on_device(batches, recipe.precision.device))
    ranks = recipe.take_part(state.model, hooks.stop_requested)
    while state.step < intervals.total:
        loss = train_step(state, stream, recipe, ranks)
        state.epoch_loss += loss
        state.step += 1

        finished = state.step == intervals.total
        epoch_ends = _due(state.step, intervals.epoch) or finished
        if _due(state.step, intervals.log) or epoch_ends:
            hooks.log(state, loss, speed)
        enough = False
        if epoch_ends:
            steps = (state.step - 1) % intervals.epoch + 1
            train_loss = state.epoch_loss.item() / steps
            if _due(state.step, intervals.epoch):
                state.epoch_loss.zero_()  # else the run may be extended, and the epoch with it
            enough = hooks.end_epoch(state, train_loss)
        stopping = ranks.stop_requested() and not finished
        if epoch_ends or stopping or _due(state.step, intervals.checkpoint):
            hooks.save(state)
        if enough:
            return
        if stopping:
            raise StoppedOnRequest
        if _due(state.step, intervals.log) or epoch_ends:
            speed.restart()


def train_step(state: TrainState, stream: Iterator[Batch], recipe: Recipe, ranks: SingleProcess) -> Tensor:
    """Do one optimizer step and return its loss, float32 (), without waiting for the device to finish it.

    The batches of `stream` are on the device.
    """
    set_learning_rate(state.optimizer, recipe.lr * recipe.schedule(state.step))
    for part in ranks.parts:
        batch = next(stream, None)
        if batch is None:
            raise RuntimeError(f"the batches ended before step {state.step + 1}")
        seed_step(recipe.seed, state.step, *ranks.division.position(part))
        with ranks.summing(part):
            loss = _part_loss(batch, recipe, ranks) / recipe.accumulate
            state.scaler.scale(ranks.note(part, loss, batch.rows)).backward()

    if not ranks.is_finite():
        raise NonFiniteLossError(state.step + 1, ranks.rows)
    if recipe.grad_clip is not None:
        state.scaler.unscale_(state.optimizer)  # the norm is that of the true gradient
        torch.nn.utils.clip_grad_norm_(state.model.parameters(), recipe.grad_clip)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    state.optimizer.zero_grad(set_to_none=True)
    if state.ema is not None:
        state.ema.update(state.model, step=state.step + 1)
    return ranks.step_loss()


def _part_loss(batch: Batch, recipe: Recipe, ranks: SingleProcess) -> Tensor:
    """Return the loss of one forward pass, float32 (); where ranks divide it, this rank's summand."""
    precision = recipe.precision
    if not len(batch.labels):
        return ranks.idle_loss(recipe.loss, recipe.preprocessing, precision)
    images, targets = recipe.augment(recipe.preprocessing.normalize(batch.images), batch.labels)
    if not recipe.channels_last:
        images = images.contiguous()
    share = ranks.share(recipe.loss, targets)
    with precision.autocast():
        logits = ranks.model(images)
    loss: Tensor = recipe.loss(logits, targets)
    if share is not None:
        loss = loss * share.labels
    if recipe.distillation is not None:
        part = share.images if share is not None else 1.0
        loss = recipe.distillation.mix(loss, logits, images, batch.rows, precision, share=part)
    return loss


def _due(step: int, interval: int) -> bool:
    return interval > 0 and step % interval == 0
