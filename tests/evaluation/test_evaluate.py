"""Tests of the evaluate command on the data set of the run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers.commands import Outcome
from tests.helpers.shapes import draw_shape

Command = Callable[..., Outcome]


def test_evaluate_reproduces_the_result_of_the_training(command: Command, run: Path) -> None:
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
def test_train_and_val_splits_can_be_evaluated(command: Command, run: Path, split: str) -> None:
    outcome = command("mlops_img.evaluate", "run=runs/a", f"split={split}")
    assert outcome.code == 0, outcome.err
    result = json.loads((run / "evaluation" / f"{split}.json").read_text())
    assert result["n"] == {"train": 48, "val": 6}[split]
    assert f"{split}.top1" in outcome.out


def test_moved_data_give_the_same_result(command: Command, run: Path, shared_shapes: Path, tmp_path: Path) -> None:
    before = (run / "evaluation" / "test.json").read_text()
    shutil.copytree(shared_shapes, tmp_path / "moved")
    assert command("mlops_img.evaluate", "run=runs/a", "data.root=moved").code == 0
    after = (run / "evaluation" / "test.json").read_text()
    assert after.replace("moved", str(shared_shapes)) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run=runs/none"], "run=runs/none: there is no run"),
        (["run=runs/a", "split=tset"], "split=tset: it can be train, val, test. Did you mean 'test'?"),
        (["run=runs/a", "data.root=/nowhere"], "folder /nowhere does not exist"),
        (["run=runs/a", "train.precision=bf61"], "train.precision=bf61: it can be auto, fp32, bf16, fp16."),
        (["run=runs/a", "train.eval_batch_size=0"], "train.eval_batch_size=0: it must be more than 0"),
        (["run=runs/a", "data.workers=-1"], "data.workers=-1: it must be at least 0"),
        (["run=runs/a", "splt=test"], "splt: there is no such key. Did you mean 'split'?"),
        (["run=runs/a", "data=folder"], "data.root is not set. Set it with data.root=..."),
        (["run=runs/a", "data=floder", "data.root=x"], "data=floder: there is no such option"),
        (["run=runs/a", "data=csv", "data.rot=x"], "data.rot: there is no such key. Did you mean 'root'?"),
        (["run=runs/a", "data.table=x.csv"], "data.table: there is no such key"),
        (
            ["run=runs/a", "data=folder", "data.root=x", "data.image_size=64"],
            "data.image_size has no effect: evaluation uses",
        ),
        (["run=runs/a", "data=folder", "data.root=x", "data.on_bad_image=no"], "data.on_bad_image=no: it can be"),
    ],
)
def test_invalid_arguments_exit_with_code_2_and_a_message(
    command: Command, run: Path, arguments: list[str], message: str
) -> None:
    outcome = command("mlops_img.evaluate", *arguments)
    assert outcome.code == 2
    assert message in outcome.err
    assert len(outcome.err.strip().splitlines()) == 1


def test_changed_data_log_a_warning_and_keep_the_result_of_the_training(
    command: Command, run: Path, mine: Path
) -> None:
    before = (run / "evaluation" / "test.json").read_bytes()
    for number in range(10):
        draw_shape("circle", 99 + number).save(mine / "circle" / f"new{number}.jpg")
    outcome = command("mlops_img.evaluate", "run=runs/a")
    assert outcome.code == 0, outcome.err
    assert "mine has changed since the training" in outcome.out
    assert (run / "evaluation" / "test.json").read_bytes() == before
    (other,) = (run / "evaluation").glob("changed-*/test.json")
    assert f"result: {other}" in outcome.out
    assert json.loads(other.read_text())["n"] == 7


def test_a_result_that_differs_from_the_training_is_written_to_a_subfolder(
    command: Command, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert command("mlops_img.evaluate", "run=runs/a").code == 0
    assert (run / "evaluation" / "test.json").read_bytes() == before[run / "evaluation" / "test.json"]
    # Simulates another precision, which changes every metric slightly.
    monkeypatch.setattr("mlops_img.evaluation.splits.fit_temperature", lambda predictions: 1.25)
    outcome = command("mlops_img.evaluate", "run=runs/a", "train.precision=fp32", "train.device=cpu")
    assert outcome.code == 0, outcome.err
    assert "is the result of the training and is kept: this result differs" in outcome.out
    place = run / "evaluation" / "cpu-float32"
    assert json.loads((place / "test.json").read_text())["temperature"] == 1.25
    assert (place / "report" / "index.html").is_file()
    assert {path: path.read_bytes() for path in before if path.parent.name != "report"} == {
        path: data for path, data in before.items() if path.parent.name != "report"
    }


def test_missing_checkpoint_is_an_error(command: Command, run: Path) -> None:
    (run / "checkpoints" / "best.pt").unlink()
    outcome = command("mlops_img.evaluate", "run=runs/a")
    assert outcome.code == 2
    assert "best.pt does not exist" in outcome.err


def test_damaged_checkpoint_is_an_error(command: Command, run: Path) -> None:
    path = run / "checkpoints" / "best.pt"
    path.write_bytes(path.read_bytes()[:-1000])
    outcome = command("mlops_img.evaluate", "run=runs/a")
    assert outcome.code == 2
    assert "is damaged" in outcome.err
