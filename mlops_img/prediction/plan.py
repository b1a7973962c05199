"""Which rows make up each part and each batch, and which parts are whose."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from mlops_img.config.predict import PredictConfig
from mlops_img.data.sampler import BatchIndices, batches_of
from mlops_img.errors import UserError


@dataclass(frozen=True)
class Plan:
    """The rows of an input, cut into parts, and the parts into batches.

    Batches begin anew with each part, so the same images share a batch whoever computes it: the last bits of their
    probabilities depend on that.
    """

    rows: int
    rows_per_part: int
    batch_size: int

    @property
    def parts(self) -> int:
        """The number of parts."""
        return -(-self.rows // self.rows_per_part)

    def rows_of(self, part: int) -> range:
        """Return the rows of a part."""
        return range(part * self.rows_per_part, min((part + 1) * self.rows_per_part, self.rows))

    def batches_of(self, part: int) -> list[BatchIndices]:
        """Return the batches of a part, in the order of its rows."""
        return batches_of(np.array(self.rows_of(part)), self.batch_size)


@dataclass(frozen=True)
class Shard:
    """The share of one process: every `count`th part, from part `number` on."""

    number: int
    count: int

    def owns(self, part: int) -> bool:
        """Return whether a part is this shard's."""
        return part % self.count == self.number

    def of(self, parts: Iterable[int]) -> list[int]:
        """Return those of the parts that are this shard's."""
        return [part for part in parts if self.owns(part)]


def find_shard(config: PredictConfig) -> Shard:
    """Return the shard that is configured, else that of this process by torchrun, else the only one.

    Raises:
        UserError: RANK and WORLD_SIZE are not numbers of a shard.
    """
    if config.shard is not None and config.num_shards is not None:
        return Shard(config.shard, config.num_shards)
    rank, size = os.environ.get("RANK"), os.environ.get("WORLD_SIZE")
    if rank is None or size is None:
        return Shard(0, 1)
    if not (rank.isdecimal() and size.isdecimal() and int(rank) < int(size)):
        raise UserError(f"RANK={rank} and WORLD_SIZE={size}: no shard has these numbers. Set shard=... num_shards=...")
    return Shard(int(rank), int(size))
