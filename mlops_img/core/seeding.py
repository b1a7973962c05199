"""Randomness as a function: every random choice follows from the seed and where it is made.

Nothing random is kept in a state that a resumed run would have to restore, or that would depend on how
many workers read the data.
"""

from __future__ import annotations

import random
from enum import IntEnum

import numpy as np
import torch


class Purpose(IntEnum):
    """Keeps the random numbers of one use apart from those of another at the same place."""

    WEIGHTS = 0
    SHUFFLE = 1
    AUGMENT = 2
    STEP = 3
    CALIBRATION = 4


def derive(seed: int, purpose: Purpose, *place: int) -> int:
    """Return a 63-bit number that follows from the seed, the purpose and the place (epoch, index, ...)."""
    words = np.random.SeedSequence([seed, purpose, *place]).generate_state(2, np.uint32)
    return (int(words[0]) << 31) ^ int(words[1])


def seed_step(seed: int, step: int, part: int = 0) -> None:
    """Seed what runs on the device in this step: dropout, stochastic depth, mixup, random erasing.

    Args:
        seed: the run's seed.
        step: the optimizer step.
        part: which of the forward passes that the step accumulates.
    """
    number = derive(seed, Purpose.STEP, step, part)
    torch.manual_seed(number)  # the CPU's generator and every CUDA device's
    random.seed(number)  # for a model of the user's own


def seed_cpu(seed: int, purpose: Purpose, *place: int) -> None:
    """Seed PyTorch's CPU generator alone; wrap in `torch.random.fork_rng(devices=[])` to leave no trace."""
    torch.default_generator.manual_seed(derive(seed, purpose, *place))
