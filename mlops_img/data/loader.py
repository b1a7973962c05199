"""The data loader: worker processes read, decode and transform the images of each batch.

A batch is a function of its indices and the seed, so it is the same with any number of workers.
"""

from __future__ import annotations

import atexit
import logging
import multiprocessing
import os
import signal
import weakref
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mlops_img.core.seeding import Purpose, seed_cpu
from mlops_img.data.batch import Batch
from mlops_img.data.sampler import BatchIndices, Position
from mlops_img.data.skipped import SkippedImages
from mlops_img.data.sources.base import ImageSet
from mlops_img.data.transfer import pack_batch
from mlops_img.errors import UserError
from mlops_img.preprocessing.decode import BadImageError, decode_rgb
from mlops_img.preprocessing.transforms import stack

log = logging.getLogger(__name__)

MAX_WORKERS = 8
PREFETCH_BATCHES = 4
LOCKS_PER_WORKER = 12  # more than the queue and the events of a worker need
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)

# From a decoded image, uint8 (height, width, 3), to the model's input, uint8 (3, side, side).
Transform = Callable[[NDArray[np.uint8]], Tensor]
# From the bytes of a file, or a Pillow image, to the decoded image.
Decode = Callable[[bytes | Image.Image], NDArray[np.uint8]]


@runtime_checkable
class PositionDependent(Protocol):
    """A transform that depends on where in the run the image is used."""

    def at(self, position: Position) -> Transform:
        """Return the transform of one image in one batch."""


class ImageBatches(Dataset[Batch]):
    """Reads, decodes and transforms the images of a batch; the same indices always give the same batch."""

    def __init__(self, images: ImageSet, transform: Transform, seed: int = 0, *, decode: Decode = decode_rgb) -> None:
        self.images = images
        self.transform = transform
        self.seed = seed
        self.decode = decode
        # Asked once: isinstance of a protocol is slow for small images.
        self.positional = transform if isinstance(transform, PositionDependent) else None

    def transform_at(self, position: Position) -> Transform:
        """Return the transform of the image at this position."""
        return self.transform if self.positional is None else self.positional.at(position)

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
                squares.append(self.transform_at(Position(indices.epoch, row, indices.side))(image))
                rows.append(row)
        pixels = stack(squares) if squares else torch.empty((0, 3, 0, 0), dtype=torch.uint8)
        labels = torch.from_numpy(self.images.labels[rows])
        return Batch(pixels, labels, torch.tensor(rows, dtype=torch.int64), bad)


class Loader(DataLoader[Batch]):
    """A DataLoader whose workers survive SIGINT and SIGTERM, and end when the program does.

    Both signals reach the whole process group. The main process decides when to stop, and needs batches until it has
    saved. Torch ends the workers when their iterator is garbage collected; an iterator that is still referenced, by a
    global or by the traceback of an uncaught exception, would make Python wait for its workers forever at exit.
    """

    active_iterators: ClassVar[weakref.WeakSet[Any]] = weakref.WeakSet()

    def __iter__(self) -> Any:
        if not self.num_workers:
            return super().__iter__()
        # Workers inherit the signal mask, so that none is killed before it ignores the signals itself.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        try:
            _check_locks(LOCKS_PER_WORKER * (self.num_workers + 1))
            iterator = super().__iter__()
        except OSError as error:  # /dev/shm is too full for the queues' locks, or the process limit is reached
            log.warning("workers cannot be started (%s): images are read in the training process", error.strerror)
            self.num_workers, self.prefetch_factor = 0, None
            return super().__iter__()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        Loader.active_iterators.add(iterator)
        return iterator

    @staticmethod
    def end_workers() -> None:
        """End the workers of every iterator that still exists."""
        for iterator in list(Loader.active_iterators):
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
    """Return a loader of the sampler's batches, in order.

    Args:
        images: the images that the sampler's rows refer to.
        transform: applied to each decoded image; may draw random numbers from PyTorch's global generator.
        sampler: the indices of each batch.
        decode: decodes a file.
        seed: seed of the augmentation.
        workers: processes that read ahead; 0 reads in this process.
        device: where the batches are used; for a CUDA device they are returned in pinned memory.
    """
    return Loader(
        ImageBatches(images, transform, seed, decode=decode),
        batch_size=None,  # each item is a whole batch
        collate_fn=pack_batch,  # type: ignore[arg-type]  # the default would turn the tuple into lists
        sampler=sampler if isinstance(sampler, Sized) else list(sampler),
        num_workers=workers,
        prefetch_factor=PREFETCH_BATCHES if workers else None,
        pin_memory=device is not None and device.type == "cuda",
        worker_init_fn=_start_worker,
        generator=torch.Generator(),  # by default it would draw a number from the global generator
    )


def loader_workers(wanted: int | None, device: torch.device) -> int:
    """Return the number of workers: `wanted`, or one for the device; 0 on a CPU, where they compete with training."""
    if wanted is not None:
        return wanted
    if device.type == "cpu":
        return 0
    return min(MAX_WORKERS, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1)


def handle_bad_images(
    batches: Iterable[Batch],
    images: ImageSet,
    skipped: SkippedImages | None,
    *,
    min_images: int = 2,
    keep_empty: bool = False,
) -> Iterator[Batch]:
    """Yield the batches; record their undecodable images in `skipped`, or raise if it is None.

    Args:
        batches: batches of `images`.
        images: gives the path of each image.
        skipped: receives the images that cannot be decoded. None: the first one raises.
        min_images: the smallest number of images that a batch may be left with. Training needs 2, because of batch
            normalization. With 0, for evaluation, an empty batch is dropped, and only a data set without any
            decodable image raises.
        keep_empty: yield every batch, whatever is left of it: other ranks have the rest, and the caller counts.

    Raises:
        UserError: an image cannot be decoded and `skipped` is None, or a batch has fewer than `min_images` left.
    """
    yielded = False
    for batch in report_killed_worker(batches, "smaller train.batch_size. resume=auto continues the run"):
        for row, reason in batch.bad:
            path = images.paths[row]
            if skipped is None:
                raise UserError(
                    f"image {path} cannot be decoded: {reason}. "
                    "Fix or delete it, or leave such images out with data.on_bad_image=skip"
                )
            skipped.add(path, reason)
        if batch.bad and len(batch.labels) < min_images and not keep_empty:
            raise _too_few_images(batch, images)
        if len(batch.labels) or keep_empty:
            yielded = True
            yield batch
    if skipped and not yielded:
        raise none_decodable(skipped)


def none_decodable(skipped: SkippedImages) -> UserError:
    """Return the error of a set of images that were all skipped."""
    return UserError(
        f"none of the {len(skipped)} images can be decoded, for example {next(iter(skipped.as_dict()))}. "
        "Check the data with python -m mlops_img.audit"
    )


def report_killed_worker(batches: Iterable[Batch], fix: str) -> Iterator[Batch]:
    """Yield the batches; turn the death of a worker process into a UserError.

    Args:
        batches: of a loader.
        fix: how the message ends, after "use fewer workers with data.workers=..., or a ".
    """
    try:
        yield from batches
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        if not reason.startswith("DataLoader worker (pid"):
            raise
        raise UserError(
            f"a data loader worker was killed ({reason.removesuffix('.')}). The usual cause is too little memory: use "
            f"fewer workers with data.workers=..., or a {fix}"
        ) from None


def _too_few_images(batch: Batch, images: ImageSet) -> UserError:
    total = len(batch.bad) + len(batch.labels)
    return UserError(
        f"only {len(batch.labels)} of the {total} images of a batch can be decoded; one that cannot is "
        f"{images.paths[batch.bad[0][0]]}. Check the data with python -m mlops_img.audit"
    )


def _check_locks(count: int) -> None:
    """Raise the OSError that DataLoader would raise for its queues, because DataLoader does not clean up after it."""
    held = [multiprocessing.Lock() for _ in range(count)]
    held.clear()


def _start_worker(worker: int) -> None:
    torch.set_num_threads(1)
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
