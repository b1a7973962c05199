"""Splits that are split off train: even over the classes, stable, and with the copies of an image in one split."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from mlops_img.config.data import CsvConfig, DataConfig, FolderConfig
from mlops_img.data.sources.base import Table
from mlops_img.data.sources.registry import open_source
from mlops_img.data.sources.split_origin import SplitOrigin, describe_splits
from mlops_img.data.splits import names_below, with_all_splits
from tests.helpers.shapes import SHAPES, draw_shape, write_shapes
from tests.helpers.split_tables import assignment, counts, in_memory, split_folder


def split_of_each(table: Table, root: Path) -> dict[str, str]:
    """Map each image's name below the root to its split."""
    return {str(Path(path).relative_to(root)): split for split, images in table.splits.items() for path in images.paths}


def test_each_class_is_split_in_the_same_proportions() -> None:
    found = counts(assignment(in_memory({"many": 1000, "some": 100, "few": 10, "least": 3})))
    assert found == {
        "train": {"many": 800, "some": 80, "few": 8, "least": 1},
        "val": {"many": 100, "some": 10, "few": 1, "least": 1},
        "test": {"many": 100, "some": 10, "few": 1, "least": 1},
    }


def test_no_image_is_lost_or_in_two_splits(shared_shapes: Path) -> None:
    table = split_folder(shared_shapes)
    paths = [path for images in table.splits.values() for path in images.paths]
    assert sorted(paths) == sorted(open_source(FolderConfig(root=str(shared_shapes))).table().splits["train"].paths)
    for images in table.splits.values():
        assert [table.classes[label] for label in images.labels] == [Path(path).parent.name for path in images.paths]


def test_given_splits_stay_and_only_the_missing_one_is_made(tmp_path: Path) -> None:
    write_shapes(tmp_path / "train", per_class=10, seed=0)
    write_shapes(tmp_path / "test", per_class=2, seed=1)
    table = split_folder(tmp_path)
    assert {split: len(images) for split, images in table.splits.items()} == {"train": 27, "val": 3, "test": 6}
    assert all("/test/" in path for path in table.splits["test"].paths)
    assert all("/train/" in path for path in table.splits["val"].paths)


def test_the_split_follows_from_its_seed_and_not_from_order() -> None:
    table = in_memory({"a": 50, "b": 50})
    once = assignment(table)
    images = table.splits["train"]
    shuffled = images.select(np.random.default_rng(0).permutation(len(images)))
    assert assignment(Table(table.classes, {"train": shuffled})) == once
    assert assignment(table, split_seed=1) != once


def test_the_split_is_the_same_on_every_machine_and_version() -> None:
    # A change here splits everybody's data anew, and makes test images of training images.
    assigned = assignment(in_memory({"a": 20, "b": 20}))
    assert [name for name, split in assigned.items() if split == "test"] == EXPECTED_TEST


EXPECTED_TEST = ["a/00010", "a/00019", "b/00010", "b/00014"]


def test_moving_the_data_set_does_not_change_the_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = write_shapes(tmp_path / "here", per_class=20)
    once = split_of_each(split_folder(here), here)
    there = tmp_path / "some" / "where" / "else"
    shutil.copytree(here, there)
    assert split_of_each(split_folder(there), there) == once
    monkeypatch.chdir(tmp_path)
    assert split_of_each(split_folder(Path("here")), Path("here")) == once
    monkeypatch.chdir(there)
    assert split_of_each(split_folder(Path(".")), Path(".")) == once


def test_a_first_file_in_another_folder_does_not_split_a_table_anew(tmp_path: Path) -> None:
    lines = ["file,label"]
    for number in range(40):
        path = tmp_path / "images" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        draw_shape(SHAPES[number % 2], number).save(path)
        lines.append(f"images/{number}.png,{SHAPES[number % 2]}")
    config = CsvConfig(root=str(tmp_path))

    def split_table() -> dict[str, str]:
        (tmp_path / "labels.csv").write_text("\n".join(lines) + "\n")
        return split_of_each(with_all_splits(open_source(config).table(), config), tmp_path)

    before = split_table()
    draw_shape("circle", 1000).save(tmp_path / "late.png")
    lines.append("late.png,circle")
    after = split_table()
    assert sum(after[name] != split for name, split in before.items()) <= 2


def test_adding_an_image_moves_at_most_two_others_and_mostly_none() -> None:
    moved = []
    for size in range(3, 60):
        before = assignment(in_memory({"a": size, "b": 5}))
        for number in range(10):
            after = assignment(in_memory({"a": size, "b": 5}, extra=[f"a/new{number}"]))
            moved.append(sum(after[name] != split for name, split in before.items()))
    assert max(moved) <= 2
    assert np.mean(moved) < 0.5


def test_adding_an_image_to_one_missing_split_moves_at_most_one_other() -> None:
    given = in_memory({"a": 1, "b": 1}).splits["train"]
    for size in range(2, 60):
        assigned = []
        for extra in ([], ["a/new"]):
            table = in_memory({"a": size, "b": 5}, extra)
            table = Table(table.classes, {**table.splits, "test": given})
            splits = with_all_splits(table, DataConfig(source="custom", root="data")).splits
            assigned.append({path: split for split in ("train", "val") for path in splits[split].paths})
        assert sum(assigned[1][name] != split for name, split in assigned[0].items()) <= 1


def test_copies_of_an_image_stay_on_one_side(tmp_path: Path) -> None:
    root = write_shapes(tmp_path / "photos", per_class=12)
    for kind in SHAPES:
        for number in range(12):
            for copy in range(3):
                shutil.copy(root / kind / f"{number:03}.jpg", root / kind / f"copy{copy}-{number:03}.jpg")
    for seed in range(5):
        found = split_of_each(split_folder(root, split_seed=seed), root)
        for kind in SHAPES:
            for number in range(12):
                copies = {found[f"{kind}/{prefix}{number:03}.jpg"] for prefix in ("", "copy0-", "copy1-", "copy2-")}
                assert len(copies) == 1


def test_copies_in_two_classes_stay_on_one_side_too(tmp_path: Path) -> None:
    root = write_shapes(tmp_path / "photos", per_class=20)
    for number in range(10):
        shutil.copy(root / "circle" / f"{number:03}.jpg", root / "square" / f"mislabeled{number:03}.jpg")
    for seed in range(5):
        found = split_of_each(split_folder(root, split_seed=seed), root)
        for number in range(10):
            assert found[f"circle/{number:03}.jpg"] == found[f"square/mislabeled{number:03}.jpg"]


def test_limit_is_even_over_the_classes_and_keeps_to_each_split() -> None:
    table = in_memory({"many": 500, "some": 60, "few": 10})
    full, limited = assignment(table), assignment(table, limit=30)
    assert counts(limited) == {
        "train": {"many": 11, "some": 11, "few": 8},
        "val": {"many": 23, "some": 6, "few": 1},
        "test": {"many": 23, "some": 6, "few": 1},
    }
    assert limited.items() <= full.items()
    assert assignment(table, limit=10_000) == full


def test_a_smaller_limit_takes_some_of_the_same_images() -> None:
    table = in_memory({"a": 100, "b": 100})
    assert assignment(table, limit=10).keys() <= assignment(table, limit=50).keys()


def test_every_split_says_where_it_comes_from(tmp_path: Path) -> None:
    for split, count in (("train", 10), ("valid", 2)):
        write_shapes(tmp_path / split, per_class=count, seed=count)
    table = split_folder(tmp_path, split_seed=7, test_fraction=0.2)
    assert dict(table.origins) == {
        "train": SplitOrigin(place=f"{tmp_path}/train"),
        "val": SplitOrigin(place=f"{tmp_path}/valid"),
        "test": SplitOrigin("split off train", fraction=0.2, seed=7),
    }
    images = {split: len(images) for split, images in table.splits.items()}
    assert describe_splits(table.origins, images) == (
        f"val: 6 images given in {tmp_path}/valid; "
        "test: 6 images split off train (data.test_fraction=0.2, data.split_seed=7)"
    )


def test_a_source_that_names_no_place_has_origins_too() -> None:
    table = with_all_splits(in_memory({"a": 10, "b": 10}), DataConfig(source="custom", root="data", test_fraction=0.0))
    assert [origin.kind for origin in table.origins.values()] == ["given", "split off train", "none"]
    assert describe_splits(table.origins, {"train": 18, "val": 2}) == (
        "val: 2 images split off train (data.val_fraction=0.1, data.split_seed=0); test: none (data.test_fraction=0)"
    )
    for origin in table.origins.values():
        assert SplitOrigin(**origin.as_dict()) == origin


def test_ten_thousand_classes_are_split_without_looking_for_each_among_all_images() -> None:
    # For a million images that takes hours.
    table = in_memory({f"class{number}": 6 for number in range(10_000)})
    assert Counter(assignment(table, limit=20_000).values()) == {"train": 20_000, "val": 10_000, "test": 10_000}


def test_names_below_a_root_do_not_depend_on_how_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for root in (str(tmp_path / "data"), "data", "./data/", "~/data", "../" + tmp_path.name + "/data"):
        assert names_below(root, [f"{tmp_path}/data/a/1.png", "data/b/2.png"]) == ["a/1.png", "b/2.png"]


def test_names_elsewhere_are_seen_from_the_folder_that_they_share() -> None:
    assert names_below("data", ["/store/a/1.png", "/store/b/2.png"]) == ["a/1.png", "b/2.png"]
    assert names_below("data", ["/store/a/1.png"]) == ["1.png"]
    assert names_below("data", []) == []
