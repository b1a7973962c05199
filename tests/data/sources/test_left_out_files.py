"""What a source leaves out and counts: files of other software, broken links, and test images without labels."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest

from mlops_img.config.data import CsvConfig, FolderConfig
from mlops_img.data.dataset import load_dataset
from mlops_img.data.sources.base import Table
from mlops_img.errors import UserError
from tests.helpers.shapes import SHAPES, write_shapes
from tests.helpers.source_tables import error_message, folder_table, save, table_of


def left_out(table: Table) -> dict[tuple[str, str], int]:
    return {(one.reason.name, one.name): one.count for one in table.left_out}


def test_images_outside_the_class_folders_are_counted_with_a_warning(
    shapes: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(20):
        save(shapes / f"{number}.png", number)
    (shapes / "README.md").write_text("not an image")
    (shapes / "labels.csv").write_text("a,b")
    table = folder_table(shapes)
    assert len(table.splits["train"]) == 30
    assert left_out(table) == {("LOOSE", ".png"): 20}
    assert "left out 20 files: images outside the class folders: 20: .png (20), e.g. " in caplog.text
    assert "WARNING" in caplog.text


def test_images_outside_the_split_and_class_folders_are_counted(given: Path) -> None:
    save(given / "a.png")
    save(given / "train" / "b.jpg")
    save(given / "test" / "c.jpg")
    assert left_out(folder_table(given)) == {("LOOSE", ".jpg"): 2, ("LOOSE", ".png"): 1}


@pytest.mark.parametrize(
    ("folder", "reason", "count"),
    [
        ("@eaDir", "THUMBNAILS", 2),
        ("@EADIR", "THUMBNAILS", 2),
        (".@__thumb", "THUMBNAILS", 2),
        (".thumbnails", "THUMBNAILS", 2),
        (".picasaoriginals", "THUMBNAILS", 2),
        # Not listed, because they may contain copies of everything.
        ("#recycle", "TRASH", 1),
        ("@Recycle", "TRASH", 1),
        ("$RECYCLE.BIN", "TRASH", 1),
        ("#snapshot", "SYSTEM", 1),
        ("__MACOSX", "SYSTEM", 1),
        (".AppleDouble", "SYSTEM", 1),
        ("lost+found", "SYSTEM", 1),
        ("System Volume Information", "SYSTEM", 1),
        (".private", "HIDDEN", 1),
    ],
)
def test_folders_of_other_software_are_skipped_and_counted_by_name(
    shapes: Path, caplog: pytest.LogCaptureFixture, folder: str, reason: str, count: int
) -> None:
    caplog.set_level(logging.INFO)
    for number in range(2):
        save(shapes / "circle" / folder / "000.jpg" / f"{number}.jpg", number)
    table = folder_table(shapes)
    assert len(table.splits["train"]) == 30
    assert left_out(table) == {(reason, f"{folder}/"): count}
    assert f"{folder}/ ({count})" in caplog.text
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("folder", ["@eaDir", "#recycle", "__MACOSX", "lost+found", "$RECYCLE.BIN"])
def test_folders_of_other_software_are_not_classes(shapes: Path, folder: str) -> None:
    save(shapes / folder / "a.jpg")
    table = folder_table(shapes)
    assert table.classes == sorted(SHAPES)
    assert [one.name for one in table.left_out] == [f"{folder}/"]


def test_files_of_other_software_are_counted_by_name(shapes: Path) -> None:
    save(shapes / "circle" / "._000.jpg")
    save(shapes / "square" / "._001.jpg")
    save(shapes / "square" / ".hidden.jpg")
    for name in ("Thumbs.db", "desktop.ini", ".DS_Store", "Icon\r"):
        (shapes / "circle" / name).write_bytes(b"something")
    assert left_out(folder_table(shapes)) == {
        ("SYSTEM", "._*"): 2,
        ("SYSTEM", "desktop.ini"): 1,
        ("SYSTEM", ".DS_Store"): 1,
        ("SYSTEM", "Icon\r"): 1,
        ("THUMBNAILS", "Thumbs.db"): 1,
        ("HIDDEN", ".hidden.jpg"): 1,
    }


def test_broken_links_are_counted(shapes: Path, caplog: pytest.LogCaptureFixture) -> None:
    (shapes / "triangle").symlink_to(shapes / "unmounted")
    (shapes / "circle" / "album").symlink_to(shapes / "unmounted")
    (shapes / "circle" / "kept.jpg").symlink_to(shapes / "gone.jpg")
    table = folder_table(shapes)
    assert left_out(table) == {("BROKEN_LINK", "triangle"): 1, ("BROKEN_LINK", "album"): 1}
    assert "broken links: 2: album (1), triangle (1)" in caplog.text
    # A broken link with an image extension stays in the list; reading it fails like that of a damaged file.
    assert str(shapes / "circle" / "kept.jpg") in table.splits["train"].paths


# A test folder without labels.


def unlabeled(given: Path, below: str) -> Path:
    shutil.rmtree(given / "test")
    for number in range(5):
        save(given / "test" / below / f"{number}.jpg", 1_000 + number)
    return given


def test_test_images_without_class_folders_are_rejected_with_the_key_to_ignore_them(given: Path) -> None:
    message = error_message(unlabeled(given, ""))
    assert "test has no class folders (5 images are directly in it)" in message
    assert message.endswith("If its images have no labels, leave it out with data.use_given_test=false")


def test_test_images_of_an_unknown_class_are_rejected_with_the_key_to_ignore_them(given: Path) -> None:
    message = error_message(unlabeled(given, "unknown"))
    assert "class 'unknown' has no folder in" in message
    assert message.endswith("If the test images have no labels, leave them out with data.use_given_test=false")
    assert "use_given_test" not in error_without_class(given, "val")


def error_without_class(given: Path, split: str) -> str:
    write_shapes(given / "test", per_class=2, seed=9)
    shutil.rmtree(given / "test" / "unknown")
    shutil.rmtree(given / split / "circle")
    return error_message(given)


@pytest.mark.parametrize("below", ["", "unknown"])
def test_an_unused_test_folder_is_not_listed(given: Path, caplog: pytest.LogCaptureFixture, below: str) -> None:
    caplog.set_level(logging.INFO)
    dataset = load_dataset(FolderConfig(root=str(unlabeled(given, below)), use_given_test=False))
    assert dataset.classes == sorted(SHAPES)
    assert len(dataset.train) + len(dataset.test) == 12
    assert {Path(path).relative_to(given).parts[0] for path in dataset.test.paths} == {"train"}
    assert "data.use_given_test=false: 1: test/ (1)" in caplog.text


def test_a_test_folder_next_to_the_classes_causes_a_warning_and_can_be_left_out(
    shapes: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save(shapes / "test" / "a.jpg", 77)
    assert folder_table(shapes).classes == [*sorted(SHAPES), "test"]
    assert "test is read as a class" in caplog.text
    assert "data.use_given_test=false" in caplog.text
    assert table_of(FolderConfig(root=str(shapes), use_given_test=False)).classes == sorted(SHAPES)


def test_an_unlabeled_test_split_of_a_table_can_be_left_out(tmp_path: Path) -> None:
    lines = ["file,label,split"]
    for number in range(12):
        save(tmp_path / f"{number}.png", number)
        lines.append(f"{number}.png,{'ab'[number % 2] if number < 10 else '?'},{'train' if number < 10 else 'test'}")
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    config = CsvConfig(root=str(tmp_path), split_column="split")
    with pytest.raises(UserError, match=r"leave them out with data\.use_given_test=false"):
        load_dataset(config)
    config.use_given_test = False
    table = table_of(config)
    assert table.classes == ["a", "b"]
    assert {split: len(images) for split, images in table.splits.items()} == {"train": 10}
    assert table.splits["train"].labels.tolist() == [0, 1] * 5
