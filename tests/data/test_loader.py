"""Batches: a function of the seed and the step, whoever reads them and wherever one begins."""

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

from mlops_img.config.data import FolderConfig
from mlops_img.config.train import AugmentConfig
from mlops_img.data import loader
from mlops_img.data.augment import ImageAugment
from mlops_img.data.loader import (
    Batch,
    Plan,
    ShuffledPlans,
    load_batches,
    loader_workers,
    ordered_plans,
)
from mlops_img.data.sources.base import ImageSet, read_file
from mlops_img.data.sources.registry import open_source
from mlops_img.preprocessing.transforms import Preprocessing

SIDE = 24
PREPROCESSING = Preprocessing(SIDE, 0.875, (0.5,) * 3, (0.25,) * 3)
STRONG = AugmentConfig(policy="trivialaugment", color_jitter=0.3, degrees=10.0)


@pytest.fixture
def images(shared_shapes: Path) -> ImageSet:
    """60 images."""
    return open_source(FolderConfig(root=str(shared_shapes))).table().splits["train"]


def plans(start: int = 0, stop: int = 14, seed: int = 3) -> ShuffledPlans:
    """Two epochs of seven batches of eight; four of the 60 images are left over in each."""
    return ShuffledPlans(size=60, batch_size=8, per_epoch=7, seed=seed, start=start, stop=stop)


def read_all(images: ImageSet, wanted: ShuffledPlans | Sequence[Plan], workers: int = 0, seed: int = 3) -> list[Batch]:
    return list(load_batches(images, ImageAugment(STRONG, PREPROCESSING), wanted, seed=seed, workers=workers))


def assert_equal(batches: list[Batch], expected: list[Batch]) -> None:
    assert len(batches) == len(expected)
    for one, other in zip(batches, expected, strict=True):
        assert torch.equal(one.rows, other.rows)
        assert torch.equal(one.labels, other.labels)
        assert torch.equal(one.images, other.images)
        assert one.bad == other.bad


# The same batches.


@pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker")  # on fewer cores
@pytest.mark.parametrize("workers", [1, 4])
def test_batches_are_the_same_to_the_bit_for_any_number_of_workers(images: ImageSet, workers: int) -> None:
    alone = read_all(images, plans())
    assert len(alone) == 14
    assert_equal(read_all(images, plans(), workers), alone)


def test_from_a_later_step_on_batches_are_those_of_the_uninterrupted_run(images: ImageSet) -> None:
    whole = read_all(images, plans())
    for start in (1, 7, 12, 14):
        assert_equal(read_all(images, plans(start)), whole[start:])
    assert_equal(read_all(images, plans(9), workers=2), whole[9:])


def test_what_comes_before_the_first_step_is_not_read(images: ImageSet) -> None:
    opened: list[str] = []

    def counted(path: str) -> bytes:
        opened.append(path)
        return read_file(path)

    batches = read_all(replace(images, read=counted), plans(start=10))
    assert opened == [images.paths[row] for batch in batches for row in batch.rows.tolist()]
    assert len(opened) == 4 * 8


def test_another_seed_gives_other_batches(images: ImageSet) -> None:
    one, other = read_all(images, plans(stop=1)), read_all(images, plans(stop=1, seed=4), seed=4)
    assert not torch.equal(one[0].rows, other[0].rows)


def test_an_image_is_augmented_anew_in_each_epoch(images: ImageSet) -> None:
    rows = np.arange(8)
    first, second = read_all(images, [Plan(0, rows), Plan(1, rows)])
    assert torch.equal(first.rows, second.rows)
    assert not any(torch.equal(one, other) for one, other in zip(first.images, second.images, strict=True))


def test_an_image_does_not_depend_on_the_others_of_its_batch(images: ImageSet) -> None:
    (together,) = read_all(images, [Plan(0, np.arange(8))])
    (alone,) = read_all(images, [Plan(0, np.array([5]))])
    assert torch.equal(together.images[5], alone.images[0])


def test_reading_batches_leaves_every_global_generator_alone(images: ImageSet) -> None:
    before = (torch.get_rng_state(), random.getstate(), str(np.random.get_state()))
    read_all(images, plans(stop=3))
    read_all(images, plans(stop=3), workers=1)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (random.getstate(), str(np.random.get_state())) == before[1:]


def test_batches_do_not_depend_on_the_global_generators(images: ImageSet) -> None:
    first = read_all(images, plans(stop=3))
    torch.manual_seed(99)
    random.seed(99)
    assert_equal(read_all(images, plans(stop=3)), first)


# Which images.


def test_every_image_comes_once_per_epoch() -> None:
    whole = ShuffledPlans(size=60, batch_size=10, per_epoch=6, seed=0, start=0, stop=18)
    epochs: dict[int, list[int]] = {0: [], 1: [], 2: []}
    for plan in whole:
        epochs[plan.epoch] += plan.rows.tolist()
    assert all(sorted(rows) == list(range(60)) for rows in epochs.values())
    assert epochs[0] != epochs[1] != epochs[2]
    assert epochs[0] != sorted(epochs[0])


def test_what_is_left_over_differs_from_epoch_to_epoch() -> None:
    left = [set(range(60)) - {row for plan in plans(7 * e, 7 * e + 7) for row in plan.rows.tolist()} for e in range(3)]
    assert [len(rows) for rows in left] == [4, 4, 4]
    assert left[0] != left[1] != left[2]


def test_shuffled_plans_know_their_number() -> None:
    assert len(plans(3, 14)) == len(list(plans(3, 14))) == 11
    assert [plan.epoch for plan in plans(5, 9)] == [0, 0, 1, 1]


@pytest.mark.parametrize(("size", "sizes"), [(60, [25, 25, 10]), (50, [25, 25]), (1, [1]), (0, [])])
def test_ordered_plans_visit_each_image_exactly_once_in_order(size: int, sizes: list[int]) -> None:
    ordered = ordered_plans(size, 25)
    assert [len(plan.rows) for plan in ordered] == sizes
    assert [row for plan in ordered for row in plan.rows.tolist()] == list(range(size))


def test_evaluation_reads_each_image_once_with_the_one_preprocessing(images: ImageSet) -> None:
    batches = list(load_batches(images, PREPROCESSING.crop, ordered_plans(60, 25), workers=2))
    assert [len(batch.labels) for batch in batches] == [25, 25, 10]
    assert torch.cat([batch.rows for batch in batches]).tolist() == list(range(60))
    assert torch.cat([batch.labels for batch in batches]).tolist() == images.labels.tolist()


# What a batch is.


def test_a_batch_is_uint8_in_channels_last_memory(images: ImageSet) -> None:
    for workers in (0, 1):
        batch = read_all(images, plans(stop=1), workers)[0]
        assert batch.images.dtype == torch.uint8
        assert batch.images.shape == (8, 3, SIDE, SIDE)
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        assert batch.labels.dtype == batch.rows.dtype == torch.int64
        assert batch.labels.tolist() == images.labels[batch.rows.numpy()].tolist()


def test_a_batch_moves_to_a_device_whole(images: ImageSet) -> None:
    batch = read_all(images, plans(stop=1))[0]
    moved = batch.to(torch.device("cpu"))
    assert_equal([moved], [batch])


def test_a_cpu_that_trains_gets_no_workers_and_a_gpu_some() -> None:
    assert loader_workers(None, torch.device("cpu")) == 0
    assert loader_workers(3, torch.device("cpu")) == 3
    assert 1 <= loader_workers(None, torch.device("cuda")) <= 8


# Signals.


def test_workers_outlive_the_signals_that_ask_the_run_to_stop(images: ImageSet) -> None:
    expected = read_all(images, plans())
    iterator = iter(load_batches(images, ImageAugment(STRONG, PREPROCESSING), plans(), seed=3, workers=2))
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


def test_workers_outlive_a_signal_that_comes_while_they_start(
    images: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = loader._start_worker

    def signalled(worker: int) -> None:  # pragma: no cover  # in a worker
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        start(worker)

    monkeypatch.setattr(loader, "_start_worker", signalled)
    assert_equal(read_all(images, plans(), workers=2), read_all(images, plans()))
    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_a_program_that_fails_while_batches_are_read_ends(shared_shapes: Path) -> None:
    # The iterator stays alive in a global and in the traceback, and the workers ignore SIGTERM.
    program = f"""
from mlops_img.config.data import FolderConfig
from mlops_img.data.loader import load_batches, ordered_plans
from mlops_img.data.sources.registry import open_source
from mlops_img.preprocessing.transforms import Preprocessing
images = open_source(FolderConfig(root={str(shared_shapes)!r})).table().splits["train"]
crop = Preprocessing(24, 0.875, (0.5,) * 3, (0.25,) * 3).crop
batches = iter(load_batches(images, crop, ordered_plans(60, 4), workers=1))
next(batches)
raise RuntimeError("nobody catches this")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 1
    assert "nobody catches this" in done.stderr
