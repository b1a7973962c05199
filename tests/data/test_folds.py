"""Cross-validation folds and groups: every image once, classes even, and no group or copy in two parts."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlops_img.config.data import CsvConfig, DataConfig, FolderConfig
from mlops_img.config.rules import validate
from mlops_img.data.dataset import load_dataset
from mlops_img.data.folds import joined, parts_of_groups
from mlops_img.data.sources.base import Table
from mlops_img.data.splits import with_all_splits
from mlops_img.errors import UserError
from tests.helpers.shapes import write_shapes
from tests.helpers.split_tables import assignment, in_memory, split_folder


def fold_of_each(table: Table, folds: int, **changes: Any) -> dict[str, int]:
    """Return the fold in which each image validates; fails if one does in none or in two."""
    found: dict[str, int] = {}
    for fold in range(folds):
        for path, split in assignment(table, folds=folds, fold=fold, **changes).items():
            if split == "val":
                assert path not in found
                found[path] = fold
    return found


def patients(sizes: list[int]) -> Table:
    """Return a table of two classes in which patient p has `sizes[p]` images, all of class p % 2."""
    names = [f"{'ab'[number % 2]}/p{number}-{image}" for number, size in enumerate(sizes) for image in range(size)]
    return in_memory({"a": 0, "b": 0}, extra=names)


@pytest.mark.parametrize("folds", [2, 3, 5])
def test_every_image_validates_once_and_folds_and_classes_differ_by_one(folds: int) -> None:
    table = in_memory({"many": 53, "some": 17, "few": 6})
    of_image = fold_of_each(table, folds, test_fraction=0)
    assert sorted(of_image) == sorted(table.splits["train"].paths)
    for counted in (
        Counter(of_image.values()),
        *(
            Counter(fold for path, fold in of_image.items() if path.startswith(name))
            for name in ("many", "some", "few")
        ),
    ):
        assert max(counted.values()) - min(counted[fold] for fold in range(folds)) <= 1


def test_test_images_are_the_same_in_every_fold_and_none_of_them_validates() -> None:
    table = in_memory({"a": 40, "b": 40})
    tests = [
        {path for path, split in assignment(table, folds=4, fold=fold).items() if split == "test"} for fold in range(4)
    ]
    assert len(tests[0]) == 8
    assert all(found == tests[0] for found in tests)
    assert set(fold_of_each(table, 4)) == set(table.splits["train"].paths) - tests[0]


def test_folds_follow_from_the_split_seed() -> None:
    table = in_memory({"a": 40, "b": 40})
    assert fold_of_each(table, 4) == fold_of_each(table, 4)
    assert fold_of_each(table, 4, split_seed=1, test_fraction=0) != fold_of_each(table, 4, test_fraction=0)


def test_given_validation_images_take_part_and_the_given_test_split_stays(tmp_path: Path) -> None:
    for seed, (split, size) in enumerate([("train", 6), ("val", 3), ("test", 2)]):
        write_shapes(tmp_path / split, per_class=size, seed=seed)
    validating = []
    for fold in range(3):
        table = split_folder(tmp_path, folds=3, fold=fold)
        validating += list(table.splits["val"].paths)
        assert {Path(path).parts[-3] for path in table.splits["test"].paths} == {"test"}
        assert table.origins["val"].text("val") == f"of train (data.fold={fold}, data.folds=3, data.split_seed=0)"
    assert Counter(Path(path).parts[-3] for path in validating) == {"train": 18, "val": 9}


def test_copies_of_an_image_are_in_one_fold(tmp_path: Path) -> None:
    write_shapes(tmp_path, per_class=6)
    for path in sorted(tmp_path.rglob("*.jpg")):
        shutil.copy(path, path.with_name(f"copy-{path.name}"))
    for fold in range(3):
        validating = split_folder(tmp_path, folds=3, fold=fold).splits["val"].paths
        copied = [path for path in validating if "copy-" in path]
        assert len(copied) == len(validating) / 2
        assert {path.replace("copy-", "") for path in copied} == set(validating) - set(copied)


def test_groups_are_whole_and_classes_stay_even() -> None:
    sizes = np.random.default_rng(0).integers(1, 12, 60).tolist()
    table = patients(sizes)
    of_image = fold_of_each(table, 5, group="p[0-9]+", test_fraction=0)
    of_group: dict[str, set[int]] = {}
    for path, fold in of_image.items():
        of_group.setdefault(path.split("-")[0], set()).add(fold)
    assert all(len(folds) == 1 for folds in of_group.values())
    for name in ("a", "b"):
        counted = Counter(fold for path, fold in of_image.items() if path.startswith(name))
        total = sum(counted.values())
        assert all(abs(counted[fold] / total - 0.2) < 0.02 for fold in range(5))


def test_splits_by_fraction_keep_groups_whole_too() -> None:
    table = patients([4] * 100)
    split_of: dict[str, set[str]] = {}
    for path, split in assignment(table, group="p[0-9]+").items():
        split_of.setdefault(path.split("-")[0], set()).add(split)
    assert all(len(splits) == 1 for splits in split_of.values())
    assert Counter(split for splits in split_of.values() for split in splits) == {"train": 80, "val": 10, "test": 10}


def test_a_group_is_a_patterns_parentheses_or_its_whole_match() -> None:
    table = patients([2, 2, 2, 2, 2, 2])
    whole = fold_of_each(table, 3, group="p[0-9]+", test_fraction=0)
    assert fold_of_each(table, 3, group="(p[0-9]+)-", test_fraction=0) == whole


def test_a_column_of_a_table_names_the_groups(tmp_path: Path) -> None:
    write_shapes(tmp_path, per_class=6)
    paths = sorted(tmp_path.rglob("*.jpg"))
    lines = [
        f"{path.relative_to(tmp_path)},{path.parent.name},person {number % 6}" for number, path in enumerate(paths)
    ]
    (tmp_path / "labels.csv").write_text("\n".join(["file,label,who", *lines]))
    dataset = load_dataset(CsvConfig(root=str(tmp_path), group="who", folds=3, test_fraction=0))
    assert dataset.val.groups is not None
    assert dataset.train.groups is not None
    assert len(set(dataset.val.groups)) == 2
    assert not set(dataset.val.groups) & set(dataset.train.groups)
    assert len(dataset.val) == 6


def test_images_that_share_either_number_are_joined() -> None:
    numbers = joined(np.array([0, 0, 1, 2, 3]), np.array([5, 6, 6, 7, 7]))
    assert numbers.tolist() == [0, 0, 0, 1, 1]


def test_largest_group_does_not_spoil_the_shares() -> None:
    labels = np.zeros(100, np.int64)
    groups = np.concatenate([np.zeros(40, np.int64), np.arange(1, 61)])
    part = parts_of_groups(labels, groups, np.arange(100, dtype=np.uint64), [0.8, 0.2])
    assert np.bincount(part).tolist() == [80, 20]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"folds": 5, "fold": 5}, "data.fold=5: with data.folds=5 it can be 0 to 4"),
        ({"fold": 1}, "data.fold=1: there are no folds. Set data.folds=5, for example"),
        ({"folds": 1}, "data.folds=1: it must be at least 2"),
    ],
)
def test_a_fold_that_there_is_not_is_refused(changes: dict[str, int], message: str) -> None:
    with pytest.raises(UserError) as refusal:
        validate(FolderConfig(root="x", **changes), "data.")
    assert str(refusal.value) == message


@pytest.mark.parametrize(
    ("table", "changes", "message"),
    [
        (
            in_memory({"a": 9, "b": 3}),
            {"folds": 4},
            "class 'b' has 3 different images, which is too few for data.folds=4. Add images, or use fewer parts",
        ),
        (
            patients([5, 5, 5, 5]),
            {"folds": 3, "group": "p[0-9]+"},
            "class 'a' has 10 images in 2 groups of data.group=p[0-9]+, which is too few for data.folds=3",
        ),
        (in_memory({"a": 9, "b": 9}), {"group": "q"}, "data.group=q: it does not match a/00000. It is a regular"),
        (in_memory({"a": 9, "b": 9}), {"group": "("}, "data.group=(: it is not a regular expression: missing )"),
    ],
)
def test_classes_and_groups_that_cannot_be_divided_are_named(
    table: Table, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError) as refusal:
        with_all_splits(table, DataConfig(source="custom", root="data", test_fraction=0, **changes))
    assert str(refusal.value).startswith(message)


def test_a_group_in_two_given_splits_is_a_leak(tmp_path: Path) -> None:
    write_shapes(tmp_path / "train", per_class=6, seed=0)
    write_shapes(tmp_path / "test", per_class=2, seed=1)
    with pytest.raises(UserError, match=r"data.group=\[0-9\]\+: images of '0+' are in train and test"):
        split_folder(tmp_path, group="[0-9]+", val_fraction=0.2)
    split_folder(tmp_path, group="[0-9]+", val_fraction=0.2, allow_leakage=True)
