"""Class folders as a source: which folders are classes, which files are images, and errors that users make."""

from __future__ import annotations

import logging
import os
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from mlops_img.config.data import CsvConfig, FolderConfig, Mnist5kConfig
from mlops_img.data.dataset import load_dataset
from mlops_img.data.sources.base import Table
from mlops_img.data.sources.levels import root_override
from mlops_img.errors import UserError
from mlops_img.preprocessing.decode import decode_rgb
from tests.helpers.shapes import SHAPES, write_shapes
from tests.helpers.source_tables import names, save, table_of


def folder_table(root: Path) -> Table:
    return table_of(FolderConfig(root=str(root)))


@pytest.fixture
def given(tmp_path: Path) -> Path:
    """Write class folders with given splits."""
    for number, split in enumerate(("train", "val", "test")):
        write_shapes(tmp_path / "given" / split, per_class=4, seed=number)
    return tmp_path / "given"


# Folder.


def test_class_folders_become_classes_sorted_by_name(shapes: Path) -> None:
    table = folder_table(shapes)
    assert table.classes == sorted(SHAPES)
    assert list(table.splits) == ["train"]
    images = table.splits["train"]
    assert len(images) == 30
    assert [table.classes[label] for label in images.labels] == [Path(path).parent.name for path in images.paths]
    assert list(images.paths) == sorted(images.paths)
    assert images.labels.dtype == np.int64
    assert images.read(images.paths[0]) == Path(images.paths[0]).read_bytes()


def test_given_splits_are_not_changed(given: Path) -> None:
    table = folder_table(given)
    assert list(table.splits) == ["train", "val", "test"]
    for split, images in table.splits.items():
        assert len(images) == 12
        assert all(Path(path).relative_to(given).parts[0] == split for path in images.paths)


@pytest.mark.parametrize("alias", ["valid", "validation", "Val", "VALIDATION"])
def test_common_names_of_split_folders_are_recognized(given: Path, alias: str) -> None:
    (given / "val").rename(given / alias)
    assert len(folder_table(given).splits["val"]) == 12


def test_two_folders_for_one_split_are_rejected(given: Path) -> None:
    write_shapes(given / "valid", per_class=1, seed=5)
    with pytest.raises(UserError, match="both name the val split"):
        folder_table(given)


def test_split_folders_without_train_are_not_classes(given: Path) -> None:
    (given / "train").rename(given.parent / "elsewhere")
    with pytest.raises(UserError, match="has val, test but no folder train"):
        folder_table(given)


def test_a_folder_train_without_subfolders_is_a_class(tmp_path: Path) -> None:
    for number, name in enumerate(("bus", "train")):
        save(tmp_path / name / "a.png", number)
    table = folder_table(tmp_path)
    assert table.classes == ["bus", "train"]
    assert list(table.splits) == ["train"]


def test_folders_next_to_the_splits_are_left_out_with_a_warning(given: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_shapes(given / "unlabeled", per_class=1)
    assert set(folder_table(given).splits) == {"train", "val", "test"}
    assert "left out unlabeled" in caplog.text


def test_images_in_subfolders_belong_to_the_class_above(tmp_path: Path) -> None:
    save(tmp_path / "cat" / "2024" / "may" / "1.png", 0)
    save(tmp_path / "cat" / "0.png", 1)
    save(tmp_path / "dog" / "2024" / "2.png", 2)
    table = folder_table(tmp_path)
    assert table.classes == ["cat", "dog"]
    assert names(table.splits["train"], tmp_path) == ["cat/0.png", "cat/2024/may/1.png", "dog/2024/2.png"]
    assert table.splits["train"].labels.tolist() == [0, 0, 1]


def test_hidden_files_and_folders_are_ignored(shapes: Path, caplog: pytest.LogCaptureFixture) -> None:
    save(shapes / "circle" / ".ipynb_checkpoints" / "000-checkpoint.jpg")
    save(shapes / "circle" / "._000.jpg")
    save(shapes / ".thumbnails" / "000.jpg")
    (shapes / ".DS_Store").write_bytes(b"\0")
    assert len(folder_table(shapes).splits["train"]) == 30
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_files_without_an_image_extension_are_left_out_with_a_warning(
    shapes: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("a.heic", "b.heic", "000.txt", "features.h5", "paper.pdf", "Thumbs.db", "README"):
        (shapes / "circle" / name).write_bytes(b"something")
    assert len(folder_table(shapes).splits["train"]) == 30
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "left out 7 files" in record.getMessage()
    assert ".heic (2)" in record.getMessage()


@pytest.mark.parametrize(
    "name", ["IMG_1.JPG", "a b.jpeg", "größe.Png", "图片.webp", "x'\"$(rm).png", "many.dots.v2.bmp", "new\nline.gif"]
)
def test_unusual_file_names_are_read(shapes: Path, name: str) -> None:
    odd = save(shapes / "circle" / name, 77)
    table = folder_table(shapes)
    assert str(odd) in table.splits["train"].paths
    assert decode_rgb(table.splits["train"].read(str(odd))).shape == (48, 40, 3)


def test_a_file_name_that_is_not_unicode_is_read_split_and_fingerprinted(shapes: Path) -> None:
    name = os.fsencode(shapes / "circle") + b"/caf\xe9.png"
    os.rename(save(shapes / "circle" / "new.png", 77), name)
    dataset = load_dataset(FolderConfig(root=str(shapes)))
    assert os.fsdecode(name) in [*dataset.train.paths, *dataset.val.paths, *dataset.test.paths]


def test_links_are_followed_without_cycles(tmp_path: Path) -> None:
    store = tmp_path / "store"
    save(store / "cats" / "a.png", 0)
    save(store / "cats" / "more" / "b.png", 1)
    save(store / "dog.png", 2)
    root = tmp_path / "linked"
    (root / "dog").mkdir(parents=True)
    (root / "cat").symlink_to(store / "cats")
    (root / "dog" / "link.png").symlink_to(store / "dog.png")
    (root / "dog" / "album").symlink_to(tmp_path / "album")
    save(tmp_path / "album" / "c.png", 3)
    (store / "cats" / "more" / "up").symlink_to(store / "cats")
    table = folder_table(root)
    assert names(table.splits["train"], root) == ["cat/a.png", "cat/more/b.png", "dog/album/c.png", "dog/link.png"]


def test_a_tilde_in_the_root_is_expanded(shapes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(shapes.parent))
    assert len(folder_table(Path("~/photos")).splits["train"]) == 30


def test_two_thousand_classes_are_listed(tmp_path: Path) -> None:
    first = save(tmp_path / "c00000" / "a.png")
    for number in range(1, 2_000):
        folder = tmp_path / f"c{number:05}"
        folder.mkdir()
        (folder / "a.png").hardlink_to(first)
    assert len(folder_table(tmp_path).classes) == 2_000


def test_a_class_missing_from_a_split_is_named(given: Path) -> None:
    for file in (given / "val" / "circle").iterdir():
        file.unlink()
    (given / "val" / "circle").rmdir()
    assert folder_table(given).class_mismatches == [f"class 'circle' has no folder in {given / 'val'}"]


def error_message(root: Path) -> str:
    with pytest.raises(UserError) as caught:
        load_dataset(FolderConfig(root=str(root)))
    message = str(caught.value)
    assert "\n" not in message
    assert str(root) in message
    return message


def test_missing_folder_is_rejected(tmp_path: Path) -> None:
    assert "does not exist" in error_message(tmp_path / "nowhere")


def test_a_file_as_root_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "photos.zip").touch()
    assert "is a file" in error_message(tmp_path / "photos.zip")


def test_empty_folder_is_rejected(tmp_path: Path) -> None:
    assert "is empty" in error_message(tmp_path)


def test_a_folder_of_images_without_classes_is_rejected(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    assert "has no class folders" in error_message(tmp_path)


def test_a_class_without_images_is_rejected(shapes: Path) -> None:
    (shapes / "triangle").mkdir()
    message = error_message(shapes)
    assert "class 'triangle' has no images" in message
    assert "the folder is empty" in message


def test_a_class_of_unsupported_formats_is_rejected(shapes: Path) -> None:
    (shapes / "triangle").mkdir()
    (shapes / "triangle" / "a.heic").write_bytes(b"ftypheic")
    assert "none of its 1 files has an image extension" in error_message(shapes)


def test_a_single_class_is_rejected(tmp_path: Path) -> None:
    save(tmp_path / "photos" / "cat" / "a.png")
    assert "only the class 'cat'" in error_message(tmp_path / "photos")


# What is left out, and counted.


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


# Another level than that of the class folders.


def test_a_data_set_in_a_subfolder_is_suggested(tmp_path: Path) -> None:
    root = tmp_path / "download"
    for split in ("train", "test"):
        write_shapes(root / "archive" / "dataset" / split, per_class=1)
    message = error_message(root)
    assert "only the class 'archive'" in message
    assert message.endswith(
        f". If test, train in {root}/archive/dataset are the splits, set data.root={root}/archive/dataset"
    )


def test_class_folders_in_a_subfolder_are_suggested_and_the_suggestion_works(tmp_path: Path) -> None:
    root = tmp_path / "download"
    write_shapes(root / "photos", per_class=5)
    (root / "docs").mkdir()
    (root / "docs" / "readme.txt").write_text("something")
    message = error_message(root)
    assert "class 'docs' has no images" in message
    assert message.endswith(
        f". If circle, square, stripes in {root}/photos are the classes, set data.root={root}/photos"
    )
    assert load_dataset(FolderConfig(root=message.rpartition("data.root=")[2])).classes == sorted(SHAPES)


def test_a_suggested_path_is_quoted_for_shell_and_hydra(tmp_path: Path) -> None:
    below = tmp_path / "my photos, 100% 'new' {a}"
    write_shapes(below / "x y", per_class=1)
    override = error_message(tmp_path).rpartition("set ")[2]
    (argument,) = shlex.split(override)
    parsed = OverridesParser.create().parse_override(argument)
    assert parsed.key_or_group == "data.root"
    assert parsed.value() == str(below / "x y")


@pytest.mark.parametrize("end", ["", "\\", '"', '\\"', "'", "a\\b"])
def test_quoted_paths_are_parsed_to_the_same_path(end: str) -> None:
    path = Path(f"/data/a b{end}")
    (argument,) = shlex.split(root_override(path))
    assert OverridesParser.create().parse_override(argument).value() == str(path)


def test_a_class_folder_as_root_is_recognized_by_its_siblings(shapes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    message = error_message(shapes / "circle")
    assert "has no class folders (10 images are directly in it)" in message
    assert message.endswith(f". If 'circle' is one of the classes, set data.root={shapes}")
    monkeypatch.chdir(shapes.parent)
    with pytest.raises(UserError, match=r"set data\.root=photos$"):
        folder_table(Path("photos/circle"))


def test_the_data_set_is_suggested_for_a_class_folder_of_a_split_as_root(given: Path) -> None:
    assert error_message(given / "train" / "circle").endswith(f"set data.root={given}")


def test_a_folder_of_images_without_sibling_folders_has_no_suggestion(tmp_path: Path) -> None:
    save(tmp_path / "alone" / "photos" / "a.png")
    assert error_message(tmp_path / "alone" / "photos").endswith("into a separate folder")


@pytest.mark.parametrize("names", [("training_set", "test_set"), ("seg_train", "seg_test")])
@pytest.mark.parametrize("repeated", [False, True])
def test_classes_that_look_like_splits_cause_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, names: tuple[str, str], repeated: bool
) -> None:
    for name in names:
        write_shapes(tmp_path / name / (name if repeated else ""), per_class=1)
    assert folder_table(tmp_path).classes == sorted(names)
    assert f"{names[1]} and {names[0]} are read as classes, but both contain circle, square, stripes" in caplog.text


def test_a_class_folder_that_contains_splits_causes_a_warning(
    tmp_path: Path, given: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path / "screenshots" / "a.png")
    assert folder_table(tmp_path).classes == ["given", "screenshots"]
    assert f"If it is the data set, set data.root={given}" in caplog.text


def test_nested_folders_of_a_class_cause_no_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number, name in enumerate(("cat/2021", "cat/2022", "dog/2021", "dog/2022", "valley/2021", "valley/2022")):
        save(tmp_path / name / "a.png", number)
    assert folder_table(tmp_path).classes == ["cat", "dog", "valley"]
    assert not caplog.records


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


# The default.


def test_mnist5k_is_written_once_to_the_given_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    config = Mnist5kConfig(root="~/digits")
    table = table_of(config)
    assert {split: len(images) for split, images in table.splits.items()} == {"train": 3500, "val": 500, "test": 1000}
    assert table.classes == [str(digit) for digit in range(10)]
    stamp = (tmp_path / "digits").stat().st_mtime_ns
    table_of(config)
    assert (tmp_path / "digits").stat().st_mtime_ns == stamp
