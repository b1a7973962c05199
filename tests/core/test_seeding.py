"""Random numbers are determined by the seed, the purpose and the position."""

from __future__ import annotations

import random

import torch

from mlops_img.core.seeding import Purpose, derive, seed_cpu, seed_step


def test_numbers_are_the_same_on_every_machine() -> None:
    # Recorded values: if they change, earlier runs cannot be reproduced.
    assert derive(0, Purpose.SHUFFLE, 0) == 8514611595815388268
    assert derive(7, Purpose.AUGMENT, 3, 1234) == 1930536709478972535


def test_seeds_purposes_and_positions_have_different_numbers() -> None:
    numbers = [
        derive(seed, purpose, first, second)
        for seed in (0, 1, 2**32 - 1)
        for purpose in Purpose
        for first in range(12)
        for second in range(12)
    ]
    assert len(set(numbers)) == len(numbers)
    assert all(0 <= number < 2**63 for number in numbers)


def test_numbers_of_a_step_do_not_depend_on_earlier_steps() -> None:
    def drawn(step: int, part: int) -> tuple[float, float]:
        seed_step(5, step, part)
        return torch.rand(()).item(), random.random()

    first = drawn(3, 0)
    others = [drawn(3, 1), drawn(4, 0), drawn(0, 0)]
    torch.rand(100)
    assert drawn(3, 0) == first
    assert len({first, *others}) == 4


def test_seeding_in_fork_rng_restores_the_generator() -> None:
    torch.manual_seed(1)
    wanted = torch.rand(3)
    torch.manual_seed(1)
    with torch.random.fork_rng(devices=[]):
        seed_cpu(0, Purpose.AUGMENT, 1, 2)
        inside = torch.rand(3)
        seed_cpu(0, Purpose.AUGMENT, 1, 2)
        assert torch.equal(torch.rand(3), inside)
    assert torch.equal(torch.rand(3), wanted)
