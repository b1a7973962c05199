"""Fine-tuning after pruning, with the normal training loop."""

from __future__ import annotations

import logging
from copy import deepcopy

from torch import Tensor, nn

from mlops_img.config.export import PruneConfig
from mlops_img.evaluation.trained import FinishedRun
from mlops_img.runs.checkpoint import TrainState
from mlops_img.training.loop import fit
from mlops_img.training.progress import Speed
from mlops_img.training.setup import checked_training_batches, set_up

log = logging.getLogger(__name__)


def fine_tune(run: FinishedRun, model: nn.Module, options: PruneConfig) -> nn.Module:
    """Train a model on as the run was trained, for a few epochs at a low learning rate; returns it on the CPU.

    Raises:
        UserError: as in a training.
    """
    config = deepcopy(run.config)
    config.train.epochs, config.train.max_steps = options.epochs, None
    config.train.precision, config.train.ema_decay = "auto", None
    config.optim.lr *= options.lr_fraction
    teacher = None
    if options.distill_weight > 0:
        teacher, config.distill.weight = deepcopy(run.trained.model), options.distill_weight
    setup = set_up(config, model=model.train(), classes=run.trained.classes, teacher=teacher)
    fit(setup.state, checked_training_batches(setup), setup.recipe, setup.intervals, PrintEpochs())
    return setup.state.model.cpu().eval()


class PrintEpochs:
    """Logs each epoch and writes nothing (the loop's `LoopHooks`)."""

    def log(self, state: TrainState, loss: Tensor, speed: Speed) -> None:
        """Say nothing within an epoch."""

    def end_epoch(self, state: TrainState, train_loss: float) -> bool:
        """Say how the epoch went."""
        log.info("fine-tuning: step %d, train loss %.4f", state.step, train_loss)
        return False

    def save(self, state: TrainState) -> None:
        """Write nothing."""

    def stop_requested(self) -> bool:
        """Ctrl-C ends an export at once: there is nothing to go on from."""
        return False
