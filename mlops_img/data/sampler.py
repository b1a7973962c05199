"""Which images make up each batch, as a function of (seed, step)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mlops_img.core.seeding import Purpose, derive


class BatchIndices(NamedTuple):
    """The rows of an ImageSet that make up one batch, int64 (n,), and the epoch, from which augmentation follows."""

    epoch: int
    rows: NDArray[np.intp]


@dataclass(frozen=True)
class ShuffledBatchSampler:
    """The batches of a whole training run from a given forward pass on.

    Epoch e visits a permutation that follows from (seed, e) in `per_epoch` full batches; the remainder is not read
    in that epoch.
    """

    size: int
    batch_size: int
    per_epoch: int
    seed: int
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[BatchIndices]:
        order: NDArray[np.intp] = np.empty(0, np.intp)
        known = -1
        for number in range(self.start, self.stop):
            epoch, place = divmod(number, self.per_epoch)
            if epoch != known:
                known = epoch
                order = np.random.default_rng(derive(self.seed, Purpose.SHUFFLE, epoch)).permutation(self.size)
            yield BatchIndices(epoch, order[place * self.batch_size : (place + 1) * self.batch_size])


def sequential_batches(size: int, batch_size: int) -> list[BatchIndices]:
    """Return batches with each image exactly once, in order; the last one may be smaller."""
    return [BatchIndices(0, np.arange(start, min(start + batch_size, size))) for start in range(0, size, batch_size)]
