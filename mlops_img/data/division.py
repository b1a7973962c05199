"""How the ranks of a training divide a step: by its forward passes, or by slices of each.

The images of a step do not depend on the number of ranks: they are train.batch_size * train.accumulate.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from mlops_img.core.distributed import World
from mlops_img.data.sampler import BatchIndices, ShuffledBatchSampler
from mlops_img.errors import UserError


@dataclass(frozen=True)
class Division:
    """The share of this rank in each step.

    Attributes:
        world: this rank among the others.
        sliced: each rank takes part in every forward pass, with an equal slice of its images; otherwise it does whole
            forward passes, which see what those of a single process see.
        unequal: slices may be left with different numbers of images (data.on_bad_image=skip).
    """

    world: World = field(default_factory=World)
    sliced: bool = False
    unequal: bool = False

    def parts(self, accumulate: int) -> range:
        """Return those of a step's forward passes in which this rank takes part."""
        return range(accumulate) if self.sliced else range(self.world.rank, accumulate, self.world.size)

    def position(self, part: int) -> tuple[int, ...]:
        """Return where in a step this rank's random numbers of a forward pass are drawn."""
        return (part, self.world.rank) if self.sliced else (part,)


def divide(world: World, batch_size: int, accumulate: int, *, unequal: bool = False) -> Division:
    """Return how the ranks share a step: whole forward passes if they divide `accumulate`, else slices.

    Raises:
        UserError: the number of ranks divides neither.
    """
    if accumulate % world.size == 0:
        return Division(world)
    if batch_size % world.size == 0:
        return Division(world, sliced=True, unequal=unequal)
    fitting = [
        ranks
        for ranks in range(1, max(batch_size, accumulate) + 1)
        if accumulate % ranks == 0 or batch_size % ranks == 0
    ]
    raise UserError(
        f"{world.size} processes of torchrun divide neither train.accumulate={accumulate} nor "
        f"train.batch_size={batch_size}. Start {nearest(world.size, fitting)}, or change one of both"
    )


def nearest(number: int, choices: list[int]) -> str:
    """Return the next choice below and above a number that is none of them, as text."""
    below = [choice for choice in choices if choice < number][-1:]
    above = [choice for choice in choices if choice > number][:1]
    return " or ".join(map(str, below + above))


@dataclass(frozen=True)
class DividedBatches:
    """The batches of one rank: of those of a single process, every one that it takes part in, or its slice of each."""

    batches: ShuffledBatchSampler
    division: Division
    accumulate: int

    def __len__(self) -> int:
        return len(self.batches) * len(self.division.parts(self.accumulate)) // self.accumulate

    def __iter__(self) -> Iterator[BatchIndices]:
        rank, size = self.division.world.rank, self.division.world.size
        parts = self.division.parts(self.accumulate)
        for number, indices in enumerate(self.batches, self.batches.start):
            if self.division.sliced:
                length = len(indices.rows) // size
                yield indices._replace(rows=indices.rows[rank * length : (rank + 1) * length])
            elif number % self.accumulate in parts:
                yield indices
