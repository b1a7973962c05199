"""Settings that are found before a run starts: train.batch_size=auto and optim.lr=auto."""

from __future__ import annotations

from typing import Any

from mlops_img.config.train import Config
from mlops_img.core.distributed import World
from mlops_img.runs.folder import RunFolder
from mlops_img.training.batch_search import SMALLEST, find_batch_size
from mlops_img.training.lr_range import find_learning_rate
from mlops_img.training.setup import Setup, set_up

LR_BEFORE_SEARCH = 1e-3  # builds the optimizer of a run whose rate is not known yet


def set_up_run(
    config: Config, folder: RunFolder, checkpoint: dict[str, Any] | None, world: World | None = None
) -> Setup:
    """Set up a run; what is `auto` in its configuration becomes the number that was found.

    Args:
        config: validated; changed in place.
        folder: of the run; the search for a learning rate leaves its curve there.
        checkpoint: to resume from, whose numbers are kept; None for a new run.
        world: the ranks that train it; None: this process alone.

    Raises:
        UserError: as `set_up`, or nothing was found.
    """
    search_rate, search_batch = config.optim.lr == "auto", config.train.batch_size == "auto"
    if checkpoint is not None:
        before = checkpoint["config"]
        if search_rate:
            config.optim.lr = before["optim"]["lr"]
        if search_batch:
            config.train.batch_size = before["train"]["batch_size"]
        return set_up(config, first_weights=False, classes=checkpoint["classes"], world=world)
    if search_rate:
        config.optim.lr = LR_BEFORE_SEARCH
    if search_batch:
        config.train.batch_size = SMALLEST
        config.train.batch_size = find_batch_size(set_up(config))
    setup = set_up(config, world=world)
    return find_learning_rate(setup, folder) if search_rate and setup.intervals.total > 0 else setup
