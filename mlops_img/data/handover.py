"""Sending a batch from a worker to the training process: in shared memory, or through a pipe if there is too little.

PyTorch sends tensors in shared memory (/dev/shm on Linux, 64 MB in a Docker container). If that is full, its worker
drops the batch and the training process waits for it forever. Here the worker detects that before it sends, and puts
the pixels themselves into the pipe: slower, and bit for bit the same.
"""

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable
from functools import cache
from multiprocessing.reduction import ForkingPickler
from typing import Any

import torch
from numpy.typing import NDArray
from torch.utils.data import get_worker_info

from mlops_img.data.batch import Batch

log = logging.getLogger(__name__)


class Parcel:
    """Something that is unpickled as the result of a function call, in the process that receives it."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.function = function
        self.arguments = arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """Pickle the call, not this object."""
        return self.function, self.arguments


def hand_over(batch: Batch) -> Batch | Parcel:
    """Return what a worker puts into its queue for a batch; outside of a worker, the batch itself."""
    if get_worker_info() is None:
        return batch
    try:
        # This allocates the shared memory. In the queue's own thread an error would be lost.
        return Parcel(pickle.loads, bytes(ForkingPickler.dumps(batch)))
    except (OSError, RuntimeError) as error:
        pixels = batch.images.permute(0, 2, 3, 1).contiguous().numpy()
        return Parcel(_from_arrays, pixels, batch.labels.numpy(), batch.rows.numpy(), batch.bad, str(error))


def _from_arrays(
    pixels: NDArray[Any], labels: NDArray[Any], rows: NDArray[Any], bad: list[tuple[int, str]], reason: str
) -> Batch:
    """Rebuild the batch from `pixels`, uint8 (n, h, w, 3)."""
    _warn_once(reason.rpartition(">: ")[2])
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    return Batch(images, torch.from_numpy(labels), torch.from_numpy(rows), bad)


@cache
def _warn_once(reason: str) -> None:
    log.warning(
        "shared memory (/dev/shm) cannot be used (%s): workers send their batches through pipes, which is slower. "
        "Enlarge it (docker run --shm-size=1g or --ipc=host), or set data.workers=0",
        reason,
    )
