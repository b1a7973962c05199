"""Every recipe and every debugging aid runs, from the command line to the report."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers.commands import Outcome
from tests.helpers.paths import CONF
from tests.helpers.shapes import write_shapes

Command = Callable[..., Outcome]
SHAPES_WITH_A_TINY_NET = ("data=folder", "data.image_size=32", "model=timm", "model.name=test_resnet")
EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiment_runs(command: Command, shared_shapes: Path, trained: Path, name: str) -> None:
    data = ("data=folder", f"data.root={shared_shapes}", "data.image_size=32", "data.limit=24")
    model = ("model.weights=none",)
    if name.startswith("probe"):  # which needs weights
        model = ("model=timm", "model.name=test_resnet", f"model.weights={trained / 'run'}", "probe.cache=false")
    settings = (f"experiment={name}", "debug=smoke", *data, *model, "hydra.run.dir=runs/a")
    outcome = command("mlops_img.train", *settings)
    assert outcome.code == 0, outcome.err
    assert Path("runs/a/report/index.html").is_file()


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiment_opens_with_what_it_reaches(name: str) -> None:
    text = (CONF / "experiment" / f"{name}.yaml").read_text()
    opening = text.split("\ndefaults:")[0].lower()
    assert "reaches" in opening
    assert "measured" in opening


def test_overfit_reaches_full_accuracy_on_one_batch(command: Command, shared_shapes: Path) -> None:
    settings = (*SHAPES_WITH_A_TINY_NET, f"data.root={shared_shapes}", "hydra.run.dir=runs/a")
    outcome = command("mlops_img.train", "debug=overfit", *settings)
    assert outcome.code == 0, outcome.err
    lines = [json.loads(line) for line in Path("runs/a/metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if line["split"] == "train"]
    assert losses[-1] < 0.02 < losses[0]


def test_profile_writes_a_trace_and_a_table(command: Command, tmp_path: Path) -> None:
    write_shapes(tmp_path / "photos", 60)
    settings = (*SHAPES_WITH_A_TINY_NET, "data.root=photos", "train.batch_size=8", "hydra.run.dir=runs/a")
    outcome = command("mlops_img.train", "debug=profile", *settings)
    assert outcome.code == 0, outcome.err
    assert "traceEvents" in json.loads(Path("runs/a/profile/trace.json").read_text())
    assert "conv" in Path("runs/a/profile/operators.txt").read_text()
