"""What the ranks other than 0 do: they train and validate, and leave files, metrics and decisions to rank 0."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from mlops_img.config.train import Config
from mlops_img.core.distributed import World
from mlops_img.core.interrupts import StopRequest
from mlops_img.core.torchrun import LostPeerError, is_lost_peer
from mlops_img.data.skipped import SkippedImages
from mlops_img.runs.checkpoint import TrainState
from mlops_img.runs.folder import RunFolder
from mlops_img.training.hooks import FollowingHooks, out_of_patience
from mlops_img.training.loop import NonFiniteLossError, fit
from mlops_img.training.prepare import prepare
from mlops_img.training.setup import checked_training_batches


def follow(config: Config, folder: RunFolder, world: World) -> None:
    """Train the run that rank 0 calls `mlops_img.training.run.run` for.

    Raises:
        UserError: of this rank.
        LostPeerError: rank 0 says why the run ends.
        StoppedOnRequest: a rank was asked to stop; rank 0 has saved a checkpoint.
    """
    setup, _ = prepare(config, folder, world)
    state, skipped = setup.state, SkippedImages()
    if state.step > 0 and out_of_patience(state, setup):
        return
    batches = checked_training_batches(setup, skipped)
    with StopRequest("rank 0 saves at the end of this step") as stop, named_step(state):
        try:
            fit(state, batches, setup.recipe, setup.intervals, FollowingHooks(setup, skipped, stop))
        except NonFiniteLossError as error:
            raise LostPeerError(str(error)) from None


@contextmanager
def named_step(state: TrainState) -> Iterator[None]:
    """Note the step in the error of a rank that is lost within the block."""
    try:
        yield
    except RuntimeError as error:
        if is_lost_peer(error):
            error.add_note(f"step {state.step + 1}: ")
        raise
