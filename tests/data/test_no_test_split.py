"""data.test_fraction=0: no image is held back for a test, and every result is labeled validation."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import mlops_img
from mlops_img.bundle.folder import read_bundle
from tests.helpers.commands import Outcome
from tests.helpers.shapes import SHAPES, write_shapes

Command = Callable[..., Outcome]
pytestmark = pytest.mark.usefixtures("no_pictures")


def test_a_run_says_what_was_split_from_what(train: Command, tmp_path: Path) -> None:
    for split, count in (("train", 10), ("val", 3)):
        write_shapes(tmp_path / "photos" / split, count, seed=count)
    outcome = train("data.root=photos", "train.max_steps=1", "hydra.run.dir=runs/a")
    assert outcome.code == 0, outcome.err
    origin = "split off train (data.test_fraction=0.1, data.split_seed=0)"
    assert f"val: 9 images given in photos/val; test: 3 images {origin}" in outcome.out
    run = tmp_path / "runs" / "a"
    assert json.loads((run / "provenance.json").read_text())["data"]["splits"] == {
        "train": {"images": 27, "kind": "given", "place": "photos/train"},
        "val": {"images": 9, "kind": "given", "place": "photos/val"},
        "test": {"images": 3, "kind": "split off train", "fraction": 0.1, "seed": 0},
    }
    assert origin in (run / "report" / "index.html").read_text()
    summary = json.loads((run / "summary.json").read_text())
    low, high = summary["test.top1_interval"]
    assert low <= summary["test.top1"] <= high
    assert f"test top-1 {summary['test.top1']:.4f} (95 % interval {low:.4f} to {high:.4f})" in outcome.out
    assert outcome.out.count("split has only 3 images: the 95 % interval of its top-1") == 1


def test_training_evaluation_and_export_without_a_test_split(train: Command, command: Command, tmp_path: Path) -> None:
    outcome = train("data.test_fraction=0", "hydra.run.dir=runs/a")
    assert outcome.code == 0, outcome.err
    assert "54 + 6 images (train, val)" in outcome.out
    assert "test: none (data.test_fraction=0)" in outcome.out
    last = outcome.out.splitlines()[-1]
    assert "val top-1 " in last
    assert " (no test split)" in last
    assert "test top-1" not in outcome.out

    run = tmp_path / "runs" / "a"
    summary = json.loads((run / "summary.json").read_text())
    assert not [key for key in summary if "test" in key]
    assert summary["val.top1_interval"][0] <= summary["val.top1"] <= summary["val.top1_interval"][1]
    assert not (run / "evaluation" / "test.json").exists()
    page = (run / "report" / "index.html").read_text()
    assert "Top-1, validation" in page
    assert "these figures are optimistic" in page

    outcome = command("mlops_img.evaluate", "run=runs/a")
    assert outcome.code == 2
    assert "split=test: this data set has no test split (data.test_fraction=0). Use split=val" in outcome.err
    assert outcome.err.count("\n") == 1
    outcome = command("mlops_img.evaluate", "run=runs/a", "split=val")
    assert outcome.code == 0, outcome.err
    low, high = summary["val.top1_interval"]
    assert f"{summary['val.top1']:.4f} (95 % interval {low:.4f} to {high:.4f})" in outcome.out

    exported = ("bundles=bundles", "quantize=none", "export.compile=false")
    outcome = command("mlops_img.export", "run=runs/a", *exported)
    assert outcome.code == 0, outcome.err
    assert f"{summary['val.top1']:.4f} ({low:.4f} to {high:.4f})" in outcome.out
    bundle = tmp_path / "bundles" / "latest"
    manifest = read_bundle(bundle)
    assert manifest.test == {}
    assert manifest.after.top1_interval == pytest.approx((low, high))
    assert {sample.label for sample in manifest.samples} == set(SHAPES)
    card = (bundle / "README.md").read_text()
    assert "There was no test split." in card
    assert "test, 0, none (data.test_fraction=0)." in card
    assert mlops_img.load(bundle).predict([next((tmp_path / "bundles/latest/samples").iterdir())])


def test_resume_and_repeat_without_a_test_split(train: Command, command: Command, tmp_path: Path) -> None:
    settings = ("data.test_fraction=0", "data.limit=24", "train.epochs=2")
    assert train(*settings, "hydra.run.dir=runs/whole").code == 0
    assert train(*settings, "hydra.run.dir=runs/cut", "train.max_steps=4").code == 0
    outcome = command("mlops_img.train", "resume=runs/cut", "train.max_steps=null")
    assert outcome.code == 0, outcome.err
    outcome = command(
        "mlops_img.train", "--config-dir", "runs/whole/repeat", "experiment=repeat", "hydra.run.dir=runs/b"
    )
    assert outcome.code == 0, outcome.err
    assert " (no test split)" in outcome.out.splitlines()[-1]
    whole, again = (
        torch.load(f"runs/{name}/checkpoints/best.pt", weights_only=True)["model"] for name in ("whole", "b")
    )
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    steps = [json.loads((tmp_path / f"runs/{name}/summary.json").read_text())["steps"] for name in ("whole", "cut")]
    assert steps[0] == steps[1] == 6


def test_a_multirun_without_a_test_split_is_ranked_by_validation(train: Command) -> None:
    outcome = train("-m", "data.test_fraction=0", "train.max_steps=1", "optim.lr=1e-2,1e-3")
    assert outcome.code == 0, outcome.err
    [head] = [line for line in outcome.out.splitlines() if line.startswith("rank")]
    assert head.split() == ["rank", "job", "val.top1", "(95", "%", "interval)", "time", "settings"]
    assert "test top-1" not in outcome.out


def test_smoke_runs_without_a_test_split(train: Command) -> None:
    outcome = train("debug=smoke", "data.test_fraction=0")
    assert outcome.code == 0, outcome.err
