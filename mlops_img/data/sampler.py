"""Batch samplers: which images make up each batch, as a function of (seed, step)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mlops_img.core.seeding import Purpose, derive


class BatchIndices(NamedTuple):
    """The images of one batch.

    Attributes:
        epoch: the epoch, which seeds the augmentation together with the row.
        rows: int64 (n,), indices into an ImageSet.
        side: of the squares that training sees, in pixels; None: data.image_size.
    """

    epoch: int
    rows: NDArray[np.intp]
    side: int | None = None


class Position(NamedTuple):
    """One image of one batch: what its augmentation may depend on besides the pixels (see `BatchIndices`)."""

    epoch: int
    row: int
    side: int | None = None


@dataclass(frozen=True)
class ShuffledBatchSampler:
    """The batches of a training run, from batch `start` up to and excluding batch `stop`.

    Epoch e visits a permutation that is a function of (seed, e), in `per_epoch` full batches. The images of an
    incomplete last batch are not read in that epoch. Starting at a later batch costs nothing, because no state is
    carried from one batch to the next.

    Attributes:
        size: number of images.
        batch_size: images per batch.
        per_epoch: batches per epoch.
        seed: seed of the run.
        start: index of the first batch, counted from the beginning of the run.
        stop: index after that of the last batch.
        side: of the squares of a batch, from its index; None: data.image_size for all.
    """

    size: int
    batch_size: int
    per_epoch: int
    seed: int
    start: int
    stop: int
    side: Callable[[int], int] | None = None

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[BatchIndices]:
        order: NDArray[np.intp] = np.empty(0, np.intp)
        current_epoch = -1
        for batch in range(self.start, self.stop):
            epoch, position = divmod(batch, self.per_epoch)
            if epoch != current_epoch:
                current_epoch = epoch
                order = np.random.default_rng(derive(self.seed, Purpose.SHUFFLE, epoch)).permutation(self.size)
            rows = order[position * self.batch_size : (position + 1) * self.batch_size]
            yield BatchIndices(epoch, rows, None if self.side is None else self.side(batch))


def sequential_batches(size: int, batch_size: int) -> list[BatchIndices]:
    """Return batches that visit each image exactly once, in order; the last batch may be smaller."""
    return batches_of(np.arange(size), batch_size)


def batches_of(rows: NDArray[np.intp], batch_size: int) -> list[BatchIndices]:
    """Return batches that visit these images, int64 (n,), in order; the last batch may be smaller."""
    return [BatchIndices(0, rows[start : start + batch_size]) for start in range(0, len(rows), batch_size)]
