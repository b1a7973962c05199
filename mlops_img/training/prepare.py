"""The set-up of a run, new or resumed, on every rank."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from mlops_img.config.train import Config
from mlops_img.core.distributed import World
from mlops_img.errors import UserError
from mlops_img.runs.checkpoint import newest_valid, step_checkpoints
from mlops_img.runs.folder import RunFolder
from mlops_img.runs.resume import as_plain, check_unchanged
from mlops_img.training.automatic import set_up_run
from mlops_img.training.setup import Setup

log = logging.getLogger(__name__)


def prepare(config: Config, folder: RunFolder, world: World) -> tuple[Setup, bool]:
    """Set up a run, and put it back to where its newest checkpoint was saved if it is to be resumed.

    Args:
        config: validated; what is `auto` in it becomes a number.
        folder: of the run; only rank 0 reads and writes it.
        world: the ranks, all of which call this.

    Returns:
        The run, and whether there was a checkpoint to resume.

    Raises:
        UserError: the run cannot be set up or resumed, or must not be.
    """
    checkpoint = world.broadcast(_checkpoint_to_resume(config, folder) if world.leads else None)
    setup = set_up_run(config, folder, checkpoint, world)
    if checkpoint is not None:
        _restore(setup, checkpoint)
    return setup, checkpoint is not None


def _checkpoint_to_resume(config: Config, folder: RunFolder) -> dict[str, Any] | None:
    """Return the newest valid checkpoint if the run is to be resumed and there is one.

    Raises:
        UserError: the folder holds a run that is not to be resumed.
    """
    if config.resume not in (None, "auto") and Path(config.resume).resolve() != folder.path.resolve():
        raise UserError(f"resume={config.resume}: give it on the command line of a single run, or use resume=auto")
    if not config.resume and step_checkpoints(folder.checkpoints):
        raise UserError(
            f"{folder.path} holds a run already. Resume it with resume=auto, or choose another hydra.run.dir=..."
        )
    checkpoint = newest_valid(folder.checkpoints) if config.resume else None
    if config.resume and checkpoint is None:
        log.warning(
            "resume=%s: there is no checkpoint to resume in %s, so the training starts from its first step",
            config.resume,
            folder.path if folder.was_begun else Path(config.runs_dir) / "latest",
        )
    return checkpoint


def _restore(setup: Setup, checkpoint: dict[str, Any]) -> None:
    """Put the run back to where it was when it saved this checkpoint."""
    changes = check_unchanged(as_plain(setup.config), setup.dataset.fingerprint, checkpoint)
    setup.state.load_dict(checkpoint)
    if setup.pace is not None and setup.state.marks:
        setup.pace.restore(setup.state.marks)
        setup.intervals.total = setup.pace.total
    log.info("resuming after step %d of %d", setup.state.step, setup.intervals.total)
    for change in changes:
        log.warning("changed since: %s", change)
