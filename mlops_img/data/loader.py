"""Reading batches with any number of workers; the batches do not depend on their number."""

from __future__ import annotations

import atexit
import logging
import multiprocessing
import os
import signal
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mlops_img.core.seeding import Purpose, seed_cpu
from mlops_img.data.batch import Batch
from mlops_img.data.handover import hand_over
from mlops_img.data.sampler import BatchIndices, ShuffledBatchSampler
from mlops_img.data.sources.base import ImageSet
from mlops_img.errors import UserError
from mlops_img.preprocessing.decode import BadImageError, decode_rgb
from mlops_img.preprocessing.transforms import stack

log = logging.getLogger(__name__)

MAX_WORKERS = 8
PREFETCH_BATCHES = 4
LOCKS_PER_WORKER = 12  # more than a worker's queue and events take
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)

# From a decoded image, uint8 (height, width, 3), to the model's input, uint8 (3, side, side).
Transform = Callable[[NDArray[np.uint8]], Tensor]
# From the bytes of a file, or a Pillow image, to the decoded image.
Decode = Callable[[bytes | Image.Image], NDArray[np.uint8]]


class ImageBatches(Dataset[Batch]):
    """Reads, decodes and transforms the images of a batch; the same indices give the same batch in any process."""

    def __init__(self, images: ImageSet, transform: Transform, seed: int = 0, *, decode: Decode = decode_rgb) -> None:
        self.images = images
        self.transform = transform
        self.seed = seed
        self.decode = decode

    def __getitem__(self, indices: BatchIndices) -> Batch:
        """Return the batch, without the images that cannot be decoded."""
        squares, rows, bad = [], [], []
        with torch.random.fork_rng(devices=[]):
            for row in indices.rows.tolist():
                try:
                    image = self.decode(self.images.read(self.images.paths[row]))
                except (BadImageError, OSError) as error:
                    bad.append((row, (isinstance(error, OSError) and error.strerror) or str(error)))
                    continue
                seed_cpu(self.seed, Purpose.AUGMENT, indices.epoch, row)
                squares.append(self.transform(image))
                rows.append(row)
        pixels = stack(squares) if squares else torch.empty((0, 3, 0, 0), dtype=torch.uint8)
        labels = torch.from_numpy(self.images.labels[rows])
        return Batch(pixels, labels, torch.tensor(rows, dtype=torch.int64), bad)


class Loader(DataLoader[Batch]):
    """A DataLoader whose workers ignore Ctrl-C and SIGTERM, and end when the program does.

    Both signals reach the whole process group; the main process decides when to stop, and needs its batches until it
    has saved. PyTorch ends the workers when an iterator is dropped. If one is still referenced, by a global or by the
    traceback of an uncaught error, Python would wait for its workers forever.
    """

    reading: ClassVar[weakref.WeakSet[Any]] = weakref.WeakSet()

    def __iter__(self) -> Any:
        if not self.num_workers:
            return super().__iter__()
        # Workers inherit the blocked signals, so that none dies between its start and its first line.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        try:
            _try_locks(LOCKS_PER_WORKER * (self.num_workers + 1))
            iterator = super().__iter__()
        except OSError as error:  # no room in /dev/shm even for the queues' locks, or no more processes
            log.warning("workers cannot be started (%s): images are read in the training process", error.strerror)
            self.num_workers, self.prefetch_factor = 0, None
            return super().__iter__()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        Loader.reading.add(iterator)
        return iterator

    @staticmethod
    def end_workers() -> None:
        """End the workers of all iterators that still exist."""
        for iterator in list(Loader.reading):
            iterator._shutdown_workers()


atexit.register(Loader.end_workers)


def make_loader(
    images: ImageSet,
    transform: Transform,
    sampler: Iterable[BatchIndices],
    *,
    decode: Decode = decode_rgb,
    seed: int = 0,
    workers: int = 0,
    device: torch.device | None = None,
) -> DataLoader[Batch]:
    """Return a loader of these batches, in order, read ahead by `workers` processes (0: in this one).

    They are in pinned memory if `device` is a CUDA device.
    """
    if not isinstance(sampler, Sequence | ShuffledBatchSampler):
        sampler = list(sampler)
    return Loader(
        ImageBatches(images, transform, seed, decode=decode),
        batch_size=None,  # the sampler yields whole batches
        collate_fn=hand_over,  # type: ignore[arg-type]  # the default one would make lists of tuples
        sampler=sampler,
        num_workers=workers,
        prefetch_factor=PREFETCH_BATCHES if workers else None,
        pin_memory=device is not None and device.type == "cuda",
        worker_init_fn=_start_worker,
        generator=torch.Generator(),  # otherwise it would draw a number from the global one
    )


def loader_workers(wanted: int | None, device: torch.device) -> int:
    """Return how many processes are to read images: those wanted, or else what suits the device.

    On a CPU that trains, extra processes only compete.
    """
    if wanted is not None:
        return wanted
    if device.type == "cpu":
        return 0
    return min(MAX_WORKERS, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1)


def handle_bad_images(
    batches: Iterable[Batch], images: ImageSet, bad: dict[str, str] | None, *, min_images: int = 2
) -> Iterator[Batch]:
    """Pass the batches on; add their undecodable images to `bad`, path to reason, or raise if it is None.

    Args:
        batches: of `images`.
        images: named by path in `bad` and in errors.
        bad: gets the images that are left out; None raises at the first one.
        min_images: how many images of a batch must be left. Training needs 2, because of batch normalization.
            With 0, for evaluation, an empty batch is dropped, and it is an error only if no image at all is left.

    Raises:
        UserError: an image cannot be decoded and `bad` is None, or fewer than `min_images` of a batch can.
    """
    yielded = False
    for batch in _workers_alive(batches):
        for row, reason in batch.bad:
            path = images.paths[row]
            if bad is None:
                raise UserError(
                    f"image {path} cannot be decoded: {reason}. "
                    "Fix or delete it, or leave such images out with data.on_bad_image=skip"
                )
            if path not in bad:
                log.warning("left out %s: %s", path, reason)
            bad[path] = reason
        if batch.bad and len(batch.labels) < min_images:
            raise _too_few(batch, images)
        if len(batch.labels):
            yielded = True
            yield batch
    if bad and not yielded:
        raise UserError(
            f"none of the {len(bad)} images can be decoded, e.g. not {next(iter(bad))}. "
            "Check your data: python -m mlops_img.audit"
        )


def _workers_alive(batches: Iterable[Batch]) -> Iterator[Batch]:
    """Pass the batches on; a worker that was killed from outside becomes a UserError."""
    try:
        yield from batches
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        if not reason.startswith("DataLoader worker (pid"):
            raise
        raise UserError(
            f"a process that reads images was killed from outside ({reason.removesuffix('.')}). Most often memory ran "
            "out: use fewer workers with data.workers=..., or a smaller train.batch_size. resume=auto continues the run"
        ) from None


def _too_few(batch: Batch, images: ImageSet) -> UserError:
    planned = len(batch.bad) + len(batch.labels)
    return UserError(
        f"of {planned} images of a batch only {len(batch.labels)} can be decoded, "
        f"e.g. not {images.paths[batch.bad[0][0]]}. Check your data: python -m mlops_img.audit"
    )


def _try_locks(count: int) -> None:
    """Raise the OSError that DataLoader would get from its queues; it cannot clean up after that itself."""
    held = [multiprocessing.Lock() for _ in range(count)]
    held.clear()


def _start_worker(worker: int) -> None:
    torch.set_num_threads(1)
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
