"""Tests of tracking with Weights & Biases, offline."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from packaging.version import Version

from mlops_img.config.train import TrackingConfig
from mlops_img.errors import EXIT_STOPPED
from mlops_img.runs.tracking import NoTracker, WandbTracker, start_tracker
from mlops_img.training.hooks import RunHooks
from tests.helpers.commands import Outcome

Train = Callable[..., Outcome]


def inspect_run(run: Path) -> str:
    """Return the records of an offline W&B run as text, read by the W&B command line, which can since 0.31."""
    paths = sorted((run / "wandb").glob("offline-run-*/run-*.wandb"))
    if Version(importlib.metadata.version("wandb")) < Version("0.31"):
        return "\n".join(path.read_text(errors="replace") for path in paths)  # names stand there as they are
    texts = []
    for path in paths:
        command = [Path(sys.executable).parent / "wandb", "leet", "inspect", "--json", path]
        texts.append(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return "\n".join(texts)


def test_offline_run_records_metrics_config_images_and_model(train: Train, tmp_path: Path) -> None:
    outcome = train("tracking=wandb", "hydra.run.dir=runs/a", "train.log_every_steps=1")
    assert outcome.code == 0, outcome.err
    recorded = inspect_run(tmp_path / "runs/a")
    images = ("training_samples", "report/confusion", "report/mistakes")
    for name in ("train/loss", "val/top1", "optim", *images, "best.pt", "config.yaml"):
        assert name in recorded, name
    # nothing is staged outside the run folder
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runs"]


def test_resumed_run_continues_its_wandb_run(train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(RunHooks, "stop_requested", lambda hooks: hooks.setup.state.step >= 3)
        assert train("tracking=wandb", "hydra.run.dir=runs/a").code == EXIT_STOPPED
    assert train("tracking=wandb", "hydra.run.dir=runs/a", "resume=auto").code == 0
    ids = {path.name.split("-", 1)[1] for path in (tmp_path / "runs/a/wandb").glob("offline-run-*/run-*.wandb")}
    assert len(ids) == 1


def test_missing_key_logs_one_warning_and_records_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    with caplog.at_level(logging.WARNING):
        tracker = start_tracker(TrackingConfig(), tmp_path, {}, None)
    tracker.finish({})
    [warning] = [record.message for record in caplog.records if record.name == "mlops_img.runs.tracking"]
    assert "W&B: no key" in warning
    assert list((tmp_path / "wandb").glob("offline-run-*"))


def test_unreachable_server_logs_a_warning_and_records_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setattr("mlops_img.runs.tracking.INIT_TIMEOUT_SECONDS", 5)
    with caplog.at_level(logging.WARNING):
        tracker = start_tracker(TrackingConfig(), tmp_path, {}, None)
    tracker.log({"a": 1.0}, step=1)
    tracker.finish({})
    assert "W&B cannot be reached" in caplog.text
    assert list((tmp_path / "wandb").glob("offline-run-*"))


def test_failing_tracker_logs_one_warning_and_does_not_raise(caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        id = "x"

        def log(self, *arguments: Any, **options: Any) -> None:
            raise OSError("no space")

    tracker = WandbTracker(Broken())
    with caplog.at_level(logging.WARNING):
        for step in range(3):
            tracker.log({"loss": 1.0}, step=step)
        tracker.finish({})
    [warning] = [record.message for record in caplog.records if record.name == "mlops_img.runs.tracking"]
    assert warning == "W&B failed (no space); metrics are written to metrics.jsonl only"


def test_tracking_none_records_nothing(tmp_path: Path, train: Train) -> None:
    assert isinstance(start_tracker(TrackingConfig(name="none"), tmp_path, {}, None), NoTracker)
    assert train("tracking=none", "hydra.run.dir=runs/a", "train.max_steps=1").code == 0
    assert not list(tmp_path.rglob("wandb"))
    assert json.loads((tmp_path / "runs/a/summary.json").read_text())["steps"] == 1
