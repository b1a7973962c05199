"""Tables in the style of Kaggle, and errors that users make with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mlops_img.config.data import CsvConfig
from mlops_img.data.dataset import load_dataset
from mlops_img.errors import UserError
from tests.helpers.shapes import SHAPES
from tests.helpers.source_tables import names, save, table_of


@pytest.fixture
def kaggle(tmp_path: Path) -> Path:
    """Write images to one folder and a table of them, in the style of Kaggle."""
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


def test_csv_with_a_byte_order_mark_is_read(kaggle: Path) -> None:
    text = (kaggle / "labels.csv").read_text()
    (kaggle / "labels.csv").write_bytes(text.replace("\n", "\r\n").encode("utf-8-sig"))
    assert len(table_of(kaggle_config(kaggle)).splits["train"]) == 12


def test_csv_with_absolute_and_relative_files_is_split(kaggle: Path) -> None:
    table = kaggle / "labels.csv"
    table.write_text(table.read_text().replace("\n000,", f"\n{kaggle}/images/000,").replace("\n0", "\nimages/0"))
    dataset = load_dataset(kaggle_config(kaggle, file_prefix=""))
    assert len(dataset.train) + len(dataset.val) + len(dataset.test) == 12


def error_message(root: Path, **changes: Any) -> str:
    with pytest.raises(UserError) as caught:
        load_dataset(kaggle_config(root, **changes))
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_missing_table_is_rejected(kaggle: Path) -> None:
    message = error_message(kaggle, table="train.csv")
    assert f"{kaggle / 'train.csv'} does not exist" in message
    assert "data.table=" in message


@pytest.mark.parametrize(
    ("key", "wrong", "suggested"),
    [("label_column", "bread", "breed"), ("file_column", "idd", "id"), ("split_column", "parts", "part")],
)
def test_missing_column_is_rejected_with_the_nearest_name(kaggle: Path, key: str, wrong: str, suggested: str) -> None:
    message = error_message(kaggle, **{key: wrong})
    assert f"has no column '{wrong}'; it has id, breed, part" in message
    assert f"Did you mean '{suggested}'?" in message
    assert f"data.{key}=" in message


def test_missing_file_is_rejected_with_its_line(kaggle: Path) -> None:
    (kaggle / "images" / "004.png").unlink()
    message = error_message(kaggle)
    assert "labels.csv, line 6: " in message
    assert "004.png does not exist" in message


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


def write(root: Path, *lines: str) -> None:
    (root / "labels.csv").write_text("\n".join(lines) + "\n")


# Which table.


def test_the_path_of_the_table_can_be_absolute_or_start_with_a_tilde(
    kaggle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = kaggle.with_name("elsewhere")
    elsewhere.mkdir()
    (kaggle / "labels.csv").rename(elsewhere / "labels.csv")
    monkeypatch.setenv("HOME", str(elsewhere))
    for table in (str(elsewhere / "labels.csv"), "~/labels.csv"):
        assert len(table_of(kaggle_config(kaggle, table=table)).splits["train"]) == 12


def test_a_table_in_the_current_folder_is_suggested_with_its_path(
    kaggle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(kaggle)
    (kaggle / "labels.csv").rename(kaggle / "mine.csv")
    message = error_message(kaggle / "images", table="mine.csv")
    assert f"Did you mean data.table={kaggle / 'mine.csv'}?" in message


def test_the_only_table_in_the_folder_is_suggested(kaggle: Path) -> None:
    (kaggle / "labels.csv").rename(kaggle / "train.csv")
    assert "Did you mean 'train.csv'?" in error_message(kaggle)


def test_a_folder_as_table_is_rejected(kaggle: Path) -> None:
    assert f"data.table: {kaggle / 'images'} is a folder" in error_message(kaggle, table="images")


# Which files.


def test_backslashes_separate_folders_if_no_file_has_the_exact_name(kaggle: Path) -> None:
    as_written = save(kaggle / "images" / "one\\two.png")
    save(kaggle / "images" / "one" / "three.png")
    write(kaggle, "id,breed", "one\\two,a", "one\\three,b", ".\\000,b")
    images = table_of(kaggle_config(kaggle)).splits["train"]
    assert images.paths == [str(as_written), f"{kaggle}/images/one/three.png", f"{kaggle}/images/000.png"]
    write(kaggle, "id,breed", "000,a")
    assert len(table_of(kaggle_config(kaggle, file_prefix=".\\images\\")).splits["train"]) == 1


def test_blanks_around_a_file_name_are_ignored_if_no_file_has_the_exact_name(kaggle: Path) -> None:
    spaced = save(kaggle / "images" / " x.png")
    write(kaggle, "id, breed", " x, a", " 000 , b")
    images = table_of(kaggle_config(kaggle)).splits["train"]
    assert images.paths == [str(spaced), str(kaggle / "images" / "000.png")]


def test_a_file_behind_a_symbolic_link_is_found(kaggle: Path) -> None:
    (kaggle / "link").symlink_to(kaggle / "images", target_is_directory=True)
    (kaggle / "one.png").symlink_to(kaggle / "images" / "000.png")
    write(kaggle, "file,label", "one.png,a", "link/001.png,b", "link/../images/002.png,b")
    assert len(table_of(CsvConfig(root=str(kaggle))).splits["train"]) == 3


def test_error_for_missing_files_gives_their_number_and_the_first(kaggle: Path) -> None:
    for number in (4, 5, 9):
        (kaggle / "images" / f"{number:03}.png").unlink()
    message = error_message(kaggle)
    assert "labels.csv, line 6: file " in message
    assert "004.png does not exist (3 of 12 files are missing)" in message


@pytest.mark.parametrize(
    ("changes", "setting"),
    [
        ({"file_suffix": ""}, "data.file_suffix=.png"),
        ({"file_suffix": ".png.png"}, "data.file_suffix=.png"),
        ({"file_prefix": ""}, "data.file_prefix=images/"),
        ({"file_prefix": "", "file_suffix": ""}, "data.file_prefix=images/ data.file_suffix=.png"),
    ],
)
def test_a_prefix_or_suffix_that_finds_the_file_is_suggested(
    kaggle: Path, changes: dict[str, str], setting: str
) -> None:
    assert error_message(kaggle, **changes).endswith(f"It would be found with {setting}")


def test_a_suffix_that_is_already_in_the_table_is_detected(kaggle: Path) -> None:
    write(kaggle, "id,breed", "000.png,a", "001.png,b")
    assert error_message(kaggle).endswith("It would be found with data.file_suffix=")


def test_a_file_that_differs_in_letter_case_is_suggested(kaggle: Path) -> None:
    (kaggle / "images" / "004.png").rename(kaggle / "images" / "004.PNG")
    assert f"There is {kaggle / 'images' / '004.PNG'}, which differs in letter case" in error_message(kaggle)


def test_an_empty_file_name_is_rejected_with_its_line(kaggle: Path) -> None:
    write(kaggle, "id,breed", "000,a", " ,b")
    assert "labels.csv, line 3: there is no file name" in error_message(kaggle)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ('000,"a\n001,"b"', "line 2: there is a line break in the label 'a\\n001,b\"'. Check its"),
        ('"000\n001",b', "line 2: there is a line break in the file name '000\\n001'"),
    ],
)
def test_a_cell_with_a_line_break_is_rejected(kaggle: Path, rows: str, message: str) -> None:
    write(kaggle, "id,breed", rows, "002,c")
    assert message in error_message(kaggle)


def test_a_folder_as_image_is_rejected(kaggle: Path) -> None:
    (kaggle / "images" / "x.png").mkdir()
    write(kaggle, "id,breed", "000,a", "x,b")
    assert "x.png is a folder, not a file" in error_message(kaggle)


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
