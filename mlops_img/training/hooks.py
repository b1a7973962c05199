"""What a run does around the steps of the loop: metrics, validation, checkpoints, stopping."""

from __future__ import annotations

import logging
import math

from torch import Tensor

from mlops_img.core.interrupts import StopRequest
from mlops_img.data.skipped import SkippedImages
from mlops_img.evaluation.metrics import METRICS, summarize
from mlops_img.evaluation.predictions import Predictions
from mlops_img.runs.checkpoint import Checkpoints, TrainState
from mlops_img.training.context import RunContext
from mlops_img.training.progress import Progress, Speed, memory_gb
from mlops_img.training.setup import Setup

log = logging.getLogger(__name__)


class RunHooks:
    """The hooks of one run (the loop's `LoopHooks`)."""

    def __init__(self, run: RunContext, checkpoints: Checkpoints, stop: StopRequest) -> None:
        self.run = run
        self.setup = run.setup
        self.checkpoints = checkpoints
        self.stop = stop
        self.progress = Progress(run.setup.state.step, run.setup.intervals.total)

    def log(self, state: TrainState, loss: Tensor, speed: Speed) -> None:
        """Record the metrics of the steps since the last line."""
        value = loss.item()
        line = {
            "loss": value,
            "lr": self.setup.recipe.lr * self.setup.recipe.schedule(state.step - 1),
            "images_per_second": speed.images_per_second,
            "data_wait_seconds": speed.waited,
            "memory_gb": memory_gb(self.setup.recipe.precision.device),
        }
        self._record("train", state, line)
        self.progress.show(state.step, value, speed.images_per_second)

    def end_epoch(self, state: TrainState, train_loss: float) -> bool:
        """Validate, save the weights if they are to be kept, and return whether patience has run out."""
        predictions = validate(state, self.setup)
        metrics = summarize(predictions)
        self._record("val", state, {**metrics, "train_loss": train_loss})
        name = self.setup.config.optimized_metric.removeprefix("val.")
        value = metrics[name]
        epoch = epoch_of(state, self.setup)
        improved = math.isfinite(value) and (
            state.best is None or (value > state.best if METRICS[name].higher_is_better else value < state.best)
        )
        # A small validation split often gives equal values; the later weights had the lower learning rate.
        better = improved or value == state.best
        if improved:
            state.best, state.improved_epoch = value, epoch
        if better or (self.setup.config.train.select == "last" and math.isfinite(metrics["loss"])):
            state.best_epoch = epoch
            self.checkpoints.save_best(state, metrics)
        log.info(
            "epoch %d/%d  train loss %.4f  val loss %.4f  val top-1 %.4f%s",
            epoch,
            math.ceil(self.setup.intervals.total / self.setup.intervals.epoch),
            train_loss,
            metrics["loss"],
            metrics["top1"],
            "  (best so far)" if better else "",
        )
        share_decisions(state, self.setup)
        return out_of_patience(state, self.setup)

    def save(self, state: TrainState) -> None:
        """Write a checkpoint, and the list of the images skipped so far."""
        for reasons in self.setup.world.gather(self.run.skipped.as_dict()):
            self.run.skipped.merge(reasons)
        if self.run.skipped:
            self.run.skipped.write(self.run.folder.skipped)
        state.seconds = self.run.clock.seconds
        self.checkpoints.save(state)

    def stop_requested(self) -> bool:
        """Return whether a signal asked the run to stop."""
        return self.stop.requested

    def _record(self, split: str, state: TrainState, metrics: dict[str, float]) -> None:
        epoch = epoch_of(state, self.setup)
        self.run.folder.record({"step": state.step, "epoch": epoch, "split": split, **metrics})
        self.run.tracker.log(
            {"epoch": epoch, **{f"{split}/{name}": value for name, value in metrics.items()}}, state.step
        )


class FollowingHooks:
    """The hooks of a rank other than 0, which writes nothing and decides nothing."""

    def __init__(self, setup: Setup, skipped: SkippedImages, stop: StopRequest) -> None:
        self.setup = setup
        self.skipped = skipped
        self.stop = stop

    def log(self, state: TrainState, loss: Tensor, speed: Speed) -> None:
        """Do nothing."""

    def end_epoch(self, state: TrainState, train_loss: float) -> bool:
        """Validate this rank's batches, and return what rank 0 decided on all of them."""
        validate(state, self.setup)
        share_decisions(state, self.setup)
        return out_of_patience(state, self.setup)

    def save(self, state: TrainState) -> None:
        """Send the images skipped so far to rank 0."""
        self.setup.world.gather(self.skipped.as_dict())

    def stop_requested(self) -> bool:
        """Return whether a signal asked the run to stop."""
        return self.stop.requested


def validate(state: TrainState, setup: Setup) -> Predictions:
    """Return the predictions for the validation images; on ranks other than 0, for this rank's batches."""
    # Batch norm's running statistics are those of rank 0, which the checkpoints hold.
    setup.world.copy_from_first(state.evaluated_model.buffers())
    predictions, _ = setup.evaluator.predict(state.evaluated_model, setup.dataset.val)
    return predictions


def share_decisions(state: TrainState, setup: Setup) -> None:
    """Take over what rank 0 decided after a validation."""
    decided = setup.world.broadcast((state.best, state.best_epoch, state.improved_epoch))
    state.best, state.best_epoch, state.improved_epoch = decided


def epoch_of(state: TrainState, setup: Setup) -> int:
    """Return the epoch, counted from 1, that the last step belongs to."""
    return math.ceil(state.step / setup.intervals.epoch)


def out_of_patience(state: TrainState, setup: Setup) -> bool:
    """Return whether the optimized metric has not improved for as long as early stopping allows."""
    patience = setup.config.train.early_stopping_patience
    finished = state.step // setup.intervals.epoch  # an epoch that was cut off by a stop does not count
    return patience is not None and finished - state.improved_epoch >= patience
