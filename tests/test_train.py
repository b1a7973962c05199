"""A training from the command line to its report, and going on with it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import Outcome

Train = Callable[..., Outcome]


def read_metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def newest(run: Path) -> dict[str, Any]:
    path = sorted((run / "checkpoints").glob("step-*.pt"))[-1]
    return torch.load(path, weights_only=True)


def test_run_folder_is_complete(train: Train, tmp_path: Path) -> None:
    outcome = train("hydra.run.dir=runs/a")
    assert outcome.code == 0, outcome.err
    run = tmp_path / "runs" / "a"
    for name in (
        "config.yaml",
        "provenance.json",
        "metrics.jsonl",
        "summary.json",
        "report/index.html",
        "report/confusion.png",
        "checkpoints/best.pt",
        "evaluation/test.json",
        "evaluation/val.json",
        ".hydra/overrides.yaml",
    ):
        assert (run / name).is_file(), name
    assert (tmp_path / "runs" / "latest").resolve() == run
    summary = json.loads((run / "summary.json").read_text())
    for key in ("test.top1", "test.f1_macro", "test.loss", "wall_seconds", "images_per_second"):
        assert isinstance(summary[key], float), key
    provenance = json.loads((run / "provenance.json").read_text())
    assert provenance["packages"]["torch"] == torch.__version__.split("+")[0]
    assert len(provenance["data"]["fingerprint"]) == 32
