"""Batches: planned as a function of (seed, step), read by any number of workers, always the same."""

from __future__ import annotations

import atexit
import logging
import multiprocessing
import os
import signal
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mlops_img.core.seeding import Purpose, derive, seed_cpu
from mlops_img.data.handover import hand_over
from mlops_img.data.sources.base import ImageSet
from mlops_img.errors import UserError
from mlops_img.preprocessing.decode import BadImageError, decode_rgb
from mlops_img.preprocessing.transforms import stack

log = logging.getLogger(__name__)

MAX_WORKERS = 8
PREFETCH_BATCHES = 4
LOCKS_PER_WORKER = 12  # more than a worker's queue and events take
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)

# From a decoded image, uint8 (height, width, 3), to what the model is fed, uint8 (3, side, side).
Transform = Callable[[NDArray[np.uint8]], Tensor]
# From the bytes of a file, or a Pillow image, to the decoded image.
Decode = Callable[[bytes | Image.Image], NDArray[np.uint8]]


class Plan(NamedTuple):
    """Which images make one batch: int64 (n,) rows of an ImageSet, read in this epoch."""

    epoch: int
    rows: NDArray[np.intp]


class Batch(NamedTuple):
    """Images as the workers leave them.

    Attributes:
        images: uint8 (n, 3, h, w), channels-last in memory.
        labels: int64 (n,).
        rows: int64 (n,), the images' places in their ImageSet.
        bad: (row, reason) of each planned image that could not be decoded, and so is missing above.
    """

    images: Tensor
    labels: Tensor
    rows: Tensor
    bad: list[tuple[int, str]]

    def to(self, device: torch.device) -> Batch:
        """Return the batch with its images and labels on the device, copied without waiting."""
        images = self.images.to(device, non_blocking=True)
        return self._replace(images=images, labels=self.labels.to(device, non_blocking=True))


@dataclass(frozen=True)
class ShuffledPlans:
    """The plans of a whole training run from a given forward pass on, without those before it.

    Epoch e visits a permutation that follows from (seed, e) in `per_epoch` full batches; what is left over
    is not read in that epoch.
    """

    size: int
    batch_size: int
    per_epoch: int
    seed: int
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[Plan]:
        order: NDArray[np.intp] = np.empty(0, np.intp)
        known = -1
        for number in range(self.start, self.stop):
            epoch, place = divmod(number, self.per_epoch)
            if epoch != known:
                known = epoch
                order = np.random.default_rng(derive(self.seed, Purpose.SHUFFLE, epoch)).permutation(self.size)
            yield Plan(epoch, order[place * self.batch_size : (place + 1) * self.batch_size])


def ordered_plans(size: int, batch_size: int) -> list[Plan]:
    """Plan each image exactly once, in order; the last batch may be smaller."""
    return [Plan(0, np.arange(start, min(start + batch_size, size))) for start in range(0, size, batch_size)]


class ImageBatches(Dataset[Batch]):
    """Reads, decodes and transforms the images of a plan; the same plan gives the same batch anywhere."""

    def __init__(self, images: ImageSet, transform: Transform, seed: int = 0, *, decode: Decode = decode_rgb) -> None:
        self.images = images
        self.transform = transform
        self.seed = seed
        self.decode = decode

    def __getitem__(self, plan: Plan) -> Batch:
        """Return the planned batch, short of the images that cannot be decoded."""
        squares, rows, bad = [], [], []
        with torch.random.fork_rng(devices=[]):
            for row in plan.rows.tolist():
                try:
                    image = self.decode(self.images.read(self.images.paths[row]))
                except (BadImageError, OSError) as error:
                    bad.append((row, (isinstance(error, OSError) and error.strerror) or str(error)))
                    continue
                seed_cpu(self.seed, Purpose.AUGMENT, plan.epoch, row)
                squares.append(self.transform(image))
                rows.append(row)
        pixels = stack(squares) if squares else torch.empty((0, 3, 0, 0), dtype=torch.uint8)
        labels = torch.from_numpy(self.images.labels[rows])
        return Batch(pixels, labels, torch.tensor(rows, dtype=torch.int64), bad)


class Loader(DataLoader[Batch]):
    """A DataLoader whose workers outlive Ctrl-C and SIGTERM, and end when the program does.

    Both signals reach the whole process group; the main process decides when to stop, and until it has saved it
    needs its batches. Torch ends the workers when an iterator is dropped. One that lives on, in a global or in the
    traceback of an error that nobody caught, would leave Python waiting for them for ever.
    """

    reading: ClassVar[weakref.WeakSet[Any]] = weakref.WeakSet()

    def __iter__(self) -> Any:
        if not self.num_workers:
            return super().__iter__()
        # Workers inherit what is blocked: none dies between its start and its first line.
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
        """End the workers of every iterator that is still alive."""
        for iterator in list(Loader.reading):
            iterator._shutdown_workers()


atexit.register(Loader.end_workers)


def load_batches(
    images: ImageSet,
    transform: Transform,
    plans: Iterable[Plan],
    *,
    decode: Decode = decode_rgb,
    seed: int = 0,
    workers: int = 0,
    device: torch.device | None = None,
) -> DataLoader[Batch]:
    """Return the planned batches, in order, read ahead by `workers` processes (0: in this one).

    They lie in pinned memory when `device` is a CUDA device.
    """
    sampler = plans if isinstance(plans, Sequence | ShuffledPlans) else list(plans)
    return Loader(
        ImageBatches(images, transform, seed, decode=decode),
        batch_size=None,  # a plan is a whole batch already
        collate_fn=hand_over,  # type: ignore[arg-type]  # the default one would make lists of tuples
        sampler=sampler,
        num_workers=workers,
        prefetch_factor=PREFETCH_BATCHES if workers else None,
        pin_memory=device is not None and device.type == "cuda",
        worker_init_fn=_start_worker,
        generator=torch.Generator(),  # of its own, or it would draw a number from the global one
    )


def default_workers(device: torch.device) -> int:
    """Return how many workers suit the device: on a CPU that trains, extra processes only compete."""
    if device.type == "cpu":
        return 0
    return min(MAX_WORKERS, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1)


def skip_or_raise(
    batches: Iterable[Batch], images: ImageSet, bad: dict[str, str] | None, *, least: int = 2
) -> Iterator[Batch]:
    """Pass the batches on; note their undecodable images in `bad`, path to reason, or raise without it.

    Args:
        batches: of `images`.
        images: named by path in `bad` and in errors.
        bad: gets the images that were left out; None raises at the first.
        least: how many images of a batch must be left. Training takes 2, because batch normalization does.
            With 0, for evaluation, a batch without any is dropped, and only if none is left it raises.

    Raises:
        UserError: an image cannot be decoded and `bad` is None, or fewer than `least` of a batch can.
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
        if batch.bad and len(batch.labels) < least:
            raise _too_few(batch, images)
        if len(batch.labels):
            yielded = True
            yield batch
    if bad and not yielded:
        raise UserError(
            f"none of the {len(bad)} images can be decoded, e.g. not {next(iter(bad))}. "
            "Look at your data: python -m mlops_img.audit"
        )


def _workers_alive(batches: Iterable[Batch]) -> Iterator[Batch]:
    """Pass the batches on; a worker that was killed from outside is a UserError."""
    try:
        yield from batches
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        if not reason.startswith("DataLoader worker (pid"):
            raise
        raise UserError(
            f"a process that reads images was ended from outside ({reason.removesuffix('.')}). Most often memory ran "
            "out: use fewer with data.workers=..., or less train.batch_size. resume=auto continues the run"
        ) from None


def _too_few(batch: Batch, images: ImageSet) -> UserError:
    planned = len(batch.bad) + len(batch.labels)
    return UserError(
        f"of {planned} images of a batch only {len(batch.labels)} can be decoded, "
        f"e.g. not {images.paths[batch.bad[0][0]]}. Look at your data: python -m mlops_img.audit"
    )


def _try_locks(count: int) -> None:
    """Raise the OSError that DataLoader would get from its queues; it cannot clean up after one itself."""
    held = [multiprocessing.Lock() for _ in range(count)]
    held.clear()


def _start_worker(worker: int) -> None:
    torch.set_num_threads(1)
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
