"""Tests of the evaluate command on a data set other than that of the run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mlops_img.config.data import FolderConfig
from mlops_img.data.dataset import load_dataset
from tests.helpers.commands import Outcome
from tests.helpers.shapes import draw_shape, write_shapes

Command = Callable[..., Outcome]


def holdout_result(run: Path, outcome: Outcome) -> dict[str, Any]:
    assert outcome.code == 0, outcome.err
    (path,) = (Path(line.removeprefix("result: ")) for line in outcome.out.splitlines() if line.startswith("result: "))
    assert path.parent.parent == run / "evaluation"
    assert (path.parent / "report" / "index.html").is_file()
    return dict(json.loads(path.read_text()))


def own_files(run: Path) -> dict[Path, bytes]:
    folders = ("evaluation", "report", ".")
    return {path: path.read_bytes() for name in folders for path in (run / name).iterdir() if path.is_file()}


@pytest.mark.parametrize("split", ["test", "val"])
def test_class_folders_without_splits_are_evaluated_as_a_whole(
    command: Command, run: Path, tmp_path: Path, split: str
) -> None:
    write_shapes(tmp_path / "holdout", 7, seed=5)
    before = own_files(run)
    outcome = command("mlops_img.evaluate", "run=runs/a", "data.root=holdout", f"split={split}")
    result = holdout_result(run, outcome)
    assert result["n"] == 21
    assert [one["support"] for one in result["per_class"]] == [7, 7, 7]
    assert result["temperature"] == json.loads((run / "summary.json").read_text())["temperature"]
    assert result["data"]["root"] == "holdout"
    assert result["data"]["identical_to_training"] == 0
    assert own_files(run) == before
    report = next((run / "evaluation").glob("holdout-*")) / "report" / "index.html"
    assert "evaluated on the data set holdout: 21 images" in " ".join(report.read_text().split())


def test_other_images_with_the_same_names_and_sizes_are_another_data_set(
    command: Command, run: Path, mine: Path, tmp_path: Path
) -> None:
    shutil.copytree(mine, tmp_path / "holdout")
    for path in (tmp_path / "holdout").rglob("*.jpg"):
        path.write_bytes(path.read_bytes() + b"\0")
    for path in mine.rglob("*.jpg"):
        path.write_bytes(path.read_bytes() + b"\1")
    # Both data sets now have the same fingerprint.
    checkpoint = run / "checkpoints" / "best.pt"
    config = FolderConfig(root=str(mine), image_size=32, crop_pct=1.0)
    sizes = load_dataset(config).fingerprint
    assert sizes == load_dataset(FolderConfig(root=str(tmp_path / "holdout"), image_size=32, crop_pct=1.0)).fingerprint
    content = torch.load(checkpoint, weights_only=False) | {"fingerprint": sizes}
    torch.save(content, checkpoint)
    result = holdout_result(run, command("mlops_img.evaluate", "run=runs/a", "data.root=holdout"))
    assert result["n"] == 60


def test_data_set_with_only_a_test_folder(command: Command, run: Path, tmp_path: Path) -> None:
    write_shapes(tmp_path / "only" / "test", 4, seed=5)
    assert holdout_result(run, command("mlops_img.evaluate", "run=runs/a", "data.root=only"))["n"] == 12
    outcome = command("mlops_img.evaluate", "run=runs/a", "data.root=only", "split=val")
    assert outcome.code == 2
    assert "split=val: only has no val split. Set split to one of: test" in outcome.err


def test_data_set_with_splits_is_evaluated_on_the_requested_split(command: Command, run: Path, tmp_path: Path) -> None:
    for number, split in enumerate(("train", "val", "test")):
        write_shapes(tmp_path / "given" / split, 2 + number, seed=5 + number)
    for number, split in enumerate(("train", "val", "test")):
        outcome = command("mlops_img.evaluate", "run=runs/a", "data.root=given", f"split={split}")
        assert holdout_result(run, outcome)["n"] == 3 * (2 + number)


def test_csv_data_set_for_a_run_trained_on_class_folders(command: Command, run: Path, tmp_path: Path) -> None:
    write_shapes(tmp_path / "holdout" / "images", 3, seed=5)
    files = sorted((tmp_path / "holdout" / "images").rglob("*.jpg"))
    lines = [f"{path.relative_to(tmp_path / 'holdout')},{path.parent.name}" for path in files]
    (tmp_path / "holdout" / "mine.csv").write_text("\n".join(["file,label", *lines]))
    outcome = command("mlops_img.evaluate", "run=runs/a", "data=csv", "data.root=holdout", "data.table=mine.csv")
    result = holdout_result(run, outcome)
    assert result["n"] == 9
    assert result["data"]["source"] == "csv"


def test_csv_data_set_with_only_test_images_for_a_run_trained_on_csv(
    command: Command, train: Command, shared_shapes: Path, tmp_path: Path
) -> None:
    for name, root, split in (("own", shared_shapes, ""), ("new", write_shapes(tmp_path / "n", 3, seed=5), "test")):
        (tmp_path / name).mkdir()
        lines = [
            f"{path},{path.parent.name},{split or ('test' if number % 5 == 0 else 'train')}"
            for number, path in enumerate(sorted(root.rglob("*.jpg")))
        ]
        (tmp_path / name / "labels.csv").write_text("\n".join(["file,label,split", *lines]))
    code = train("hydra.run.dir=runs/a", "data=csv", f"data.root={tmp_path / 'own'}", "+data.split_column=split").code
    assert code == 0
    assert holdout_result(tmp_path / "runs" / "a", command("mlops_img.evaluate", "data.root=new"))["n"] == 9


def test_missing_classes_log_a_warning(command: Command, run: Path, tmp_path: Path) -> None:
    for number in range(4):
        path = tmp_path / "holdout" / "stripes" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        draw_shape("stripes", 500 + number).save(path)
    outcome = command("mlops_img.evaluate", "run=runs/a", "data.root=holdout")
    assert "holdout: no images for 2 classes of the run: 'circle', 'square'" in outcome.out
    assert [one["support"] for one in holdout_result(run, outcome)["per_class"]] == [0, 0, 4]


def test_error_suggests_the_subfolder_that_holds_the_data_set(command: Command, run: Path, tmp_path: Path) -> None:
    write_shapes(tmp_path / "download" / "archive", 2, seed=5)
    outcome = command("mlops_img.evaluate", "run=runs/a", "data.root=download")
    assert outcome.code == 2
    assert outcome.err.strip().endswith("set data.root=download/archive")


def test_unknown_classes_are_an_error(command: Command, run: Path, tmp_path: Path) -> None:
    write_shapes(tmp_path / "other", 10)
    (tmp_path / "other" / "circle").rename(tmp_path / "other" / "disc")
    outcome = command("mlops_img.evaluate", "run=runs/a", "data.root=other")
    assert outcome.code == 2
    assert f"data.root=other has classes that {run} was not trained on: 'disc'. " in outcome.err
    assert "The classes of the run are 'circle', 'square', 'stripes'." in outcome.err


def test_error_for_an_unknown_class_suggests_the_nearest_name(command: Command, run: Path, tmp_path: Path) -> None:
    write_shapes(tmp_path / "holdout", 2, seed=5)
    (tmp_path / "holdout" / "stripes").rename(tmp_path / "holdout" / "Stripes")
    outcome = command("mlops_img.evaluate", "run=runs/a", "data.root=holdout")
    assert outcome.code == 2
    assert "was not trained on: 'Stripes'. " in outcome.err
    assert "Did you mean 'stripes'?" in outcome.err
    assert len(outcome.err.strip().splitlines()) == 1


def test_copies_of_training_images_are_counted(
    command: Command, run: Path, shared_shapes: Path, tmp_path: Path
) -> None:
    shutil.copytree(shared_shapes, tmp_path / "more")
    draw_shape("circle", 99).save(tmp_path / "more" / "circle" / "new.jpg")
    outcome = command("mlops_img.evaluate", "run=runs/a", "data.root=more")
    result = holdout_result(run, outcome)
    assert result["n"] == 61
    assert result["data"]["identical_to_training"] == 48
    assert "more: 48 of the 61 images are byte-identical to training images" in outcome.out


def test_temperature_is_fitted_again_if_the_summary_lacks_it(command: Command, run: Path, tmp_path: Path) -> None:
    write_shapes(tmp_path / "holdout", 2, seed=5)
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text("{}")
    result = holdout_result(run, command("mlops_img.evaluate", "run=runs/a", "data.root=holdout"))
    assert result["temperature"] == pytest.approx(summary["temperature"])


def test_probabilities_are_not_calibrated_without_temperature_and_data(
    command: Command, run: Path, mine: Path, tmp_path: Path
) -> None:
    mine.rename(tmp_path / "elsewhere")
    (run / "summary.json").unlink()
    write_shapes(tmp_path / "holdout", 2, seed=5)
    outcome = command("mlops_img.evaluate", "run=runs/a", "data.root=holdout")
    result = holdout_result(run, outcome)
    assert (result["temperature"], result["data"]["identical_to_training"]) == (1.0, None)
    assert "the probabilities are not calibrated" in outcome.out
    outcome = command("mlops_img.evaluate", "run=runs/a")
    assert outcome.code == 2
    assert f"folder mine does not exist (seen from {tmp_path}), and the images of {run} are read from" in outcome.err
    outcome = command("mlops_img.export", "run=runs/a")
    assert outcome.code == 2
    assert "Name where they are now with data.root=..." in outcome.err


def test_data_option_that_names_the_data_of_the_run_evaluates_its_split(
    command: Command, run: Path, shared_shapes: Path
) -> None:
    outcome = command("mlops_img.evaluate", "run=runs/a", "data=folder", f"data.root={shared_shapes}")
    assert outcome.code == 0, outcome.err
    assert f"result: {run / 'evaluation' / 'test.json'}" in outcome.out
    assert "test.n                 6" in outcome.out


def test_damaged_images_can_be_skipped(command: Command, run: Path, shared_shapes: Path, tmp_path: Path) -> None:
    shutil.copytree(shared_shapes, tmp_path / "more")
    for path in (tmp_path / "more" / "circle").iterdir():
        path.write_bytes(path.read_bytes()[:-200])
    assert command("mlops_img.evaluate", "run=runs/a", "data.root=more").code == 2
    outcome = command("mlops_img.evaluate", "run=runs/a", "data.root=more", "data.on_bad_image=skip")
    result = holdout_result(run, outcome)
    assert len(result["skipped"]) == 20
    assert result["n"] == 40
