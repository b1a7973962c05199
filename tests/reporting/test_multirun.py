"""Tests of multiruns: job folders, failed jobs, and the ranking."""

from __future__ import annotations

import csv
import gc
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mlops_img.reporting.folds import cross_validations
from mlops_img.reporting.multirun import format_table, rank_jobs
from tests.helpers.commands import Outcome

Train = Callable[..., Outcome]


def test_multirun_with_a_failed_job_runs_and_ranks_the_others(train: Train, tmp_path: Path) -> None:
    outcome = train("-m", "train.epochs=1", "train.max_steps=2", "optim.lr=1e-2,-1,1e-3")
    assert outcome.code == 2, "the exit code is that of the failed job"
    [folder] = [path for path in (tmp_path / "runs").iterdir() if path.name.startswith("multirun-")]
    jobs = sorted(path.name for path in folder.iterdir() if path.is_dir())
    assert jobs == ["0", "1", "2"]
    assert (folder / "0" / "report" / "index.html").is_file()
    assert (folder / "2" / "report" / "index.html").is_file(), "the job after the failed one ran"
    assert "optim.lr=-1: it must be more than 0" in (folder / "1" / "error.txt").read_text()
    assert "optim.lr=-1: it must be more than 0" in (folder / "1" / "train.log").read_text()

    rows = list(csv.DictReader((folder / "summary.csv").open()))
    assert [row["status"] for row in rows] == ["ok", "ok", "failed"]
    assert float(rows[0]["value"]) >= float(rows[1]["value"])
    assert rows[2]["job"] == "1"
    assert (folder / "summary.png").stat().st_size > 1000
    for text in ("val.top1", "optim.lr=0.01", "it must be more than 0"):
        assert text in outcome.out
    assert (tmp_path / "runs" / "latest").resolve().parent == folder


def test_jobs_release_their_models(train: Train) -> None:
    def parameters() -> int:
        gc.collect()
        return sum(isinstance(thing, torch.nn.Parameter) for thing in gc.get_objects())

    before = parameters()
    assert train("-m", "train.epochs=1", "train.max_steps=1", "seed=0,1").code == 0
    assert parameters() <= before


def test_failed_job_releases_its_model(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlops_img.training import run

    def parameters() -> int:
        gc.collect()
        return sum(isinstance(thing, torch.nn.Parameter) for thing in gc.get_objects())

    before = parameters()
    seen: list[int] = []
    announce = run._announce

    def fail_first(setup: object, folder: object) -> None:
        seen.append(parameters() - before)
        if len(seen) == 1:
            raise RuntimeError("boom")
        announce(setup, folder)  # type: ignore[arg-type]

    monkeypatch.setattr(run, "_announce", fail_first)
    assert train("-m", "train.epochs=1", "train.max_steps=1", "seed=0,1").code == 1
    assert seen[0] > 0
    assert seen[1] == seen[0], "the model of the failed job is released before the next job"


def test_loss_is_ranked_in_ascending_order(tmp_path: Path) -> None:
    for job, value in enumerate((0.5, 0.2, 0.9)):
        folder = tmp_path / str(job)
        (folder / ".hydra").mkdir(parents=True)
        (folder / ".hydra" / "overrides.yaml").write_text(f"- seed={job}\n")
        (folder / ".hydra" / "config.yaml").write_text("optimized_metric: val.loss\n")
        (folder / "summary.json").write_text(
            f'{{"val.loss": {value}, "test.top1": 0.5, "test.f1_macro": 0.5, "wall_seconds": 3.0}}'
        )
    (tmp_path / "3" / ".hydra").mkdir(parents=True)
    (tmp_path / "3" / ".hydra" / "overrides.yaml").write_text("[]\n")
    (tmp_path / "3" / ".hydra" / "config.yaml").write_text("optimized_metric: val.loss\n")
    rows = rank_jobs(tmp_path)
    assert [row["job"] for row in rows] == ["1", "0", "2", "3"]
    assert [row["rank"] for row in rows] == [1, 2, 3, ""]
    assert rows[3]["status"] == "unfinished"
    assert "0.2000" in format_table(rows).splitlines()[1]


def test_ranking_shows_intervals_of_accuracies(tmp_path: Path) -> None:
    interval = ', "val.top1_interval": [0.81, 0.97], "test.top1_interval": [0.76, 0.94]'
    for job, more in (("0", interval), ("1", "")):  # earlier versions did not write intervals
        folder = tmp_path / job
        (folder / ".hydra").mkdir(parents=True)
        (folder / ".hydra" / "overrides.yaml").write_text("[]\n")
        (folder / ".hydra" / "config.yaml").write_text("optimized_metric: val.top1\n")
        (folder / "summary.json").write_text(
            f'{{"val.top1": 0.9, "test.top1": 0.87, "test.f1_macro": 0.5, "wall_seconds": 3.0{more}}}'
        )
    rows = rank_jobs(tmp_path)
    assert (rows[0]["value_low"], rows[0]["value_high"], rows[0]["test.top1_low"]) == (0.81, 0.97, 0.76)
    head, first, second = format_table(rows).splitlines()
    assert "val.top1 (95 % interval)  test top-1 (95 % interval)" in head
    assert "0.9000 (0.8100 to 0.9700)   0.8700 (0.7600 to 0.9400)" in first
    assert "0.8700" in second
    assert "(" not in second


def test_return_value_is_the_optimized_metric(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    import json

    from mlops_img import train as module

    returned: list[float] = []
    original = module.train
    monkeypatch.setattr(module, "train", lambda config: returned.append(original(config)) or returned[-1])
    assert train("optimized_metric=val.f1_macro", "hydra.run.dir=runs/a", "train.epochs=1").code == 0
    summary = json.loads(Path("runs/a/summary.json").read_text())
    assert returned == [summary["val.f1_macro"]]


def test_folds_are_put_together(train: Train, tmp_path: Path) -> None:
    outcome = train("-m", "train.epochs=1", "train.max_steps=2", "data.folds=3", "data.fold=range(3)")
    assert outcome.code == 0, outcome.err
    [folder] = [path for path in (tmp_path / "runs").iterdir() if path.name.startswith("multirun-")]
    rows = list(csv.DictReader((folder / "out_of_fold.csv").open()))
    validated = [row["path"] for row in rows]
    jobs = [list(csv.DictReader((folder / str(job) / "evaluation" / "val_predictions.csv").open())) for job in range(3)]
    assert len(set(validated)) == len(validated) == sum(map(len, jobs))
    assert max(map(len, jobs)) - min(map(len, jobs)) <= 1
    names = list(rows[0])[3:]
    for row in rows:
        probabilities = [float(row[name]) for name in names]
        assert sum(probabilities) == pytest.approx(1, abs=1e-4)
        assert names[probabilities.index(max(probabilities))] == row["predicted"]
    right = sum(row["label"] == row["predicted"] for row in rows) / len(rows)
    assert f"out of fold: top-1 {right:.4f} (95 % interval" in outcome.out
    assert "3 folds: val.top1 mean 0." in outcome.out
    assert (folder / "out_of_fold.png").stat().st_size > 1000


def test_mean_and_standard_deviation_are_those_of_the_folds_of_one_setting() -> None:
    def job(overrides: str, value: float, status: str = "ok") -> dict[str, object]:
        return {"overrides": overrides, "value": value, "status": status, "metric": "val.top1", "test.top1": None}

    rows = [
        job("optim.lr=1 data.fold=0", 0.5),
        job("optim.lr=1 data.fold=1", 0.7),
        job("optim.lr=2 data.fold=0", 0.9),
        job("optim.lr=2 data.fold=1", 0.0, status="failed"),
        job("optim.lr=3", 0.1),
    ]
    [found] = cross_validations(rows)
    assert found.describe() == "2 folds of optim.lr=1: val.top1 mean 0.6000, sd 0.1414"
