"""Tests of checkpoints: content, which ones are kept, and a full disk."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest
import torch
from timm.utils.model_ema import ModelEmaV3
from torch import nn

from mlops_img.errors import UserError
from mlops_img.runs.checkpoint import (
    Checkpoints,
    TrainState,
    newest_valid,
    read_checkpoint,
    step_checkpoints,
)

ABOUT = {"classes": ["cat", "dog"], "fingerprint": "abc", "config": {"seed": 0, "train": {"ema_decay": None}}}


def new_state(*, ema: bool = False, seed: int = 0) -> TrainState:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
    return TrainState(
        model=model,
        optimizer=torch.optim.AdamW(model.parameters(), lr=0.01),
        scaler=torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=2),
        ema=ModelEmaV3(model, decay=0.9) if ema else None,
    )


def train(state: TrainState, steps: int) -> None:
    """Take real optimizer steps on random inputs seeded by the step."""
    for _ in range(steps):
        torch.manual_seed(state.step)
        loss = state.model(torch.randn(4, 6)).square().mean()
        state.scaler.scale(loss).backward()
        state.scaler.step(state.optimizer)
        state.scaler.update()
        state.optimizer.zero_grad()
        if state.ema is not None:
            state.ema.update(state.model)
        state.step += 1
        state.epoch_loss += loss.detach()


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return bool(one == other)


def steps_in(folder: Path) -> list[str]:
    return [path.name for path in step_checkpoints(folder)]


def three_checkpoints(tmp_path: Path) -> Path:
    """Save checkpoints of steps 1, 2 and 3, and return their folder."""
    state = new_state()
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=3, about=ABOUT)
    for _ in range(3):
        train(state, 1)
        checkpoints.save(state)
    return checkpoints.folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return three_checkpoints(tmp_path)


# Content


@pytest.mark.parametrize("ema", [False, True])
def test_restored_state_is_equal_and_trains_identically(ema: bool, tmp_path: Path) -> None:
    state = new_state(ema=ema)
    train(state, 5)
    state.best, state.best_epoch, state.improved_epoch = 0.75, 3, 2
    state.seconds, state.tracking_id = 12.5, "abc123"
    checkpoints = Checkpoints(tmp_path, keep=1, about=ABOUT)
    checkpoints.save(state)

    restored = new_state(ema=ema, seed=1)
    content = newest_valid(tmp_path)
    assert content is not None
    assert {key: content[key] for key in ABOUT} == ABOUT
    restored.load_dict(content)
    assert equal(restored.to_dict(), state.to_dict())
    assert restored.scaler.get_scale() != 8.0  # the state of the scaler is restored
    for one in (state, restored):
        train(one, 5)
    assert equal(restored.to_dict(), state.to_dict())


def test_restoring_keeps_the_current_options_of_the_optimizer(tmp_path: Path) -> None:
    state = new_state()
    train(state, 2)
    Checkpoints(tmp_path, keep=1, about=ABOUT).save(state)
    other = new_state()
    other.optimizer = torch.optim.AdamW(other.model.parameters(), lr=0.01, weight_decay=0.5, betas=(0.8, 0.9))
    other.load_dict(read_checkpoint(tmp_path / "step-00000002.pt"))
    group = other.optimizer.param_groups[0]
    assert (group["weight_decay"], group["betas"]) == (0.5, (0.8, 0.9))
    assert equal(other.optimizer.state_dict()["state"], state.optimizer.state_dict()["state"])


def test_moving_average_and_loss_scale_missing_in_the_checkpoint_start_fresh() -> None:
    before = new_state()
    before.scaler = torch.amp.GradScaler("cpu", enabled=False)
    train(before, 2)
    state = new_state(ema=True, seed=1)
    state.load_dict(before.to_dict())
    assert state.ema is not None
    assert equal(dict(state.ema.module.state_dict()), dict(before.model.state_dict()))
    assert state.scaler.get_scale() == 8.0


def test_best_checkpoint_holds_the_evaluated_weights(tmp_path: Path) -> None:
    state = new_state(ema=True)
    train(state, 5)
    assert state.ema is not None
    assert state.evaluated_model is state.ema.module
    Checkpoints(tmp_path, keep=1, about=ABOUT).save_best(state, {"top1": 0.5})
    best = read_checkpoint(tmp_path / "best.pt")
    assert equal(best["model"], dict(state.ema.module.state_dict()))
    assert not equal(best["model"], dict(state.model.state_dict()))
    assert (best["step"], best["metrics"], best["classes"]) == (5, {"top1": 0.5}, ["cat", "dog"])
    assert "optimizer" not in best


def test_newest_checkpoints_and_the_best_one_are_kept(tmp_path: Path) -> None:
    state = new_state()
    checkpoints = Checkpoints(tmp_path, keep=2, about=ABOUT)
    for _ in range(4):
        train(state, 1)
        checkpoints.save(state)
        if state.step == 1:
            checkpoints.save_best(state, {})
    assert steps_in(tmp_path) == ["step-00000004.pt", "step-00000003.pt"]
    assert read_checkpoint(tmp_path / "best.pt")["step"] == 1


def test_checkpoints_are_sorted_by_step_number(tmp_path: Path) -> None:
    for name in ("step-99999999.pt", "step-100000000.pt", "step-x.pt", ".step-00000005.pt.77.part", "best.pt"):
        (tmp_path / name).touch()
    assert steps_in(tmp_path) == ["step-100000000.pt", "step-99999999.pt"]


def test_saving_deletes_checkpoints_of_later_steps(folder: Path) -> None:
    (folder / "step-00000003.pt").write_bytes(b"damaged")
    content = newest_valid(folder)
    state = new_state()
    assert content is not None
    state.load_dict({**content, "step": 1})
    Checkpoints(folder, keep=1, about=ABOUT).save(state)
    assert steps_in(folder) == ["step-00000001.pt"]


def test_diverged_weights_are_not_saved(folder: Path) -> None:
    state = new_state()
    state.step = 4
    with torch.no_grad():
        next(state.model.parameters())[0, 0] = float("inf")
    with pytest.raises(UserError, match=r"weights after step 4 are not finite"):
        Checkpoints(folder, keep=1, about=ABOUT).save(state)
    assert len(steps_in(folder)) == 3


# Full disk


class FullDisk:
    """A file on a disk with `room` free bytes."""

    def __init__(self, file: IO[bytes], room: int) -> None:
        self.file, self.room = file, room

    def write(self, content: bytes) -> int:
        self.room -= len(content)
        if self.room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self.file.write(content)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


@pytest.mark.parametrize("room", [0, 100, 3000])
def test_full_disk_keeps_earlier_checkpoints(room: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    save = torch.save
    monkeypatch.setattr(torch, "save", lambda content, file: save(content, FullDisk(file, room)))
    state = new_state()
    state.step = 4
    with pytest.raises(UserError, match=r"step-00000004\.pt could not be written: No space left.*step-00000003\.pt is"):
        Checkpoints(folder, keep=2, about=ABOUT).save(state)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_other_errors_while_saving_are_raised_unchanged(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(content: object, file: object) -> None:
        raise RuntimeError("not a disk error")

    monkeypatch.setattr(torch, "save", broken)
    with pytest.raises(RuntimeError, match="not a disk error"):
        Checkpoints(folder, keep=2, about=ABOUT).save(new_state())


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path | None]:
    """Mount a file system of 96 KiB and yield it, or None without the permission to mount."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=96k", "tmpfs", str(place)]
    try:
        mounted = subprocess.run(mount, capture_output=True, timeout=10).returncode == 0
    except OSError:
        mounted = False
    yield place if mounted else None
    if mounted:
        subprocess.run(["umount", str(place)], check=True, timeout=10)


def test_full_file_system_keeps_a_valid_checkpoint(small_disk: Path | None, tmp_path: Path) -> None:
    # Without the permission to mount, the limit on the file size (RLIMIT_FSIZE) makes the write fail.
    folder = small_disk or tmp_path / "limited"
    program = f"""
        import resource, signal, sys, torch
        from pathlib import Path
        from torch import nn
        from mlops_img.errors import UserError
        from mlops_img.runs.checkpoint import Checkpoints, TrainState, newest_valid

        def state(width):
            model = nn.Linear(width, 100)
            return TrainState(model, torch.optim.SGD(model.parameters(), lr=0.1), torch.amp.GradScaler("cpu"), None)

        if {small_disk is None}:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, 2**16))
        checkpoints = Checkpoints(Path({str(folder)!r}), keep=2, about={{}})
        small, large = state(10), state(300)
        small.step, large.step = 1, 2
        checkpoints.save(small)
        try:
            checkpoints.save(large)
        except UserError as error:
            print(error)
            print(newest_valid(checkpoints.folder)["step"], sorted(path.name for path in checkpoints.folder.iterdir()))
    """
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=600, cwd=os.getcwd()
    )
    assert result.returncode == 0, result.stderr
    message, left = result.stdout.splitlines()
    assert "step-00000002.pt could not be written: " in message
    assert ("No space left on device" if small_disk else "File too large") in message
    assert left == "1 ['step-00000001.pt']"
