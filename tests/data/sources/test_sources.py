"""Class folders as a source: which folders are classes, which files are images, and errors that users make."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np
import pytest

from mlops_img.config.data import FolderConfig, Mnist5kConfig
from mlops_img.data.dataset import load_dataset
from mlops_img.errors import UserError
from mlops_img.preprocessing.decode import decode_rgb
from tests.helpers.shapes import SHAPES, write_shapes
from tests.helpers.source_tables import error_message, folder_table, names, save, table_of


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
