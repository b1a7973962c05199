"""Tables as on Kaggle: what they list, and every mistake that a user makes with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conftest import SHAPES
from source_tables import names, save, table_of

from mlops_img.data.checks import load_dataset
from mlops_img.data.config import CsvConfig
from mlops_img.errors import UserError


@pytest.fixture
def kaggle(tmp_path: Path) -> Path:
    """Images in one folder and a table of them, as on Kaggle."""
    lines = ["id,breed,part"]
    for number in range(12):
        save(tmp_path / "images" / f"{number:03}.png", number, SHAPES[number % 2])
        lines.append(f"{number:03},{SHAPES[number % 2]},{('train', 'train', 'Valid', 'test')[number // 3]}")
    (tmp_path / "labels.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


def kaggle_config(root: Path, **changes: Any) -> CsvConfig:
    keys = {"file_column": "id", "label_column": "breed", "file_prefix": "images/", "file_suffix": ".png"}
    return CsvConfig(root=str(root), **(keys | changes))


def test_csv_lists_files_by_prefix_and_suffix(kaggle: Path) -> None:
    table = table_of(kaggle_config(kaggle))
    assert table.classes == ["circle", "square"]
    images = table.splits["train"]
    assert names(images, kaggle) == [f"images/{number:03}.png" for number in range(12)]
    assert images.labels.tolist() == [0, 1] * 6


def test_csv_split_column_gives_the_splits(kaggle: Path) -> None:
    table = table_of(kaggle_config(kaggle, split_column="part"))
    assert {split: names(images, kaggle)[0][-7:] for split, images in table.splits.items()} == {
        "train": "000.png",
        "val": "006.png",
        "test": "009.png",
    }
    assert [len(images) for images in table.splits.values()] == [6, 3, 3]
    place = f"given in {kaggle}/labels.csv, column 'part'"
    assert {origin.text(split) for split, origin in table.origins.items()} == {place}
    assert not table.class_mismatches


def test_csv_labels_that_look_like_numbers_stay_text(kaggle: Path) -> None:
    rows = "".join(f"{number:03},{('01', '1', 'NA')[number % 3]}\n" for number in range(12))
    (kaggle / "labels.csv").write_text("id,breed\n" + rows)
    assert table_of(kaggle_config(kaggle)).classes == ["01", "1", "NA"]


def test_csv_from_a_spreadsheet_with_its_byte_order_mark_is_read(kaggle: Path) -> None:
    text = (kaggle / "labels.csv").read_text()
    (kaggle / "labels.csv").write_bytes(text.replace("\n", "\r\n").encode("utf-8-sig"))
    assert len(table_of(kaggle_config(kaggle)).splits["train"]) == 12


def test_csv_with_absolute_and_relative_files_is_split(kaggle: Path) -> None:
    table = kaggle / "labels.csv"
    table.write_text(table.read_text().replace("\n000,", f"\n{kaggle}/images/000,").replace("\n0", "\nimages/0"))
    dataset = load_dataset(kaggle_config(kaggle, file_prefix=""))
    assert len(dataset.train) + len(dataset.val) + len(dataset.test) == 12


def refused_csv(root: Path, **changes: Any) -> str:
    with pytest.raises(UserError) as caught:
        load_dataset(kaggle_config(root, **changes))
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_missing_table_is_refused(kaggle: Path) -> None:
    message = refused_csv(kaggle, table="train.csv")
    assert f"{kaggle / 'train.csv'} does not exist" in message
    assert "data.table=" in message


@pytest.mark.parametrize(
    ("key", "wrong", "suggested"),
    [("label_column", "bread", "breed"), ("file_column", "idd", "id"), ("split_column", "parts", "part")],
)
def test_missing_column_is_refused_with_the_nearest_name(kaggle: Path, key: str, wrong: str, suggested: str) -> None:
    message = refused_csv(kaggle, **{key: wrong})
    assert f"has no column '{wrong}'; it has id, breed, part" in message
    assert f"Did you mean '{suggested}'?" in message
    assert f"data.{key}=" in message


def test_missing_file_is_refused_with_its_line(kaggle: Path) -> None:
    (kaggle / "images" / "004.png").unlink()
    message = refused_csv(kaggle)
    assert "labels.csv, line 6: " in message
    assert "004.png does not exist" in message


def test_empty_label_is_refused_with_its_line(kaggle: Path) -> None:
    table = kaggle / "labels.csv"
    table.write_text(table.read_text().replace("003,square", "003,"))
    assert "labels.csv, line 5: the label is empty (1 such lines)" in refused_csv(kaggle)


def test_a_label_that_appears_once_is_refused_and_named(kaggle: Path) -> None:
    table = kaggle / "labels.csv"
    table.write_text(table.read_text().replace("003,square", "003,rare"))
    assert "class 'rare' has 1 different image; splitting into train, val, test takes at least 3" in refused_csv(kaggle)


def test_a_label_that_one_split_lacks_is_refused_and_named(kaggle: Path) -> None:
    table = kaggle / "labels.csv"
    table.write_text(table.read_text().replace("003,square", "003,rare"))
    message = refused_csv(kaggle, split_column="part")
    assert "class 'rare' has no image in split val" in message
    assert "(and 1 more)" in message


def test_unknown_split_is_refused(kaggle: Path) -> None:
    table = kaggle / "labels.csv"
    table.write_text(table.read_text().replace(",test", ",public"))
    assert "'public' is none of train, val, test" in refused_csv(kaggle, split_column="part")


def test_a_split_column_without_train_is_refused(kaggle: Path) -> None:
    table = kaggle / "labels.csv"
    table.write_text(table.read_text().replace(",train", ",test"))
    assert "says train of no image" in refused_csv(kaggle, split_column="part")


@pytest.mark.parametrize("content", ["", "id,breed\n", 'id,breed\n"000,circle\n', "id,breed\n1,2,3\n4,5,6,7\n"])
def test_a_table_that_is_none_is_refused(kaggle: Path, content: str) -> None:
    (kaggle / "labels.csv").write_text(content)
    assert str(kaggle / "labels.csv") in refused_csv(kaggle)


def test_a_table_that_is_no_text_is_refused(kaggle: Path) -> None:
    (kaggle / "labels.csv").write_bytes((kaggle / "images" / "000.png").read_bytes())
    assert "cannot be read as a CSV table" in refused_csv(kaggle)
