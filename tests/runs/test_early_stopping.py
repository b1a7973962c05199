"""Tests of early stopping and of the epoch whose checkpoint is the best."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from mlops_img.errors import EXIT_STOPPED
from mlops_img.runs.checkpoint import read_checkpoint
from tests.helpers.commands import Outcome
from tests.helpers.stopped_runs import metrics, stop_after

Train = Callable[..., Outcome]
pytestmark = pytest.mark.usefixtures("no_pictures")


def test_early_stopped_run_is_not_trained_further_by_resume(train: Train, tmp_path: Path) -> None:
    settings = (
        "train.epochs=20",
        "optim.lr=1e-12",
        "train.early_stopping_patience=2",
        "hydra.run.dir=runs/a",
    )
    assert train(*settings).code == 0
    summary = json.loads((tmp_path / "runs/a/summary.json").read_text())
    lines = [json.loads(line) for line in (tmp_path / "runs/a/metrics.jsonl").read_text().splitlines()]
    top1 = [line["top1"] for line in lines if line["split"] == "val"]
    first, last = top1.index(max(top1)) + 1, len(top1) - top1[::-1].index(max(top1))
    assert summary["steps"] == 6 * (first + 2) < 120  # 6 steps per epoch
    assert summary["best_epoch"] == last  # the last one of equal epochs
    assert train(*settings, "resume=auto").code == 0
    assert json.loads((tmp_path / "runs/a/summary.json").read_text())["steps"] == summary["steps"]


@pytest.mark.parametrize(
    ("settings", "kept", "epochs"),
    [((), 1, 4), (("train.select=last",), 4, 4), (("train.select=last", "train.early_stopping_patience=2"), 3, 3)],
)
def test_train_select_chooses_the_epoch_of_the_best_checkpoint(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: tuple[str, ...], kept: int, epochs: int
) -> None:
    falling = iter((0.9, 0.8, 0.7, 0.6))
    monkeypatch.setattr("mlops_img.training.hooks.summarize", lambda predictions: {"top1": next(falling), "loss": 1.0})
    assert train("train.epochs=4", "hydra.run.dir=runs/a", *settings).code == 0
    summary = json.loads((tmp_path / "runs/a/summary.json").read_text())
    assert (summary["best_epoch"], summary["steps"]) == (kept, 6 * epochs)  # 6 steps per epoch
    assert read_checkpoint(tmp_path / "runs/a/checkpoints/best.pt")["step"] == 6 * kept


def test_patience_does_not_count_an_interrupted_epoch(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ("train.epochs=20", "optim.lr=1e-12", "train.early_stopping_patience=2")
    assert train(*settings, "hydra.run.dir=runs/whole").code == 0
    steps = json.loads((tmp_path / "runs/whole/summary.json").read_text())["steps"]
    with monkeypatch.context() as patch:
        stop_after(steps - 2, patch)
        assert train(*settings, "hydra.run.dir=runs/cut").code == EXIT_STOPPED
    assert train(*settings, "hydra.run.dir=runs/cut", "resume=auto").code == 0
    assert metrics(tmp_path / "runs/whole") == metrics(tmp_path / "runs/cut")
