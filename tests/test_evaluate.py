"""Evaluating a finished run again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Outcome, draw_shape, write_shapes

Command = Callable[..., Outcome]


@pytest.fixture
def run(train: Command, tmp_path: Path) -> Path:
    assert train("hydra.run.dir=runs/a").code == 0
    return tmp_path / "runs" / "a"


def test_evaluation_after_training_equals_evaluation_of_the_run(command: Command, run: Path) -> None:
    after_training = (run / "evaluation" / "test.json").read_text()
    summary = json.loads((run / "summary.json").read_text())
    (run / "evaluation" / "test.json").unlink()
    outcome = command(
        "mlops_img.evaluate", "run=runs/a", "split=test", "train.eval_batch_size=5", "train.precision=fp32"
    )
    assert outcome.code == 0, outcome.err
    again = json.loads((run / "evaluation" / "test.json").read_text())
    assert again["confusion"] == json.loads(after_training)["confusion"]
    outcome = command("mlops_img.evaluate", "run=runs/latest")
    assert (run / "evaluation" / "test.json").read_text() == after_training
    assert f"{summary['test.top1']:.4f}" in outcome.out


@pytest.mark.parametrize("split", ["train", "val"])
def test_other_splits(command: Command, run: Path, split: str) -> None:
    outcome = command("mlops_img.evaluate", "run=runs/a", f"split={split}")
    assert outcome.code == 0, outcome.err
    result = json.loads((run / "evaluation" / f"{split}.json").read_text())
    assert result["n"] == {"train": 48, "val": 6}[split]
    assert f"{split}.top1" in outcome.out


def test_moved_data(command: Command, run: Path, shared_shapes: Path, tmp_path: Path) -> None:
    before = (run / "evaluation" / "test.json").read_text()
    shutil.copytree(shared_shapes, tmp_path / "moved")
    assert command("mlops_img.evaluate", "run=runs/a", "data.root=moved").code == 0
    after = (run / "evaluation" / "test.json").read_text()
    assert after.replace("moved", str(shared_shapes)) == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run=runs/none"], "run=runs/none: there is no run"),
        (["run=runs/a", "split=tset"], "split=tset: it can be train, val, test. Did you mean 'test'?"),
        (["run=runs/a", "data.root=/nowhere"], "folder /nowhere does not exist"),
        (["run=runs/a", "train.precision=bf61"], "train.precision=bf61: it can be auto, fp32, bf16, fp16."),
        (["run=runs/a", "train.eval_batch_size=0"], "train.eval_batch_size=0: it must be more than 0"),
        (["run=runs/a", "data.workers=-1"], "data.workers=-1: it must be at least 0"),
        (["run=runs/a", "splt=test"], "splt: there is no such key. Did you mean 'split'?"),
    ],
)
def test_mistakes_are_one_line(command: Command, run: Path, arguments: list[str], said: str) -> None:
    outcome = command("mlops_img.evaluate", *arguments)
    assert outcome.code == 2
    assert said in outcome.err


def test_data_with_other_classes(command: Command, run: Path, tmp_path: Path) -> None:
    write_shapes(tmp_path / "other", 10)
    (tmp_path / "other" / "circle").rename(tmp_path / "other" / "disc")
    outcome = command("mlops_img.evaluate", "run=runs/a", "data.root=other")
    assert outcome.code == 2
    assert "other classes" in outcome.err


def test_data_that_changed_since_the_training_is_warned_of(
    command: Command, run: Path, shared_shapes: Path, tmp_path: Path
) -> None:
    shutil.copytree(shared_shapes, tmp_path / "more")
    draw_shape("circle", 99).save(tmp_path / "more" / "circle" / "new.jpg")
    outcome = command("mlops_img.evaluate", "run=runs/a", "data.root=more")
    assert outcome.code == 0
    assert "more has changed since the training" in outcome.out


def test_damaged_image_can_be_left_out(command: Command, run: Path, shared_shapes: Path, tmp_path: Path) -> None:
    shutil.copytree(shared_shapes, tmp_path / "more")
    for path in (tmp_path / "more" / "circle").iterdir():
        path.write_bytes(path.read_bytes()[:-200])
    assert command("mlops_img.evaluate", "run=runs/a", "data.root=more").code == 2
    outcome = command("mlops_img.evaluate", "run=runs/a", "data.root=more", "data.on_bad_image=skip")
    assert outcome.code == 0, outcome.err
    result = json.loads((run / "evaluation" / "test.json").read_text())
    assert len(result["skipped"]) == 2
    assert result["n"] == 4


def test_run_without_checkpoint(command: Command, run: Path) -> None:
    (run / "checkpoints" / "best.pt").unlink()
    outcome = command("mlops_img.evaluate", "run=runs/a")
    assert outcome.code == 2
    assert "best.pt does not exist" in outcome.err


def test_damaged_checkpoint(command: Command, run: Path) -> None:
    path = run / "checkpoints" / "best.pt"
    path.write_bytes(path.read_bytes()[:-1000])
    outcome = command("mlops_img.evaluate", "run=runs/a")
    assert outcome.code == 2
    assert "is damaged" in outcome.err
