"""Finding a learning rate: a short training whose rate grows exponentially (arXiv:1506.01186), for optim.lr=auto."""

from __future__ import annotations

import copy
import logging
import math
from dataclasses import asdict, dataclass, replace

import torch

from mlops_img.core.files import write_json
from mlops_img.data.prefetch import on_device
from mlops_img.errors import UserError
from mlops_img.runs.checkpoint import TrainState
from mlops_img.runs.folder import RunFolder
from mlops_img.training.loop import NonFiniteLossError, train_step
from mlops_img.training.optim import make_optimizer
from mlops_img.training.setup import Setup, checked_training_batches

LOWEST, HIGHEST = 1e-6, 10.0
STEPS = 100
FEWEST_STEPS = 30  # below, the curve is too coarse to read
SMOOTHING = 0.9  # of the losses, as a debiased moving average
DIVERGED = 3.0  # the search ends where the loss is so many times its lowest
BELOW_LOWEST = 10.0  # the rate is chosen so many times below the one of the lowest loss

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LearningRateRange:
    """What a range test found.

    Attributes:
        rates: tried, ascending.
        losses: smoothed, one for each rate.
        chosen: the learning rate to train with.
    """

    rates: list[float]
    losses: list[float]
    chosen: float


def find_learning_rate(setup: Setup, folder: RunFolder) -> Setup:
    """Return the setup with a learning rate that a range test chose; its curve is written to lr_range.json.

    The test trains a copy of the model, so the run itself starts from the weights that it would start from without.

    Raises:
        UserError: the run is too short for the test, or the loss does not fall at any rate.
    """
    steps = min(STEPS, setup.intervals.total)
    if steps < FEWEST_STEPS:
        raise UserError(
            f"optim.lr=auto: the search takes {FEWEST_STEPS} steps or more, and the run has {steps}. Set optim.lr to a "
            "number, or train longer or with a smaller train.batch_size"
        )
    found = choose(*_losses_at_rising_rates(setup, steps))
    if setup.recipe.division.world.leads:
        write_json(folder.lr_range, asdict(found))
    log.info("optim.lr=auto: %.2g, from a range test of %d steps", found.chosen, len(found.rates))
    setup.config.optim.lr = found.chosen
    return replace(setup, recipe=replace(setup.recipe, lr=found.chosen))


def rate_at(step: int, steps: int) -> float:
    """Return the rate of a step, exponentially from `LOWEST` to `HIGHEST`."""
    return LOWEST * math.pow(HIGHEST / LOWEST, step / (steps - 1))


def choose(rates: list[float], losses: list[float]) -> LearningRateRange:
    """Choose a rate: a tenth of the one at which the smoothed loss is lowest, rounded to two digits.

    Raises:
        UserError: the loss is lowest at the first rate, so no rate helps.
    """
    smoothed, average = [], 0.0
    for step, loss in enumerate(losses, 1):
        average = SMOOTHING * average + (1 - SMOOTHING) * loss
        smoothed.append(average / (1 - SMOOTHING**step))
    place = min(range(len(smoothed)), key=smoothed.__getitem__)
    if place == 0:
        raise UserError("optim.lr=auto: the loss falls at no learning rate. Set optim.lr to a number")
    return LearningRateRange(rates, smoothed, float(f"{rates[place] / BELOW_LOWEST:.1e}"))


def _losses_at_rising_rates(setup: Setup, steps: int) -> tuple[list[float], list[float]]:
    """Train a copy of the model until its loss diverges; returns the rates and the losses."""
    model = copy.deepcopy(setup.state.model)
    device = setup.recipe.precision.device
    state = TrainState(
        model=model,
        optimizer=make_optimizer(setup.config.optim, model),
        scaler=setup.recipe.precision.scaler(),
        ema=None,
        epoch_loss=torch.zeros((), device=device),
    )
    recipe = replace(setup.recipe, lr=1.0, schedule=lambda step: rate_at(int(step), steps))
    stream = on_device(checked_training_batches(setup), device)
    ranks = recipe.take_part(model, lambda: False)
    rates: list[float] = []
    losses: list[float] = []
    while state.step < steps:
        try:
            loss = train_step(state, stream, recipe, ranks).item()
        except NonFiniteLossError:
            break
        rates.append(rate_at(state.step, steps))
        losses.append(loss)
        if loss > DIVERGED * min(losses):
            break
        state.step += 1
    return rates, losses
