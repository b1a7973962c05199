"""Labels of tables: numbers, blanks, letter case, one-hot columns; and the order of the classes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlops_img.audit import audit
from mlops_img.config.commands import AuditConfig
from mlops_img.config.data import CsvConfig
from mlops_img.config.rules import validate
from mlops_img.config.train import Config
from mlops_img.data.dataset import load_dataset
from mlops_img.data.sources import csv_source
from mlops_img.data.sources.base import Table
from mlops_img.data.sources.csv_labels import sorted_classes
from mlops_img.errors import UserError
from tests.helpers.commands import Outcome
from tests.helpers.source_tables import save, table_of


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for number in range(12):
        save(tmp_path / f"{number}.png", number)
    return tmp_path


def listed(root: Path, labels: list[str], **changes: Any) -> Table:
    """Return the table of images 0, 1, ... with these labels."""
    rows = "".join(f"{number}.png,{label}\n" for number, label in enumerate(labels))
    (root / "labels.csv").write_text(f"file,label\n{rows}")
    return table_of(CsvConfig(root=str(root), **changes))


def one_hot(root: Path, *rows: str, header: str = "file,cat,dog,big bird", **changes: Any) -> Table:
    (root / "labels.csv").write_text("\n".join([header, *rows]) + "\n")
    return table_of(CsvConfig(root=str(root), label_columns=["cat", "dog", "big bird"], **changes))


def labels_of(table: Table) -> list[str]:
    return [table.classes[label] for label in table.splits["train"].labels]


# Blanks, letter case, numbers.


def test_blanks_around_labels_are_ignored_and_logged(images: Path, caplog: pytest.LogCaptureFixture) -> None:
    table = listed(images, ["a", "b", "b ", " b", "b "])
    assert labels_of(table) == ["a", "b", "b", "b", "b"]
    (record,) = caplog.records
    assert "blanks around labels are ignored: 'b ' (2), ' b' (1)" in record.getMessage()


@pytest.mark.parametrize("pair", [("Cat", "cat"), ("big  cat", "big cat"), ("cafe\u0301", "café")])
def test_similar_labels_are_kept_and_logged(
    images: Path, caplog: pytest.LogCaptureFixture, pair: tuple[str, str]
) -> None:
    table = listed(images, ["dog", *pair, pair[0]])
    assert len(table.classes) == 3
    (record,) = caplog.records
    assert f"different classes: {pair[0]!r} (2), {pair[1]!r} (1). " in record.getMessage()


def test_ordinary_labels_cause_no_warning(images: Path, caplog: pytest.LogCaptureFixture) -> None:
    listed(images, ["a", "b", "NA", "1", "1.0", "01"])
    assert not caplog.records


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (["10", "9", "1", "2", "0", "-1"], ["-1", "0", "1", "2", "9", "10"]),
        (["1", "2.0", "1.0", "10"], ["1", "2", "10"]),
        (["10.0", "9.0", "1.0"], ["1.0", "9.0", "10.0"]),  # unchanged, because all are written as floats
        (["1.5", "1", "10"], ["1", "1.5", "10"]),
        (["01", "1", "10"], ["01", "1", "10"]),
        (["1", "1.0", "ten"], ["1", "1.0", "ten"]),
        (["10", "9", "x"], ["10", "9", "x"]),
        (["1" + "0" * 400, "9"], ["9", "1" + "0" * 400]),
    ],
)
def test_numbers_are_merged_and_sorted_as_numbers(images: Path, labels: list[str], classes: list[str]) -> None:
    assert listed(images, labels).classes == classes
    assert sorted_classes(reversed(classes)) == classes


def test_labels_converted_from_floats_are_logged(images: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert labels_of(listed(images, ["1", "1.0", "2.0", "1"])) == ["1", "1", "2", "1"]
    assert "labels are read as integers, 1.0 as 1: '1.0' (1), '2.0' (1)" in caplog.text


def test_labels_1_and_1_0_of_one_file_are_equal(images: Path) -> None:
    (images / "labels.csv").write_text("file,label\n0.png,1\n0.png,1.0\n1.png,2\n")
    assert labels_of(table_of(CsvConfig(root=str(images)))) == ["1", "2"]


# One column per class.


def test_one_hot_columns(images: Path) -> None:
    table = one_hot(images, "0.png,1,0,0", "1.png,0.0,1.0,0.0", "2.png,False,False,True", "3.png,, 1 ,")
    assert table.classes == ["big bird", "cat", "dog"]
    assert labels_of(table) == ["cat", "dog", "big bird", "dog"]


def test_a_class_without_images_is_kept(images: Path) -> None:
    assert one_hot(images, "0.png,1,0,0", "1.png,0,1,0").classes == ["big bird", "cat", "dog"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("0.png,0,0,0", "line 3: there is no label (1 row of 2 without one)"),
        ("0.png,1,0,1", "line 3: there is a 1 for cat and big bird (1 such row)"),
        ("0.png,0,0.7,0.3", "line 3: column 'dog' contains '0.7'"),
        ("0.png,0,2,0", "line 3: column 'dog' contains '2'"),
        ("0.png,0,no,0", "line 3: column 'dog' contains 'no'"),
        ("0.png,0,nan,0", "line 3: column 'dog' contains 'nan'"),
    ],
)
def test_rows_that_are_not_one_hot_are_rejected_with_their_line(images: Path, row: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        one_hot(images, "1.png,1,0,0", row)
    assert message in str(caught.value)


def test_rows_without_a_one_can_be_skipped(images: Path) -> None:
    table = one_hot(images, "0.png,0,0,0", "1.png,0,0,1", on_missing_label="skip")
    assert labels_of(table) == ["big bird"]


def test_a_missing_one_hot_column_is_rejected(images: Path) -> None:
    with pytest.raises(UserError, match=r"has no column 'dog'; .* Set data.label_columns="):
        one_hot(images, "0.png,0,1,0", header="file,cat,dogs,big bird")


def test_one_hot_columns_are_suggested_if_the_label_column_is_missing(images: Path) -> None:
    (images / "labels.csv").write_text("file,cat,dog\n0.png,0,1\n1.png,1,0\n")
    with pytest.raises(UserError, match=r"has no column 'label'; .* set data.label_columns=\[cat,dog\]"):
        table_of(CsvConfig(root=str(images)))
    (images / "labels.csv").write_text("file,cat,dog\n0.png,0,7\n1.png,1,0\n")
    with pytest.raises(UserError, match="has no column 'label'") as caught:
        table_of(CsvConfig(root=str(images)))
    assert "label_columns" not in str(caught.value)


# Keys.


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"on_missing_label": "skp"}, "data.on_missing_label=skp: it can be raise, skip. Did you mean 'skip'?"),
        ({"label_column": "breed", "label_columns": ["a", "b"]}, "set one of them"),
        ({"label_columns": ["a"]}, "name at least two columns"),
        ({"label_columns": ["a", "b", "a"]}, "name at least two columns, each once"),
    ],
)
def test_invalid_keys_are_rejected(images: Path, changes: dict[str, Any], message: str) -> None:
    data = CsvConfig(root=str(images), **changes)
    with pytest.raises(UserError) as caught:
        validate(Config(data=data))
    assert message in str(caught.value)
    with pytest.raises(UserError) as caught:
        validate(AuditConfig(data=data))
    assert message in str(caught.value)


# A model that was trained when numbers were sorted as text.


def test_labels_use_the_class_order_of_a_trained_model(images: Path) -> None:
    labels = [("0", "2", "10")[number % 3] for number in range(12)]
    listed(images, labels)
    config = CsvConfig(root=str(images), val_fraction=0.25, test_fraction=0.25)
    new, old = load_dataset(config), load_dataset(config, classes=["0", "10", "2"])
    assert new.classes == ["0", "2", "10"]
    assert old.classes == ["0", "10", "2"]
    for split in ("train", "val", "test"):
        assert old.split(split).paths == new.split(split).paths
        named = [np.array(dataset.classes)[dataset.split(split).labels].tolist() for dataset in (old, new)]
        assert named[0] == named[1] == [labels[int(Path(path).stem)] for path in old.split(split).paths]
    assert old.fingerprint != new.fingerprint
    assert load_dataset(config, classes=["0", "10", "3"]).classes == ["0", "2", "10"]


def test_a_run_with_classes_sorted_as_text_is_resumed_and_evaluated(
    train: Callable[..., Outcome], command: Callable[..., Outcome], images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed(images, [("0", "2", "10")[number % 3] for number in range(12)])
    data = ("data=csv", f"data.root={images}", "train.batch_size=2")
    with monkeypatch.context() as before:
        before.setattr(csv_source, "sorted_classes", lambda labels: sorted(set(labels)))
        assert train("hydra.run.dir=runs/a", "train.epochs=1", *data).code == 0
    result = Path("runs/a/evaluation/test.json")
    trained = json.loads(result.read_text())
    assert trained["classes"] == ["0", "10", "2"]
    result.unlink()
    evaluated = command("mlops_img.evaluate", "run=runs/a", "train.precision=fp32")
    assert evaluated.code == 0, evaluated.err
    assert "has changed since the training" not in evaluated.out + evaluated.err
    assert json.loads(result.read_text())["confusion"] == trained["confusion"]
    resumed = command("mlops_img.train", "resume=runs/a", "train.epochs=2")
    assert resumed.code == 0, resumed.err
    assert json.loads(result.read_text())["classes"] == ["0", "10", "2"]


# The audit.


def test_the_audit_reads_one_hot_tables_and_reports_their_errors(images: Path) -> None:
    lines = [f"{number}.png;{('1', '0')[number % 2]};{number % 2};" for number in range(12)]
    (images / "labels.csv").write_bytes("\n".join(["file;café;dog", *lines, "no.png;0;0"]).encode("latin-1"))
    config = CsvConfig(
        root=str(images), encoding="latin-1", label_columns=["café", "dog"], on_missing_label="skip", val_fraction=0.2
    )
    findings = audit(AuditConfig(data=config))
    assert findings.classes == ["café", "dog"]
    assert sum(split.images for split in findings.splits.values()) == 12
    assert findings.ok
    listed(images, ["a", "b"])
    with (images / "labels.csv").open("a") as file:
        file.write("0.png,b\n")
    with pytest.raises(UserError, match="has two labels: 'a' in line 2 and 'b' in line 4"):
        audit(AuditConfig(data=CsvConfig(root=str(images))))
