"""The predict command: its rows, parts and shards."""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

import mlops_img
from mlops_img.evaluation.trained import open_run
from mlops_img.prediction.manifest import MANIFEST
from mlops_img.prediction.output import PartFiles
from mlops_img.prediction.plan import Plan, Shard
from tests.helpers.commands import Outcome
from tests.helpers.shapes import SHAPES

Predict = Callable[..., Outcome]
COLUMNS = ["path", "row", "label_1", "probability_1", "label_2", "probability_2", "label_3", "probability_3", "error"]


def read_csv_parts(folder: Path) -> list[dict[str, str]]:
    rows: list[dict[str, str]] = []
    for part in sorted(folder.glob("part-*.csv")):
        with part.open(newline="") as file:
            rows += csv.DictReader(file)
    return rows


def parts(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("part-*"))}


def damage(shapes: Path) -> None:
    """Leave 30 files of which three cannot be read: one is empty, one cut off, one a link to nothing."""
    (shapes / "circle" / "003.jpg").write_bytes(b"")
    whole = (shapes / "square" / "000.jpg").read_bytes()
    (shapes / "square" / "000.jpg").write_bytes(whole[: len(whole) // 2])
    (shapes / "stripes" / "009.jpg").unlink()
    (shapes / "stripes" / "009.jpg").symlink_to("nothing.jpg")


# Rows


def test_rows_are_those_of_load_to_the_bit(predict: Predict, portable: Path, shapes: Path, tmp_path: Path) -> None:
    outcome = predict("batch_size=8")
    assert outcome.code == 0, outcome.err
    rows = read_csv_parts(tmp_path / "predictions")
    names = sorted(f"{shape}/{number:03}.jpg" for shape in SHAPES for number in range(10))
    assert list(rows[0]) == COLUMNS
    assert [row["path"] for row in rows] == names
    assert [row["row"] for row in rows] == [str(row) for row in range(30)]
    model = mlops_img.load(portable)
    expected = [
        prediction
        for start in range(0, 30, 8)
        for prediction in model.predict([shapes / name for name in names[start : start + 8]])
    ]
    for row, prediction in zip(rows, expected, strict=True):
        assert [row[f"label_{place}"] for place in (1, 2, 3)] == [one.label for one in prediction.top_k]
        assert [float(row[f"probability_{place}"]) for place in (1, 2, 3)] == [
            one.probability for one in prediction.top_k
        ]
        assert row["error"] == ""


def test_parquet_folder_is_one_table_of_the_same_values(predict: Predict, shapes: Path, tmp_path: Path) -> None:
    damage(shapes)
    assert predict("rows_per_part=8", "output=a").code == 0
    assert predict("rows_per_part=8", "output=b", "format=parquet").code == 0
    table = pq.read_table(tmp_path / "b")  # the folder, in which the manifest lies too
    rows = read_csv_parts(tmp_path / "a")
    assert table.column_names == COLUMNS
    assert {str(kind) for kind in table.schema.types} == {"string", "int64", "float"}
    assert table.num_rows == 30
    for found, row in zip(table.to_pylist(), rows, strict=True):
        assert {name: "" if value is None else str(value) for name, value in found.items()} == row


def test_unreadable_image_is_a_row_with_an_error(predict: Predict, shapes: Path, tmp_path: Path) -> None:
    damage(shapes)
    outcome = predict()
    assert outcome.code == 0, outcome.err
    rows = read_csv_parts(tmp_path / "predictions")
    errors = {row["path"]: row["error"] for row in rows if row["error"]}
    assert len(rows) == 30
    assert errors.keys() == {"circle/003.jpg", "square/000.jpg", "stripes/009.jpg"}
    assert errors["circle/003.jpg"] == "empty file"
    assert errors["stripes/009.jpg"] == "No such file or directory"
    assert all(bool(row["label_1"]) != bool(row["error"]) for row in rows)
    assert "rows: 30, 27 with a prediction and 3 with an error" in outcome.out
    assert "empty file (1, e.g. circle/003.jpg)" in outcome.out
    assert "in the column error; the exit code is 0" in outcome.out


def test_input_without_any_readable_image(predict: Predict, tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    for number in range(3):
        (tmp_path / "broken" / f"{number}.png").write_bytes(b"no image")
    outcome = predict("input=broken", "format=parquet")
    assert outcome.code == 0, outcome.err
    table = pq.read_table(tmp_path / "predictions")
    assert table["error"].to_pylist() == ["not an image"] * 3
    assert table["probability_1"].to_pylist() == [None] * 3


def test_row_whose_outputs_are_not_finite_has_an_error(
    predict: Predict, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from mlops_img.bundle.predictor import Predictor

    run = Predictor.run

    def overflow(predictor: Predictor, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits, features = run(predictor, pixels)
        changed = logits.clone()  # from inference mode, in which it cannot be changed in place
        changed[1, 0] = torch.inf
        return changed, features

    monkeypatch.setattr(Predictor, "run", overflow)
    assert predict().code == 0
    rows = read_csv_parts(tmp_path / "predictions")
    assert [row["row"] for row in rows if row["error"]] == ["1"]
    assert rows[1]["error"] == "the model's outputs for it are not finite"
    assert rows[1]["label_1"] == rows[1]["probability_1"] == ""


def test_run_predicts_what_its_evaluation_does(predict: Predict, run: Path, trained: Path, tmp_path: Path) -> None:
    outcome = predict("bundle=null", f"run={run}", f"input={trained}/photos", "top_k=1")
    assert outcome.code == 0, outcome.err
    own = open_run(str(run))
    predictions, _ = own.evaluator().predict(own.trained.model, own.dataset.test)
    best = predictions.probabilities(own.temperature()).max(1)
    rows = {str(trained / "photos" / row["path"]): row for row in read_csv_parts(tmp_path / "predictions")}
    for path, share, index in zip(own.dataset.test.paths, best.values.tolist(), best.indices.tolist(), strict=True):
        assert rows[path]["label_1"] == own.trained.classes[index]
        assert float(rows[path]["probability_1"]) == pytest.approx(share, abs=1e-5)


def test_top_k_is_at_most_the_number_of_classes(predict: Predict, tmp_path: Path) -> None:
    assert predict("top_k=1", "output=one").code == 0
    assert list(read_csv_parts(tmp_path / "one")[0]) == ["path", "row", "label_1", "probability_1", "error"]
    outcome = predict("top_k=50", "output=all")
    assert list(read_csv_parts(tmp_path / "all")[0]) == COLUMNS
    assert "top_k=50: the model has 3 classes, and a row lists them all" in outcome.out


# Inputs


def test_table_gives_its_own_names_in_its_own_order(predict: Predict, shapes: Path, tmp_path: Path) -> None:
    names = ["square/001.jpg", "circle/001.jpg", "gone.jpg", "square/001.jpg", str(shapes / "stripes" / "001.jpg")]
    (shapes / "list.tsv").write_text("id\tfile\n" + "".join(f"{row}\t{name}\n" for row, name in enumerate(names)))
    outcome = predict(f"input={shapes}/list.tsv")
    assert outcome.code == 0, outcome.err
    rows = read_csv_parts(tmp_path / "predictions")
    assert [row["path"] for row in rows] == names
    assert [row["label_1"] for row in rows] == ["square", "circle", "", "square", "stripes"]
    assert rows[2]["error"] == "No such file or directory"


def test_list_and_table_of_one_column_with_prefix_and_suffix(predict: Predict, shapes: Path, tmp_path: Path) -> None:
    names = ["001", "004"]
    (shapes / "names.txt").write_text("\n".join(names) + "\n\n")
    (shapes / "names.csv").write_text("id\n" + "\n".join(names))
    for kind in ("txt", "csv"):
        outcome = predict(
            f"input={shapes}/names.{kind}", "data.file_prefix=circle/", "data.file_suffix=.jpg", f"output={kind}"
        )
        assert outcome.code == 0, outcome.err
    rows = read_csv_parts(tmp_path / "txt")
    assert [(row["path"], row["label_1"]) for row in rows] == [("001", "circle"), ("004", "circle")]
    assert parts(tmp_path / "txt") == parts(tmp_path / "csv")


def test_flat_folder_and_a_name_that_is_not_utf8(predict: Predict, shapes: Path, tmp_path: Path) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    shutil.copy(shapes / "circle" / "001.jpg", flat / "ü, 1.jpg")
    shutil.copy(shapes / "circle" / "001.jpg", os.fsencode(flat) + b"/\xff.jpg")
    (flat / ".hidden.jpg").write_bytes(b"")
    flat.rename(os.fsdecode(b"\xfflat"))
    for kind in ("csv", "parquet"):
        outcome = predict(os.fsdecode(b"input=\xfflat"), f"output={kind}", f"format={kind}")
        assert outcome.code == 0, outcome.err
    assert [row["path"] for row in read_csv_parts(tmp_path / "csv")] == ["ü, 1.jpg", "\\udcff.jpg"]
    assert pq.read_table(tmp_path / "parquet")["path"].to_pylist() == ["ü, 1.jpg", "\\udcff.jpg"]


# Parts and shards


def test_plan_covers_each_row_once() -> None:
    for rows, rows_per_part, batch_size in ((30, 8, 3), (16, 8, 8), (1, 100, 64), (17, 5, 64)):
        plan = Plan(rows, rows_per_part, batch_size)
        batches = [batch.rows.tolist() for part in range(plan.parts) for batch in plan.batches_of(part)]
        assert [row for batch in batches for row in batch] == list(range(rows))
        assert max(map(len, batches)) <= batch_size
        owned = [part for number in range(3) for part in Shard(number, 3).of(range(plan.parts))]
        assert sorted(owned) == list(range(plan.parts))


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_shards_and_a_resumed_command_give_the_same_parts(
    predict: Predict, shapes: Path, tmp_path: Path, kind: str
) -> None:
    damage(shapes)
    settings = (f"format={kind}", "rows_per_part=7", "batch_size=3")
    assert predict(*settings, "output=one").code == 0
    for shard in (2, 0, 1):
        outcome = predict(*settings, "output=three", "num_shards=3", f"shard={shard}", f"data.workers={shard}")
        assert outcome.code == 0, outcome.err
        if shard == 2:
            assert list(parts(tmp_path / "three")) == [f"part-00002.{kind}"]
            assert "output: three (1 of 5" in outcome.out
            assert "parts; the other 4 belong to other shards)" in outcome.out
    shutil.copytree(tmp_path / "one", tmp_path / "resumed")
    for part in (1, 4):
        (tmp_path / "resumed" / f"part-{part:05d}.{kind}").unlink()
    outcome = predict(*settings, "output=resumed")
    assert "resumed: 3 of 5 parts are there, 2 are left to this process" in outcome.out
    assert "speed: 9 images in" in outcome.out
    assert "rows: 30, 27 with a prediction" in outcome.out
    first = parts(tmp_path / "one")
    assert len(first) == 5
    if kind == "csv":
        assert first == parts(tmp_path / "three") == parts(tmp_path / "resumed")
    tables = [pq.read_table(tmp_path / name) if kind == "parquet" else None for name in ("one", "three", "resumed")]
    assert tables[0] == tables[1] == tables[2]
    assert (tmp_path / "one" / MANIFEST).read_bytes() == (tmp_path / "three" / MANIFEST).read_bytes()


def test_torchrun_numbers_the_shards(predict: Predict, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert predict("rows_per_part=10").code == 0
    assert list(parts(tmp_path / "predictions")) == ["part-00001.csv"]
    assert predict("rows_per_part=10", "shard=0", "num_shards=2").code == 0
    assert len(parts(tmp_path / "predictions")) == 3


def test_complete_output_is_left_as_it_is(predict: Predict, tmp_path: Path) -> None:
    assert predict().code == 0
    before = (tmp_path / "predictions" / "part-00000.csv").stat()
    outcome = predict()
    assert outcome.code == 0
    assert (tmp_path / "predictions" / "part-00000.csv").stat().st_mtime_ns == before.st_mtime_ns
    assert "speed" not in outcome.out
    assert "predicted classes: circle 10, square 10, stripes 10" in outcome.out


def test_output_keeps_its_format_where_none_is_asked_for(predict: Predict, tmp_path: Path) -> None:
    assert predict("format=csv").code == 0
    assert predict("format=auto").code == 0
    assert predict("format=auto", "output=new").code == 0
    assert [path.name for path in (tmp_path / "new").glob("part-*")] == ["part-00000.parquet"]


def test_copy_of_the_photos_elsewhere_is_the_same_input(predict: Predict, shapes: Path, tmp_path: Path) -> None:
    assert predict("rows_per_part=20").code == 0
    shutil.copytree(shapes, tmp_path / "copy")
    os.utime(tmp_path / "copy" / "circle" / "000.jpg", (1, 1))
    (tmp_path / "predictions" / "part-00001.csv").unlink()
    outcome = predict("rows_per_part=20", "input=copy")
    assert outcome.code == 0, outcome.err
    assert len(parts(tmp_path / "predictions")) == 2


def test_manifest_says_what_the_parts_were_computed_from(predict: Predict, shapes: Path, tmp_path: Path) -> None:
    assert predict("rows_per_part=20").code == 0
    content: dict[str, Any] = json.loads((tmp_path / "predictions" / MANIFEST).read_text())
    assert content["input"]["location"] == str(shapes)
    assert content["input"]["rows"] == 30
    assert content["model"]["precision"] == "int8-static"
    assert (content["parts"], content["top_k"], content["format"], content["columns"]) == (2, 3, "csv", COLUMNS)


def test_only_what_dead_processes_left_of_the_own_parts_is_removed(tmp_path: Path) -> None:
    files = PartFiles(tmp_path, "csv")
    own, other, locked = (tmp_path / f".part-0000{part}.csv.77.part" for part in (0, 1, 2))
    for path in (own, other, locked):
        path.write_bytes(b"half")
    import fcntl

    with locked.open("r+b") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        files.remove_unfinished(Shard(0, 2))
        assert sorted(tmp_path.iterdir()) == [other, locked]
    files.remove_unfinished(Shard(0, 2))
    assert sorted(tmp_path.iterdir()) == [other]
    assert files.present() == []
