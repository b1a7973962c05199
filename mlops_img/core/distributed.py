"""The processes that train one run together, one for each device, and what they tell one another.

A process that trains alone is a world of size 1, where every operation returns what it was given. `core.torchrun` finds
out which of both a process is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from mlops_img.errors import UserError

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """The place of this process among those that train the same run.

    Every method but the properties is collective: all ranks must call it, in the same order.

    Attributes:
        rank: of this process, from 0.
        size: number of processes.
        local_rank: of this process on its machine; the number of its GPU.
        local_size: number of processes on this machine.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @property
    def alone(self) -> bool:
        """Whether this is the only process."""
        return self.size == 1

    @property
    def leads(self) -> bool:
        """Whether this is the process that owns the run folder and decides: rank 0."""
        return self.rank == 0

    def broadcast(self, value: T) -> T:
        """Return the value that rank 0 gave, anything that can be pickled; the others' is ignored."""
        if self.alone:
            return value
        held = [value]
        dist.broadcast_object_list(held, src=0, device=torch.device("cpu"))
        return held[0]

    def gather(self, value: T) -> list[T]:
        """Return the values of all ranks, in their order, on rank 0; an empty list on the others."""
        if self.alone:
            return [value]
        values: list[T] | None = [value] * self.size if self.leads else None
        dist.gather_object(value, values, dst=0)
        return values or []

    def gather_everywhere(self, value: T) -> list[T]:
        """Return the values of all ranks, in their order."""
        if self.alone:
            return [value]
        values = [value] * self.size
        dist.all_gather_object(values, value)
        return values

    def sum(self, tensor: Tensor) -> Tensor:
        """Add up a tensor over all ranks, in place, and return it; on CUDA without waiting for the device."""
        if not self.alone:
            dist.all_reduce(tensor)
        return tensor

    def first_on_each_machine(self, make: Callable[[], T]) -> T:
        """Return what `make` returns, called by one rank of each machine before the others: it may write files."""
        if self.alone:
            return make()
        if self.local_rank != 0:
            self.sum(torch.zeros(()))
            return make()
        made = make()
        self.sum(torch.zeros(()))
        return made

    def copy_from_first(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite tensors with those of rank 0."""
        if not self.alone:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)


def device_of(world: World, name: str) -> str:
    """Return the device that `train.device` means on this rank: each rank of a machine has a GPU of its own.

    Raises:
        UserError: there are fewer GPUs than ranks on this machine, or one of them is named.
    """
    if world.alone or name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return name
    if name not in ("auto", "cuda"):
        raise UserError(f"train.device={name}: each process of torchrun has a GPU of its own. Use cuda, cpu or auto")
    gpus = torch.cuda.device_count()
    if world.local_size > gpus:
        raise UserError(
            f"torchrun --nproc-per-node {world.local_size}: this machine has {gpus} GPUs and each process needs one. "
            f"Start {gpus or 'fewer'} processes, or use train.device=cpu"
        )
    return f"cuda:{world.local_rank}"
