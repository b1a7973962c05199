"""Runs that stop after a step, and their metrics."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from mlops_img.errors import EXIT_STOPPED
from mlops_img.training.hooks import RunHooks
from tests.helpers.commands import Outcome

TIMINGS = {"images_per_second", "data_wait_seconds", "memory_gb"}


def stop_after(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RunHooks, "stop_requested", lambda hooks: hooks.setup.state.step >= step)


def metrics(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMINGS} for line in lines]


def assert_resumed_equals_whole(
    train: Callable[..., Outcome], settings: Sequence[str], step: int, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Train without a stop, and with a stop after a step and a resume: both must record the same metrics."""
    assert train(*settings, f"hydra.run.dir={runs}/whole").code == 0
    with monkeypatch.context() as patch:
        stop_after(step, patch)
        assert train(*settings, f"hydra.run.dir={runs}/cut").code == EXIT_STOPPED
    assert train(*settings, f"hydra.run.dir={runs}/cut", "resume=auto").code == 0
    assert metrics(runs / "whole") == metrics(runs / "cut")
