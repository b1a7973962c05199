"""What happens around the steps of a run: metrics, validation, checkpoints, the wish to stop."""

from __future__ import annotations

import logging
import math
import resource
import sys
import time

import torch
from torch import Tensor

from mlops_img.core.files import write_json
from mlops_img.evaluation.metrics import metric_of, summarize
from mlops_img.runs.checkpoint import Checkpoints, TrainState
from mlops_img.runs.folder import RunFolder
from mlops_img.runs.tracking import Tracker
from mlops_img.training.interrupts import StopRequest
from mlops_img.training.progress import Progress
from mlops_img.training.setup import Setup
from mlops_img.training.throughput import Speed

log = logging.getLogger(__name__)


class Session:
    """What happens around the steps of one run (the loop's `Around`)."""

    def __init__(
        self,
        setup: Setup,
        folder: RunFolder,
        tracker: Tracker,
        checkpoints: Checkpoints,
        stop: StopRequest,
        bad: dict[str, str],
        start: float,
    ) -> None:
        self.setup = setup
        self.folder = folder
        self.tracker = tracker
        self.checkpoints = checkpoints
        self.stop = stop
        self.bad = bad
        self.start = start
        self.progress = Progress(setup.state.step, setup.every.total)

    def log(self, state: TrainState, loss: Tensor, speed: Speed) -> None:
        """Write a line of metrics for the steps since the last one."""
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
        """Validate, keep the weights if they are to be kept, and say whether patience is at its end."""
        predictions, _ = self.setup.evaluator.predict(state.evaluated_model, self.setup.dataset.val)
        metrics = summarize(predictions)
        self._record("val", state, {**metrics, "train_loss": train_loss})
        name = self.setup.config.optimized_metric
        value = metrics[name.removeprefix("val.")]
        epoch = epoch_of(state, self.setup)
        improved = math.isfinite(value) and (
            state.best is None or (value > state.best if metric_of(name).higher_is_better else value < state.best)
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
            math.ceil(self.setup.every.total / self.setup.every.epoch),
            train_loss,
            metrics["loss"],
            metrics["top1"],
            "  (best so far)" if better else "",
        )
        return out_of_patience(state, self.setup)

    def save(self, state: TrainState) -> None:
        """Write a checkpoint, and the list of the images that were left out so far."""
        if self.bad:
            write_json(self.folder.skipped, self.bad)
        state.seconds = time.perf_counter() - self.start
        self.checkpoints.save(state)

    def stop_requested(self) -> bool:
        """Say whether a signal asked for it."""
        return self.stop.requested

    def _record(self, split: str, state: TrainState, metrics: dict[str, float]) -> None:
        epoch = epoch_of(state, self.setup)
        self.folder.record({"step": state.step, "epoch": epoch, "split": split, **metrics})
        self.tracker.log({"epoch": epoch, **{f"{split}/{name}": value for name, value in metrics.items()}}, state.step)


def epoch_of(state: TrainState, setup: Setup) -> int:
    """Return the epoch, counted from 1, that the last step belongs to."""
    return math.ceil(state.step / setup.every.epoch)


def out_of_patience(state: TrainState, setup: Setup) -> bool:
    """Say whether the optimized metric has stood still for as long as early stopping allows."""
    patience = setup.config.train.early_stopping_patience
    finished = state.step // setup.every.epoch  # one that was cut off by a stop still has its chance
    return patience is not None and finished - state.improved_epoch >= patience


def memory_gb(device: torch.device) -> float:
    """Return the most memory used so far in GB: the device's, or on a CPU the process's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB here
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
