"""Averages of runs: never worse on validation than the best one, and a run folder like any other."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mlops_img.runs.checkpoint import read_checkpoint
from mlops_img.training import soup
from mlops_img.training.soup import mean_of
from tests.helpers.commands import TINY, Outcome
from tests.helpers.shapes import write_shapes
from tests.helpers.shared_bundle import once, python

Command = Callable[..., Outcome]
pytestmark = pytest.mark.usefixtures("no_pictures")

# Three runs from the same weights, which come to different ones.
JOBS = ("optim.lr=1e-3,3e-3,5e-3", "train.epochs=4", "data.val_fraction=0.3")


@pytest.fixture
def multirun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a multirun of three jobs. Read-only."""

    def make(root: Path) -> None:
        photos = write_shapes(root / "photos", per_class=20)
        sweep = (f"hydra.sweep.dir={root}/multirun", f"runs_dir={root}", f"data.root={photos}")
        given = [option for option in TINY if not option.startswith("train.epochs")]
        python("-m", "mlops_img.train", "-m", *given, *JOBS, *sweep)

    return once(tmp_path_factory, "soup", make) / "multirun"


def best(run: Path) -> dict[str, Any]:
    return read_checkpoint(run / "checkpoints" / "best.pt")


def test_mean_of_weights_leaves_counters_as_they_are() -> None:
    parts = [
        {"w": torch.tensor([1.0, 2.0]), "n": torch.tensor(7)},
        {"w": torch.tensor([3.0, 6.0]), "n": torch.tensor(9)},
    ]
    mean = mean_of(parts)
    assert mean["w"].tolist() == [2.0, 4.0]
    assert mean["n"].item() == 7


def test_soup_is_never_worse_on_validation_than_the_best_run(command: Command, multirun: Path, tmp_path: Path) -> None:
    outcome = command("mlops_img.soup", f"runs={multirun}", "output=cooked")
    assert outcome.code == 0, outcome.err
    summary = json.loads((tmp_path / "cooked/summary.json").read_text())
    assert summary["val.top1"] >= max(best(multirun / str(job))["metrics"]["top1"] for job in range(3))
    parts = json.loads((tmp_path / "cooked/provenance.json").read_text())["soup"]
    assert {Path(part["run"]).name for part in parts} == {"0", "1", "2"}
    values = [part["val.top1"] for part in parts]
    assert values == sorted(values, reverse=True)
    assert parts[0]["used"]
    assert (tmp_path / "cooked/report/index.html").is_file()


def test_soup_is_evaluated_and_exported_like_any_run(command: Command, multirun: Path, tmp_path: Path) -> None:
    assert command("mlops_img.soup", f"runs={multirun}", "output=cooked").code == 0
    summary = json.loads((tmp_path / "cooked/summary.json").read_text())
    outcome = command("mlops_img.evaluate", "run=cooked")
    assert outcome.code == 0, outcome.err
    assert f"test.top1              {summary['test.top1']:.4f}" in outcome.out
    settings = ("export.compile=false", "quantize=none", "export.max_accuracy_drop=100")
    assert command("mlops_img.export", "run=cooked", "bundles=bundles", *settings).code == 0


def test_every_run_that_does_not_harm_is_averaged(
    command: Command, multirun: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(soup, "_evaluate", lambda setup, weights: {"top1": 0.5})
    assert command("mlops_img.soup", f"runs={multirun}", "output=cooked").code == 0
    wanted = mean_of(best(multirun / str(job))["model"] for job in range(3))
    cooked = best(tmp_path / "cooked")["model"]
    for name, parameter in wanted.items():
        if "running" not in name and "num_batches" not in name:
            assert torch.allclose(cooked[name], parameter), name
    assert any(not torch.allclose(cooked[name], wanted[name]) for name in wanted if name.endswith("running_mean"))


def test_runs_that_harm_are_left_out(
    command: Command, multirun: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = iter([0.9, 0.8, 0.7])
    monkeypatch.setattr(soup, "_evaluate", lambda setup, weights: {"top1": next(values)})
    assert command("mlops_img.soup", f"runs={multirun}", "output=cooked").code == 0
    parts = json.loads((tmp_path / "cooked/provenance.json").read_text())["soup"]
    assert [part["used"] for part in parts] == [True, False, False]
    alone = best(Path(parts[0]["run"]))["model"]
    assert all(torch.equal(tensor, alone[name]) for name, tensor in best(tmp_path / "cooked")["model"].items())


def test_other_architectures_data_and_missing_runs_are_refused(
    command: Command, train: Command, multirun: Path, run: Path, tmp_path: Path
) -> None:
    assert train("model.name=test_efficientnet", "train.max_steps=1", "hydra.run.dir=runs/other").code == 0
    shutil.copytree(multirun / "0", tmp_path / "bare", ignore=shutil.ignore_patterns("*.pt"))
    for runs, message in (
        (f"[{multirun}/0,runs/other]", "have different architectures (test_resnet and test_efficientnet)"),
        (f"[{multirun}/0,{run}]", "differ in their data"),
        (f"[{multirun}/0,bare]", "best.pt does not exist"),
        (f"[{multirun}/0,nowhere]", "runs: there is no run in nowhere"),
        (f"[{multirun}/0,{multirun}/0]", "name each run once"),
        (f"[{multirun}/0]", "an average takes two finished runs or more, here are 1"),
        ("nowhere", "runs=nowhere: there is no such folder"),
        (str(tmp_path / "runs" / "other"), "an average takes two finished runs or more, here are 0"),
    ):
        outcome = command("mlops_img.soup", f"runs={runs}", "output=cooked")
        assert outcome.code == 2, runs
        assert message in outcome.err
        assert len(outcome.err.strip().splitlines()) == 1
        assert not (tmp_path / "cooked" / "checkpoints").exists()


def test_soup_does_not_overwrite_a_run(command: Command, multirun: Path, tmp_path: Path) -> None:
    shutil.copytree(multirun / "0", tmp_path / "mine")
    outcome = command("mlops_img.soup", f"runs={multirun}", "output=mine")
    assert outcome.code == 2
    assert "output=mine holds a run already" in outcome.err
