"""What must hold before any training, and the fingerprint that tells one data set from another."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlops_img.config.data import CsvConfig, FolderConfig
from mlops_img.data.dataset import Dataset, load_dataset
from mlops_img.errors import UserError
from tests.helpers.shapes import draw_shape, write_shapes


@pytest.fixture
def given(tmp_path: Path) -> Path:
    """A folder with given splits, all images different."""
    for number, split in enumerate(("train", "val", "test")):
        write_shapes(tmp_path / "given" / split, per_class=4, seed=number)
    return tmp_path / "given"


def load(root: Path, **changes: Any) -> Dataset:
    return load_dataset(FolderConfig(root=str(root), **changes))


def test_a_sound_data_set_is_loaded(given: Path) -> None:
    dataset = load(given)
    assert dataset.classes == ["circle", "square", "stripes"]
    assert [len(dataset.split(name)) for name in ("train", "val", "test")] == [12, 12, 12]
    assert dataset.split("val") is dataset.val


def test_a_data_set_may_have_no_test_split(shapes: Path) -> None:
    dataset = load(shapes, test_fraction=0.0)
    assert {split: len(images) for split, images in dataset.splits.items()} == {"train": 27, "val": 3}
    assert dataset.headline == "val"
    assert load(shapes).headline == "test"
    assert dataset.provenance()["test"] == {"images": 0, "kind": "none"}
    message = r"split=test: this data set has no test split \(data\.test_fraction=0\)\. Use split=val"
    with pytest.raises(UserError, match=message):
        dataset.split("test")
    assert dataset.fingerprint != load(shapes).fingerprint


# Leakage.


@pytest.mark.parametrize(("one", "other"), [("train", "val"), ("train", "test"), ("val", "test")])
def test_the_same_image_in_two_splits_is_refused_and_named(given: Path, one: str, other: str) -> None:
    source, copy = given / one / "circle" / "002.jpg", given / other / "circle" / "another name.jpg"
    shutil.copy(source, copy)
    with pytest.raises(UserError, match="the same image is in two splits") as caught:
        load(given)
    assert f"{source} and {copy}. " in str(caught.value)
    assert "data.allow_leakage=true" in str(caught.value)


def test_several_leaks_are_counted_and_another_label_hides_none(given: Path) -> None:
    for number in range(3):
        shutil.copy(given / "train" / "circle" / f"00{number}.jpg", given / "test" / "square" / f"leak{number}.jpg")
    with pytest.raises(UserError, match=r"\(and 2 more\)"):
        load(given)


def test_leakage_is_allowed_on_request(given: Path) -> None:
    shutil.copy(given / "train" / "circle" / "000.jpg", given / "val" / "circle" / "leak.jpg")
    assert len(load(given, allow_leakage=True).val) == 13


def test_copies_within_a_split_are_no_leakage(given: Path) -> None:
    shutil.copy(given / "train" / "circle" / "000.jpg", given / "train" / "circle" / "copy.jpg")
    assert len(load(given).train) == 13


def test_one_file_on_two_lines_of_a_table_in_two_splits_is_refused(tmp_path: Path) -> None:
    lines = ["file,label,split"]
    for number in range(6):
        draw_shape("circle", number).save(tmp_path / f"{number}.png")
        lines.append(f"{number}.png,{'ab'[number % 2]},{('train', 'val', 'test')[number // 2]}")
    lines.append("0.png,a,test")
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    with pytest.raises(UserError, match="the same image is in two splits"):
        load_dataset(CsvConfig(root=str(tmp_path), split_column="split"))


def test_data_that_we_split_never_leak(shapes: Path) -> None:
    for number in range(10):
        shutil.copy(shapes / "circle" / f"{number:03}.jpg", shapes / "circle" / f"copy{number}.jpg")
        if number < 5:
            shutil.copy(shapes / "circle" / f"{number:03}.jpg", shapes / "square" / f"copy{number}.jpg")
    for seed in range(10):
        load(shapes, split_seed=seed)


# Classes.


def test_a_class_missing_from_a_split_is_refused_and_named(given: Path) -> None:
    shutil.rmtree(given / "val" / "circle")
    with pytest.raises(UserError, match=f"class 'circle' has no folder in {given / 'val'}") as caught:
        load(given)
    assert "data.allow_class_mismatch=true" in str(caught.value)


def test_a_class_that_train_lacks_is_refused_and_named(given: Path) -> None:
    write_shapes(given / "more", per_class=1, seed=9)
    (given / "more" / "circle").rename(given / "test" / "ellipse")
    shutil.rmtree(given / "more")
    with pytest.raises(UserError, match=r"class 'ellipse' has no folder in .*train \(and 1 more\)"):
        load(given)


def test_a_class_mismatch_is_allowed_on_request(given: Path) -> None:
    shutil.rmtree(given / "val" / "circle")
    dataset = load(given, allow_class_mismatch=True)
    assert dataset.classes == ["circle", "square", "stripes"]
    assert set(dataset.val.labels.tolist()) == {1, 2}


def test_a_class_of_the_test_split_alone_is_allowed_on_request(given: Path) -> None:
    shutil.rmtree(given / "val")
    shutil.rmtree(given / "train" / "circle")
    dataset = load(given, allow_class_mismatch=True)
    assert set(dataset.val.labels.tolist()) == set(dataset.train.labels.tolist()) == {1, 2}


def test_one_class_only_is_refused(tmp_path: Path) -> None:
    shutil.rmtree(write_shapes(tmp_path, per_class=5) / "circle")
    shutil.rmtree(tmp_path / "square")
    with pytest.raises(UserError, match=f"{tmp_path} has only the class 'stripes': a classifier needs two"):
        load(tmp_path)


# Files that cannot be read are the decoder's business.


@pytest.mark.parametrize("split", [True, False], ids=["given splits", "our splits"])
def test_a_link_to_nothing_does_not_keep_a_data_set_from_being_listed(given: Path, shapes: Path, split: bool) -> None:
    root = given if split else shapes
    folder = root / "train" / "circle" if split else root / "circle"
    (folder / "lost.jpg").symlink_to("gone.jpg")
    dataset = load(root)
    every = [*dataset.train.paths, *dataset.val.paths, *dataset.test.paths]
    assert str(folder / "lost.jpg") in every


# The fingerprint.


def rename(root: Path) -> None:
    (root / "train" / "circle" / "000.jpg").rename(root / "train" / "circle" / "zero.jpg")


def add(root: Path) -> None:
    draw_shape("circle", 999).save(root / "train" / "circle" / "new.jpg")


def remove(root: Path) -> None:
    (root / "test" / "circle" / "000.jpg").unlink()


def relabel(root: Path) -> None:
    (root / "train" / "circle" / "000.jpg").rename(root / "train" / "square" / "from circle.jpg")


def move_to_another_split(root: Path) -> None:
    (root / "train" / "circle" / "000.jpg").rename(root / "val" / "circle" / "from train.jpg")


def change_size(root: Path) -> None:
    with open(root / "val" / "circle" / "000.jpg", "ab") as file:
        file.write(b"\0")


def rename_class(root: Path) -> None:
    for split in root.iterdir():
        (split / "circle").rename(split / "disc")


@pytest.mark.parametrize("change", [rename, add, remove, relabel, move_to_another_split, change_size, rename_class])
def test_fingerprint_changes_with_the_data(given: Path, change: Callable[[Path], None]) -> None:
    before = load(given).fingerprint
    assert load(given).fingerprint == before
    change(given)
    assert load(given).fingerprint != before


def test_fingerprint_does_not_change_with_the_place(given: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = load(given).fingerprint
    shutil.copytree(given, given.parent / "far" / "away")
    assert load(given.parent / "far" / "away").fingerprint == before
    monkeypatch.chdir(given)
    assert load(Path(".")).fingerprint == before


def test_fingerprint_tells_a_renamed_only_image_of_a_split(given: Path) -> None:
    # What all paths of a split share is no part of their names, unless one path is all there is.
    for file in (given / "test").glob("*/00[1-3].jpg"):
        file.unlink()
    for name in ("square", "stripes"):
        shutil.rmtree(given / "test" / name)
    before = load(given, allow_class_mismatch=True).fingerprint
    (given / "test" / "circle" / "000.jpg").rename(given / "test" / "circle" / "only.jpg")
    assert load(given, allow_class_mismatch=True).fingerprint != before


def test_fingerprint_follows_the_split_seed_and_the_limit(shapes: Path) -> None:
    found = {load(shapes, **changes).fingerprint for changes in ({}, {"split_seed": 1}, {"limit": 6})}
    assert len(found) == 3
