"""Batches are a function of the seed and the step, for any number of workers and any first step."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mlops_img.config.augment import AugmentConfig
from mlops_img.config.data import FolderConfig
from mlops_img.data import loader
from mlops_img.data.augment import ImageAugment
from mlops_img.data.batch import Batch
from mlops_img.data.loader import loader_workers, make_loader
from mlops_img.data.sampler import BatchIndices, ShuffledBatchSampler, sequential_batches
from mlops_img.data.sources.base import ImageSet, read_file
from mlops_img.data.sources.registry import open_source
from mlops_img.preprocessing.transforms import Preprocessing

SIDE = 24
PREPROCESSING = Preprocessing(SIDE, 0.875, (0.5,) * 3, (0.25,) * 3)
STRONG = AugmentConfig(policy="trivialaugment", color_jitter=0.3, degrees=10.0)


@pytest.fixture
def images(shared_shapes: Path) -> ImageSet:
    """Return 60 images."""
    return open_source(FolderConfig(root=str(shared_shapes))).table().splits["train"]


def shuffled(start: int = 0, stop: int = 14, seed: int = 3) -> ShuffledBatchSampler:
    """Sample two epochs of seven batches of eight; four of the 60 images are not used in each."""
    return ShuffledBatchSampler(size=60, batch_size=8, per_epoch=7, seed=seed, start=start, stop=stop)


def read_all(
    images: ImageSet, sampler: ShuffledBatchSampler | Sequence[BatchIndices], workers: int = 0, seed: int = 3
) -> list[Batch]:
    return list(make_loader(images, ImageAugment(STRONG, PREPROCESSING), sampler, seed=seed, workers=workers))


def assert_equal(batches: list[Batch], expected: list[Batch]) -> None:
    assert len(batches) == len(expected)
    for one, other in zip(batches, expected, strict=True):
        assert torch.equal(one.rows, other.rows)
        assert torch.equal(one.labels, other.labels)
        assert torch.equal(one.images, other.images)
        assert one.bad == other.bad


# Reproducibility.


@pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker")  # on fewer cores
@pytest.mark.parametrize("workers", [1, 4])
def test_batches_are_bitwise_equal_for_any_number_of_workers(images: ImageSet, workers: int) -> None:
    alone = read_all(images, shuffled())
    assert len(alone) == 14
    assert_equal(read_all(images, shuffled(), workers), alone)


def test_batches_from_a_later_step_equal_those_of_the_uninterrupted_run(images: ImageSet) -> None:
    whole = read_all(images, shuffled())
    for start in (1, 7, 12, 14):
        assert_equal(read_all(images, shuffled(start)), whole[start:])
    assert_equal(read_all(images, shuffled(9), workers=2), whole[9:])


def test_images_before_the_first_step_are_not_read(images: ImageSet) -> None:
    opened: list[str] = []

    def counted(path: str) -> bytes:
        opened.append(path)
        return read_file(path)

    batches = read_all(replace(images, read=counted), shuffled(start=10))
    assert opened == [images.paths[row] for batch in batches for row in batch.rows.tolist()]
    assert len(opened) == 4 * 8


def test_another_seed_gives_other_batches(images: ImageSet) -> None:
    one, other = read_all(images, shuffled(stop=1)), read_all(images, shuffled(stop=1, seed=4), seed=4)
    assert not torch.equal(one[0].rows, other[0].rows)


def test_augmentation_differs_between_epochs(images: ImageSet) -> None:
    rows = np.arange(8)
    first, second = read_all(images, [BatchIndices(0, rows), BatchIndices(1, rows)])
    assert torch.equal(first.rows, second.rows)
    assert not any(torch.equal(one, other) for one, other in zip(first.images, second.images, strict=True))


def test_image_does_not_depend_on_the_others_of_its_batch(images: ImageSet) -> None:
    (together,) = read_all(images, [BatchIndices(0, np.arange(8))])
    (alone,) = read_all(images, [BatchIndices(0, np.array([5]))])
    assert torch.equal(together.images[5], alone.images[0])


def test_reading_batches_leaves_the_global_generators_unchanged(images: ImageSet) -> None:
    before = (torch.get_rng_state(), random.getstate(), str(np.random.get_state()))
    read_all(images, shuffled(stop=3))
    read_all(images, shuffled(stop=3), workers=1)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (random.getstate(), str(np.random.get_state())) == before[1:]


def test_batches_do_not_depend_on_the_global_generators(images: ImageSet) -> None:
    first = read_all(images, shuffled(stop=3))
    torch.manual_seed(99)
    random.seed(99)
    assert_equal(read_all(images, shuffled(stop=3)), first)


# Samplers.


def test_every_image_is_visited_once_per_epoch() -> None:
    whole = ShuffledBatchSampler(size=60, batch_size=10, per_epoch=6, seed=0, start=0, stop=18)
    epochs: dict[int, list[int]] = {0: [], 1: [], 2: []}
    for batch in whole:
        epochs[batch.epoch] += batch.rows.tolist()
    assert all(sorted(rows) == list(range(60)) for rows in epochs.values())
    assert epochs[0] != epochs[1] != epochs[2]
    assert epochs[0] != sorted(epochs[0])


def test_unused_images_differ_between_epochs() -> None:
    left = [
        set(range(60)) - {row for batch in shuffled(7 * e, 7 * e + 7) for row in batch.rows.tolist()} for e in range(3)
    ]
    assert [len(rows) for rows in left] == [4, 4, 4]
    assert left[0] != left[1] != left[2]


def test_sampler_length_and_epochs() -> None:
    assert len(shuffled(3, 14)) == len(list(shuffled(3, 14))) == 11
    assert [batch.epoch for batch in shuffled(5, 9)] == [0, 0, 1, 1]


@pytest.mark.parametrize(("size", "sizes"), [(60, [25, 25, 10]), (50, [25, 25]), (1, [1]), (0, [])])
def test_sequential_batches_visit_each_image_once_in_order(size: int, sizes: list[int]) -> None:
    ordered = sequential_batches(size, 25)
    assert [len(batch.rows) for batch in ordered] == sizes
    assert [row for batch in ordered for row in batch.rows.tolist()] == list(range(size))


def test_evaluation_reads_each_image_once_in_order(images: ImageSet) -> None:
    batches = list(make_loader(images, PREPROCESSING.crop, sequential_batches(60, 25), workers=2))
    assert [len(batch.labels) for batch in batches] == [25, 25, 10]
    assert torch.cat([batch.rows for batch in batches]).tolist() == list(range(60))
    assert torch.cat([batch.labels for batch in batches]).tolist() == images.labels.tolist()


# Batches.


def test_batch_is_uint8_in_channels_last_memory(images: ImageSet) -> None:
    for workers in (0, 1):
        batch = read_all(images, shuffled(stop=1), workers)[0]
        assert batch.images.dtype == torch.uint8
        assert batch.images.shape == (8, 3, SIDE, SIDE)
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        assert batch.labels.dtype == batch.rows.dtype == torch.int64
        assert batch.labels.tolist() == images.labels[batch.rows.numpy()].tolist()


def test_batch_moves_to_a_device(images: ImageSet) -> None:
    batch = read_all(images, shuffled(stop=1))[0]
    moved = batch.to(torch.device("cpu"))
    assert_equal([moved], [batch])


def test_loader_workers_are_none_for_a_cpu_and_some_for_a_gpu() -> None:
    assert loader_workers(None, torch.device("cpu")) == 0
    assert loader_workers(3, torch.device("cpu")) == 3
    assert 1 <= loader_workers(None, torch.device("cuda")) <= 8


# Signals.


def test_workers_survive_stop_signals(images: ImageSet) -> None:
    expected = read_all(images, shuffled())
    iterator = iter(make_loader(images, ImageAugment(STRONG, PREPROCESSING), shuffled(), seed=3, workers=2))
    batches = [next(iterator)]
    workers = iterator._workers
    assert len(workers) == 2
    for worker in workers:
        os.kill(worker.pid, signal.SIGINT)
        os.kill(worker.pid, signal.SIGTERM)
    batches += iterator
    assert_equal(batches, expected)
    del iterator
    for worker in workers:
        worker.join(10)
        assert worker.exitcode == 0


def test_workers_survive_a_signal_during_their_start(images: ImageSet, monkeypatch: pytest.MonkeyPatch) -> None:
    start = loader._start_worker

    def signal_then_start(worker: int) -> None:  # pragma: no cover  # in a worker
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        start(worker)

    monkeypatch.setattr(loader, "_start_worker", signal_then_start)
    assert_equal(read_all(images, shuffled(), workers=2), read_all(images, shuffled()))
    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_program_that_fails_while_reading_batches_exits(shared_shapes: Path) -> None:
    # The iterator stays alive in a global and in the traceback, and the workers ignore SIGTERM.
    program = f"""
from mlops_img.config.data import FolderConfig
from mlops_img.data.loader import make_loader
from mlops_img.data.sampler import sequential_batches
from mlops_img.data.sources.registry import open_source
from mlops_img.preprocessing.transforms import Preprocessing
images = open_source(FolderConfig(root={str(shared_shapes)!r})).table().splits["train"]
crop = Preprocessing(24, 0.875, (0.5,) * 3, (0.25,) * 3).crop
batches = iter(make_loader(images, crop, sequential_batches(60, 4), workers=1))
next(batches)
raise RuntimeError("not caught")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 1
    assert "not caught" in done.stderr
