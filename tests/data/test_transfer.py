"""Batches when shared memory is full: bitwise the same, and the loader never hangs."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Iterator
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import pytest
import torch

from mlops_img.config.data import FolderConfig
from mlops_img.data import transfer
from mlops_img.data.batch import Batch
from mlops_img.data.loader import handle_bad_images, make_loader
from mlops_img.data.sampler import sequential_batches
from mlops_img.data.sources.base import ImageSet
from mlops_img.data.sources.registry import open_source
from mlops_img.errors import UserError
from mlops_img.preprocessing.transforms import Preprocessing
from tests.helpers.paths import ROOT

PREPROCESSING = Preprocessing(64, 1.0, (0.5,) * 3, (0.25,) * 3)


@pytest.fixture
def images(shared_shapes: Path) -> ImageSet:
    """Return 60 images."""
    return open_source(FolderConfig(root=str(shared_shapes))).table().splits["train"]


def read_all(images: ImageSet, workers: int) -> list[Batch]:
    return list(make_loader(images, PREPROCESSING.crop, sequential_batches(60, 8), workers=workers))


def assert_equal(batches: list[Batch], expected: list[Batch]) -> None:
    assert len(batches) == len(expected)
    for one, other in zip(batches, expected, strict=True):
        assert torch.equal(one.images, other.images)
        assert one.images.stride() == other.images.stride()
        assert torch.equal(one.labels, other.labels)
        assert torch.equal(one.rows, other.rows)
        assert one.bad == other.bad


def test_batch_is_sent_through_a_pipe_if_shared_memory_is_full(
    images: ImageSet, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*arguments: Any) -> None:
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)")

    alone = read_all(images, 0)
    transfer._warn_once.cache_clear()
    monkeypatch.setattr(ForkingPickler, "dumps", full_for_batches(full))
    assert_equal(read_all(images, 2), alone)
    [warning] = [record.message for record in caplog.records if record.name == "mlops_img.data.transfer"]
    assert "(No space left on device (28))" in warning
    assert "--shm-size" in warning


def full_for_batches(full: Any) -> Any:
    """Return a `dumps` that fails for batches, as with a full /dev/shm, and works for everything else."""
    real = ForkingPickler.dumps

    def dumps(value: Any, protocol: int | None = None) -> Any:
        return full() if isinstance(value, Batch) else real(value, protocol)

    return dumps


def test_pickled_call_unpickles_as_the_result_of_the_call() -> None:
    assert pickle.loads(pickle.dumps(transfer.PickledCall(max, 1, 2))) == 2


def test_images_are_read_in_this_process_if_locks_cannot_be_allocated(
    images: ImageSet, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full() -> None:
        raise OSError(28, "No space left on device")

    alone = read_all(images, 0)
    monkeypatch.setattr(multiprocessing, "Lock", full)
    assert_equal(read_all(images, 2), alone)
    assert "workers cannot be started (No space left on device)" in caplog.text


def test_killed_worker_is_a_user_error(images: ImageSet) -> None:
    def batches() -> Iterator[Batch]:
        loader = make_loader(images, kill_this_process, sequential_batches(60, 8), workers=1)
        yield from loader

    with pytest.raises(UserError, match=r"a data loader worker was killed .*data.workers="):
        list(handle_bad_images(batches(), images, None))


def kill_this_process(image: Any) -> torch.Tensor:
    """Kill this process, as the kernel does when memory runs out."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def can_mount() -> bool:
    """Return whether this process may mount a file system in its own namespace."""
    try:
        return subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


@pytest.mark.skipif(not can_mount(), reason="unshare -m is not permitted here")
@pytest.mark.parametrize("size", ["1m", "4k"])
def test_batches_are_equal_with_a_small_dev_shm(shared_shapes: Path, tmp_path: Path, size: str) -> None:
    script = tmp_path / "read.py"
    script.write_text(
        "import sys\n"
        "from pathlib import Path\n"
        "from tests.data.test_transfer import FolderConfig, assert_equal, open_source, sequential_batches\n"
        "from tests.data.test_transfer import Preprocessing, make_loader\n"
        f"images = open_source(FolderConfig(root={str(shared_shapes)!r})).table().splits['train']\n"
        "crop = Preprocessing(224, 1.0, (0.5,) * 3, (0.25,) * 3).crop\n"
        "one, other = (list(make_loader(images, crop, sequential_batches(60, 10), workers=n)) for n in (0, 2))\n"
        "assert_equal(one, other)\n"
        "print('equal')\n"
    )
    mount = f"mount -t tmpfs -o size={size} tmpfs /dev/shm"
    result = subprocess.run(
        ["unshare", "-m", "sh", "-c", f'{mount} && exec "$0" "$1"', sys.executable, str(script)],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    if "mount:" in result.stderr:
        pytest.skip("mount is not permitted here")
    assert result.stdout == "equal\n", result.stderr
    assert "Traceback" not in result.stderr
