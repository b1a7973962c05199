"""Tables in the style of Kaggle: columns, labels and splits, and errors that users make with them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.kaggle_tables import error_message, kaggle_config, write
from tests.helpers.source_tables import names, table_of


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


def test_csv_with_a_byte_order_mark_is_read(kaggle: Path) -> None:
    text = (kaggle / "labels.csv").read_text()
    (kaggle / "labels.csv").write_bytes(text.replace("\n", "\r\n").encode("utf-8-sig"))
    assert len(table_of(kaggle_config(kaggle)).splits["train"]) == 12


@pytest.mark.parametrize(
    ("key", "wrong", "suggested"),
    [("label_column", "bread", "breed"), ("file_column", "idd", "id"), ("split_column", "parts", "part")],
)
def test_missing_column_is_rejected_with_the_nearest_name(kaggle: Path, key: str, wrong: str, suggested: str) -> None:
    message = error_message(kaggle, **{key: wrong})
    assert f"has no column '{wrong}'; it has id, breed, part" in message
    assert f"Did you mean '{suggested}'?" in message
    assert f"data.{key}=" in message


def test_empty_label_is_rejected_with_its_line(kaggle: Path) -> None:
    table = kaggle / "labels.csv"
    table.write_text(table.read_text().replace("003,square", "003,"))
    assert "labels.csv, line 5: there is no label (1 row of 12 without one)" in error_message(kaggle)


def test_a_label_of_a_single_image_is_rejected(kaggle: Path) -> None:
    table = kaggle / "labels.csv"
    table.write_text(table.read_text().replace("003,square", "003,rare"))
    assert "class 'rare' has 1 different image; splitting into train, val, test takes at least 3" in error_message(
        kaggle
    )


def test_a_label_missing_from_a_split_is_rejected(kaggle: Path) -> None:
    table = kaggle / "labels.csv"
    table.write_text(table.read_text().replace("003,square", "003,rare"))
    message = error_message(kaggle, split_column="part")
    assert "class 'rare' has no image in split val" in message
    assert "(and 1 more)" in message


def test_unknown_split_is_rejected(kaggle: Path) -> None:
    table = kaggle / "labels.csv"
    table.write_text(table.read_text().replace(",test", ",public"))
    assert "labels.csv, line 11, column 'part': 'public' is not train, val or test" in error_message(
        kaggle, split_column="part"
    )


def test_a_split_column_without_train_is_rejected(kaggle: Path) -> None:
    table = kaggle / "labels.csv"
    table.write_text(table.read_text().replace(",train", ",test"))
    assert "has val, test but no image with train in column 'part'" in error_message(kaggle, split_column="part")


def test_a_binary_table_is_rejected(kaggle: Path) -> None:
    (kaggle / "labels.csv").write_bytes((kaggle / "images" / "000.png").read_bytes())
    assert "cannot be read as a CSV table" in error_message(kaggle)


# One file in several lines.


def test_a_file_with_two_labels_is_rejected_with_both_lines(kaggle: Path) -> None:
    write(kaggle, "id,breed", "000,a", "", "001,b", "./000,b", "001,a")
    message = error_message(kaggle)
    assert "000.png has two labels: 'a' in line 2 and 'b' in line 5 (2 such pairs of lines)" in message
    assert "Keep one label per image" in message


def test_a_repeated_row_is_left_out_with_a_warning(kaggle: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(kaggle, "id,breed", "000,a", "001,b", "000,a", "./000,a")
    images = table_of(kaggle_config(kaggle)).splits["train"]
    assert names(images, kaggle) == ["images/000.png", "images/001.png"]
    (record,) = caplog.records
    assert "left out 2 rows that only repeat a file and its label (first: line 4, " in record.getMessage()


def test_a_file_in_two_splits_is_reported_by_the_leakage_check(kaggle: Path) -> None:
    table = kaggle / "labels.csv"
    table.write_text(table.read_text() + "000,circle,test\n")
    assert "the same image is in two splits" in error_message(kaggle, split_column="part")


# Rows without a label.


@pytest.mark.parametrize("label", ["", "  "])
def test_rows_without_a_label_can_be_skipped(kaggle: Path, caplog: pytest.LogCaptureFixture, label: str) -> None:
    write(kaggle, "id,breed", "000,a", f"no such file,{label}", "001,b", f"002,{label}")
    images = table_of(kaggle_config(kaggle, on_missing_label="skip")).splits["train"]
    assert names(images, kaggle) == ["images/000.png", "images/001.png"]
    assert "left out 2 of 4 rows, which have no label (first: line 3)" in caplog.text
    assert "line 3: there is no label (2 rows of 4 without one)" in error_message(kaggle)


def test_a_table_without_any_label_is_rejected(kaggle: Path) -> None:
    write(kaggle, "id,breed", "000,", "001,")
    assert "has no label in any of its 2 rows" in error_message(kaggle, on_missing_label="skip")


def test_case_and_blanks_of_split_names_are_ignored(kaggle: Path) -> None:
    write(kaggle, "id,breed,part", "000,a, Train", "001,b,TRAINING ", "002,a,VALIDATION", "003,a, test ")
    splits = table_of(kaggle_config(kaggle, split_column="part")).splits
    assert {split: len(images) for split, images in splits.items()} == {"train": 2, "val": 1, "test": 1}


def test_an_empty_split_is_rejected_with_its_line(kaggle: Path) -> None:
    write(kaggle, "id,breed,part", "000,a,train", "001,b,")
    assert "labels.csv, line 3, column 'part': the split is empty" in error_message(kaggle, split_column="part")
