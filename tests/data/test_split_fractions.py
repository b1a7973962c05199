"""Fractions and sizes of the splits: what is refused, and a test fraction of zero."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from mlops_img.config.data import DataConfig
from mlops_img.data.splits import with_all_splits
from mlops_img.errors import UserError
from tests.helpers.shapes import write_shapes
from tests.helpers.split_tables import SPLITS, assignment, counts, in_memory, split_folder


def test_fractions_are_the_users() -> None:
    found = counts(assignment(in_memory({"a": 100, "b": 40}), val_fraction=0.25, test_fraction=0.5))
    assert found == {"train": {"a": 25, "b": 10}, "val": {"a": 25, "b": 10}, "test": {"a": 50, "b": 20}}


@pytest.mark.parametrize(
    "changes",
    [
        {"test_fraction": -0.1},
        {"test_fraction": float("nan")},
        {"val_fraction": 1.0},
        {"val_fraction": -0.1},
        {"val_fraction": 0.6, "test_fraction": 0.4},
    ],
)
def test_fractions_that_cannot_be_are_refused(changes: dict[str, float]) -> None:
    with pytest.raises(UserError, match=r"data\.val_fraction=.* and data\.test_fraction=.*: each must lie between"):
        assignment(in_memory({"a": 10, "b": 10}), **changes)


def test_without_validation_images_there_is_nothing_to_choose_by() -> None:
    with pytest.raises(UserError, match=r"data\.val_fraction=0: training needs validation images"):
        assignment(in_memory({"a": 10, "b": 10}), val_fraction=0.0)


def test_a_test_fraction_of_zero_leaves_the_test_images_in_train() -> None:
    table = in_memory({"a": 100, "b": 40})
    full, without = assignment(table), assignment(table, test_fraction=0.0)
    assert without == {name: "train" if split == "test" else split for name, split in full.items()}
    splits = with_all_splits(table, DataConfig(source="custom", root="data", test_fraction=0.0, limit=20)).splits
    assert {split: len(images) for split, images in splits.items()} == {"train": 20, "val": 14}


def test_a_test_fraction_of_zero_keeps_a_given_test_split(tmp_path: Path) -> None:
    for split, count in (("train", 6), ("test", 2)):
        write_shapes(tmp_path / split, per_class=count, seed=count)
    splits = split_folder(tmp_path, test_fraction=0.0).splits
    assert {split: len(images) for split, images in splits.items()} == {"train": 15, "val": 3, "test": 6}


def test_two_images_of_a_class_are_enough_without_a_test_split() -> None:
    assert counts(assignment(in_memory({"a": 2, "b": 2}), test_fraction=0.0))["val"] == {"a": 1, "b": 1}
    with pytest.raises(UserError, match="splitting into train, val takes at least 2"):
        assignment(in_memory({"a": 10, "b": 1}), test_fraction=0.0)


def test_a_fraction_that_is_not_needed_may_be_anything(tmp_path: Path) -> None:
    for split in SPLITS:
        write_shapes(tmp_path / split, per_class=1, seed=SPLITS.index(split))
    assert len(split_folder(tmp_path, val_fraction=0.0, test_fraction=1.0).splits["train"]) == 3


@pytest.mark.parametrize("size", [1, 2])
def test_a_class_too_small_to_be_in_every_split_is_refused_and_named(size: int) -> None:
    message = f"class 'b' has {size} different images?; splitting into train, val, test takes at least 3"
    with pytest.raises(UserError, match=message):
        assignment(in_memory({"a": 10, "b": size}))


def test_copies_do_not_make_a_class_large_enough(tmp_path: Path) -> None:
    root = write_shapes(tmp_path / "photos", per_class=5)
    for number in range(1, 5):
        shutil.copy(root / "circle" / "000.jpg", root / "circle" / f"{number:03}.jpg")
    with pytest.raises(UserError, match="class 'circle' has 1 different image;"):
        split_folder(root)


def test_fractions_that_leave_a_class_nothing_to_train_on_are_refused() -> None:
    with pytest.raises(UserError, match="class 'a': the fractions leave none of its 4 images to train on"):
        assignment(in_memory({"a": 4, "b": 100}), val_fraction=0.45, test_fraction=0.45)
