"""A data root above or below the class folders: what is suggested, and what is warned of."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from mlops_img.config.data import FolderConfig
from mlops_img.data.dataset import load_dataset
from mlops_img.data.sources.levels import root_override
from mlops_img.errors import UserError
from tests.helpers.shapes import SHAPES, write_shapes
from tests.helpers.source_tables import error_message, folder_table, save


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
