"""Stateless seeding: every random number is a function of the seed, its purpose and its position.

No state of a random number generator has to be restored when a run is resumed, or depends on the number of workers.
"""

from __future__ import annotations

import random
from enum import IntEnum

import numpy as np
import torch


class Purpose(IntEnum):
    """The use of random numbers; different uses at the same position get independent numbers."""

    WEIGHTS = 0
    SHUFFLE = 1
    AUGMENT = 2
    STEP = 3
    CALIBRATION = 4
    SAMPLE = 5
    MIRROR = 6


def derive(seed: int, purpose: Purpose, *position: int) -> int:
    """Return a 63-bit number determined by the seed, the purpose and the position (epoch, index, ...)."""
    words = np.random.SeedSequence([seed, purpose, *position]).generate_state(2, np.uint32)
    return (int(words[0]) << 31) ^ int(words[1])


def seed_step(seed: int, step: int, *position: int) -> None:
    """Seed the operations of a step on the device: dropout, stochastic depth, mixup, random erasing.

    Args:
        seed: the seed of the run.
        step: the optimizer step.
        position: index of the forward pass within the step, for gradient accumulation; and the rank, where ranks
            divide a forward pass.
    """
    number = derive(seed, Purpose.STEP, step, *(position or (0,)))
    torch.manual_seed(number)  # the generators of the CPU and of all CUDA devices
    random.seed(number)  # for models of the user


def seed_cpu(seed: int, purpose: Purpose, *position: int) -> None:
    """Seed only PyTorch's CPU generator; use `torch.random.fork_rng(devices=[])` to restore its state afterwards."""
    torch.default_generator.manual_seed(derive(seed, purpose, *position))
