"""Tests of resumed runs, which give the same result as uninterrupted ones."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mlops_img.errors import EXIT_STOPPED
from tests.helpers.commands import TINY, Outcome
from tests.helpers.paths import ROOT
from tests.helpers.shapes import SHAPES, write_shapes
from tests.helpers.shared_bundle import once, unmeasured
from tests.helpers.stopped_runs import metrics, stop_after

Train = Callable[..., Outcome]
pytestmark = pytest.mark.usefixtures("no_pictures")

# 36 training images in batches of 8: 4 steps per epoch, 12 steps in total. All sources of randomness are enabled.
RANDOM = (
    "train.epochs=3",
    "augment=strong",
    "augment.alternate_hflip=true",
    "train.resolution=[24,32]",
    "train.resolution_step=8",
    "model.drop_path_rate=0.2",
    "model.drop_rate=0.2",
    "train.ema_decay=0.9",
    "data.val_fraction=0.2",
    "data.test_fraction=0.2",
    "train.checkpoint_every_steps=3",
    "train.log_every_steps=1",
)


def content(run: Path) -> dict[str, Any]:
    return torch.load(sorted((run / "checkpoints").glob("step-*.pt"))[-1], weights_only=True)


def evaluation(run: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((run / "evaluation/test.json").read_text())
    for mistake in result["mistakes"]:
        mistake["path"] = Path(mistake["path"]).parts[-2:]  # another process may have made `whole`, on a copy
    return result


def assert_same(one: Any, other: Any, place: str = "") -> None:
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), place
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), place
        for key in one:
            if key not in ("seconds", "config"):
                assert_same(one[key], other[key], f"{place}.{key}")
    else:
        assert one == other, place


@pytest.fixture
def whole(train: Train, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an uninterrupted run of `RANDOM`. Read-only."""

    def make(root: Path) -> None:
        assert train(*RANDOM, f"hydra.run.dir={root}/run").code == 0

    return once(tmp_path_factory, "uninterrupted", make) / "run"


@pytest.fixture
def stopped(train: Train, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return runs/a, a copy of a run that stopped after its first step, which the test may resume."""

    def make(root: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            stop_after(1, patch)
            assert train(f"hydra.run.dir={root}/run").code == EXIT_STOPPED

    return Path(shutil.copytree(once(tmp_path_factory, "stopped", make) / "run", tmp_path / "runs" / "a"))


@pytest.mark.parametrize(("step", "workers"), [(2, 0), (4, 1), (6, 2)])
def test_resumed_run_equals_uninterrupted_run(
    train: Train, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, workers: int
) -> None:
    with monkeypatch.context() as patch:
        stop_after(step, patch)
        assert train(*RANDOM, "hydra.run.dir=runs/cut").code == EXIT_STOPPED
    outcome = train(*RANDOM, "hydra.run.dir=runs/cut", "resume=auto", f"data.workers={workers}")
    assert outcome.code == 0, outcome.err
    cut = tmp_path / "runs/cut"
    assert_same(content(whole), content(cut))
    assert metrics(whole) == metrics(cut)
    assert evaluation(whole) == evaluation(cut)


def test_resume_restores_the_original_settings(
    train: Train, command: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        stop_after(3, patch)
        assert train("optim.lr=0.003").code == EXIT_STOPPED
    assert command("mlops_img.train", "resume=auto").code == 0
    [run] = [path for path in (tmp_path / "runs").iterdir() if not path.is_symlink()]
    assert "lr: 0.003" in (run / "config.yaml").read_text()
    assert json.loads((run / "summary.json").read_text())["steps"] == content(run)["step"] == 12


def test_resume_skips_a_damaged_checkpoint(
    train: Train, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        stop_after(7, patch)
        assert train(*RANDOM, "hydra.run.dir=runs/cut").code == EXIT_STOPPED
    newest = sorted((tmp_path / "runs/cut/checkpoints").glob("step-*.pt"))[-1]
    damaged = bytearray(newest.read_bytes())
    damaged[len(damaged) // 2] ^= 0xFF
    newest.write_bytes(damaged)
    outcome = train(*RANDOM, "hydra.run.dir=runs/cut", "resume=auto")
    assert outcome.code == 0
    assert f"{newest.name} is damaged" in outcome.out
    assert_same(content(whole), content(tmp_path / "runs/cut"))
    assert metrics(whole) == metrics(tmp_path / "runs/cut")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("model.name=test_resnet.r160_in1k", "model.name: test_resnet -> test_resnet.r160_in1k"),
        ("model.drop_rate=0.5", "model.drop_rate: 0.0 -> 0.5"),
        ("train.batch_size=4", "train.batch_size: 8 -> 4"),
        ("seed=7", "seed: 0 -> 7"),
        ("data.split_seed=3", "data: other images"),
    ],
)
def test_resume_rejects_incompatible_changes(train: Train, stopped: Path, change: str, message: str) -> None:
    outcome = train(change, "hydra.run.dir=runs/a", "resume=auto")
    assert outcome.code == 2
    assert message in outcome.err
    assert train("hydra.run.dir=runs/a", "resume=auto").code == 0, "the rejected attempt did not change the run"


def test_keys_that_are_newer_than_the_checkpoint_count_as_unchanged(train: Train, stopped: Path) -> None:
    for path in (stopped / "checkpoints").glob("*.pt"):
        content = torch.load(path, weights_only=True)
        del content["config"]["augment"]["alternate_hflip"], content["config"]["distill"]
        torch.save(content, path)
    outcome = train("hydra.run.dir=runs/a", "resume=auto")
    assert outcome.code == 0, outcome.err
    assert "changed since" not in outcome.out
    assert "resuming after step 1" in outcome.out


def test_existing_run_is_not_overwritten(train: Train, tmp_path: Path) -> None:
    assert train("hydra.run.dir=runs/a").code == 0
    before = metrics(tmp_path / "runs/a")
    outcome = train("hydra.run.dir=runs/a", "optim.lr=0.1")
    assert outcome.code == 2
    assert "runs/a holds a run already. Resume it with resume=auto" in outcome.err
    assert metrics(tmp_path / "runs/a") == before


def test_resume_of_a_missing_run_is_an_error(train: Train) -> None:
    outcome = train("resume=runs/none")
    assert outcome.code == 2
    assert "resume=runs/none: there is no such run" in outcome.err


def test_resume_restores_the_config_folder_of_the_run(
    command: Train, train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "mine" / "experiment"
    folder.mkdir(parents=True)
    (folder / "own.yaml").write_text("# @package _global_\noptim:\n  lr: 0.004\n")
    with monkeypatch.context() as patch:
        stop_after(3, patch)
        assert train("--config-dir", "mine", "experiment=own").code == EXIT_STOPPED
    outcome = command("mlops_img.train", "resume=auto")
    assert outcome.code == 0, outcome.err
    assert "lr: 0.004" in (tmp_path / "runs/latest/config.yaml").read_text()


def test_resume_does_not_need_the_initial_weights(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert train("hydra.run.dir=runs/a").code == 0
    weights = tmp_path / "weights.pt"
    weights.write_bytes((tmp_path / "runs/a/checkpoints/best.pt").read_bytes())
    with monkeypatch.context() as patch:
        stop_after(3, patch)
        assert train(f"model.weights={weights}", "hydra.run.dir=runs/b").code == EXIT_STOPPED
    weights.unlink()
    assert train(f"model.weights={weights}", "hydra.run.dir=runs/b", "resume=auto").code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["resume=photos"], "resume=photos: there is no such run"),
        (["resume=runs/a", "hydra.run.dir=runs/b"], "name two runs"),
    ],
)
def test_resume_of_a_wrong_folder_is_an_error(train: Train, tmp_path: Path, arguments: list[str], message: str) -> None:
    (tmp_path / "photos").mkdir()
    outcome = train(*arguments)
    assert outcome.code == 2
    assert message in outcome.err


def test_images_skipped_before_a_stop_are_counted_after_resume(
    train: Train, shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for split in ("val", "test"):
        write_shapes(shapes / split, 3, seed=len(split))
    (shapes / "train").mkdir()
    for kind in SHAPES:
        (shapes / kind).rename(shapes / "train" / kind)
    (shapes / "train" / "circle" / "000.jpg").write_bytes(b"damaged")
    settings = (f"data.root={shapes}", "data.on_bad_image=skip", "hydra.run.dir=runs/a", "train.max_steps=6")
    with monkeypatch.context() as patch:
        stop_after(5, patch)
        assert train(*settings).code == EXIT_STOPPED
    skipped = json.loads((tmp_path / "runs/a/skipped.json").read_text())
    assert train(*settings, "resume=auto").code == 0
    assert json.loads((tmp_path / "runs/a/summary.json").read_text())["skipped_train_images"] == len(skipped) == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_saves_a_checkpoint_and_exits_with_the_code_for_stopped_runs(
    shared_shapes: Path, tmp_path: Path, number: signal.Signals
) -> None:
    run = tmp_path / "runs" / "a"
    arguments = (
        *TINY,
        f"data.root={shared_shapes}",
        "train.epochs=10000",
        "data.workers=1",
        "hydra.run.dir=runs/a",
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "mlops_img.train", *(text for text in arguments if text != "train.epochs=2")],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**unmeasured(), "PYTHONPATH": str(ROOT)},
    )
    deadline = time.monotonic() + 600
    while not (run / "metrics.jsonl").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    if process.poll() is None:
        os.killpg(process.pid, number)  # also reaches the workers, like Ctrl-C in a terminal
    out, err = process.communicate(timeout=300)
    assert process.returncode == EXIT_STOPPED, out + err
    assert "Traceback" not in out + err
    assert content(run)["step"] > 0
