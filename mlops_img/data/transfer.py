"""How a batch is sent from a worker to the training process: in shared memory, or through a pipe if that is full.

PyTorch sends tensors in shared memory (/dev/shm on Linux, 64 MB in a Docker container). If it is full, PyTorch's worker
drops the batch, and the training process waits for it forever. Here the worker allocates the shared memory before it
sends; if that fails, it sends the pixels through the pipe, which is slower and gives the same batch bit for bit.
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


class PickledCall:
    """Unpickles as the result of a function call, made in the receiving process."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.function = function
        self.arguments = arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """Pickle the call instead of this object."""
        return self.function, self.arguments


def pack_batch(batch: Batch) -> Batch | PickledCall:
    """Return what a worker puts into its queue for a batch; outside a worker, return the batch itself."""
    if get_worker_info() is None:
        return batch
    try:
        # This allocates the shared memory. The queue would do it in a thread that drops the batch on an error.
        return PickledCall(pickle.loads, bytes(ForkingPickler.dumps(batch)))
    except (OSError, RuntimeError) as error:
        pixels = batch.images.permute(0, 2, 3, 1).contiguous().numpy()
        return PickledCall(_unpack, pixels, batch.labels.numpy(), batch.rows.numpy(), batch.bad, str(error))


def _unpack(
    pixels: NDArray[Any], labels: NDArray[Any], rows: NDArray[Any], bad: list[tuple[int, str]], reason: str
) -> Batch:
    """Return the batch, given its pixels as uint8 (n, h, w, 3)."""
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
