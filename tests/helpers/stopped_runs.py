"""Runs that stop after a step, and their metrics."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mlops_img.training.hooks import RunHooks

TIMINGS = {"images_per_second", "data_wait_seconds", "memory_gb"}


def stop_after(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RunHooks, "stop_requested", lambda hooks: hooks.setup.state.step >= step)


def metrics(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMINGS} for line in lines]
