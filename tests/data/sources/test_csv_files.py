"""Which table is read, and which image files its rows name."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlops_img.config.data import CsvConfig
from mlops_img.data.dataset import load_dataset
from tests.helpers.kaggle_tables import error_message, kaggle_config, write
from tests.helpers.source_tables import names, save, table_of


def test_csv_lists_files_by_prefix_and_suffix(kaggle: Path) -> None:
    table = table_of(kaggle_config(kaggle))
    assert table.classes == ["circle", "square"]
    images = table.splits["train"]
    assert names(images, kaggle) == [f"images/{number:03}.png" for number in range(12)]
    assert images.labels.tolist() == [0, 1] * 6


def test_csv_with_absolute_and_relative_files_is_split(kaggle: Path) -> None:
    table = kaggle / "labels.csv"
    table.write_text(table.read_text().replace("\n000,", f"\n{kaggle}/images/000,").replace("\n0", "\nimages/0"))
    dataset = load_dataset(kaggle_config(kaggle, file_prefix=""))
    assert len(dataset.train) + len(dataset.val) + len(dataset.test) == 12


def test_missing_table_is_rejected(kaggle: Path) -> None:
    message = error_message(kaggle, table="train.csv")
    assert f"{kaggle / 'train.csv'} does not exist" in message
    assert "data.table=" in message


def test_missing_file_is_rejected_with_its_line(kaggle: Path) -> None:
    (kaggle / "images" / "004.png").unlink()
    message = error_message(kaggle)
    assert "labels.csv, line 6: " in message
    assert "004.png does not exist" in message


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
