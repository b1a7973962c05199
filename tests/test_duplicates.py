"""Which files are copies of each other, found while reading as little as possible."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from mlops_img.data.duplicates import content_groups
from mlops_img.data.sources import ImageSet


def write(folder: Path, contents: Mapping[str, bytes]) -> ImageSet:
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return ImageSet([str(folder / name) for name in contents], np.zeros(len(contents), np.int64))


def test_files_are_copies_if_and_only_if_all_bytes_agree(tmp_path: Path) -> None:
    long = bytes(10_000)
    images = write(
        tmp_path,
        {
            "a": long,
            "same size and head, another end": long[:-1] + b"x",
            "copy of a": long,
            "same size, another head": b"x" + long[1:],
            "shorter": long[:-1],
            "empty": b"",
            "also empty": b"",
        },
    )
    groups = content_groups(images).tolist()
    assert groups[0] == groups[2]
    assert groups[5] == groups[6]
    assert len(set(groups)) == 5


def test_files_of_unique_size_are_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = write(tmp_path, {str(size): bytes(size) for size in range(1, 20)} | {"again": bytes(5)})
    opened: list[str] = []
    monkeypatch.setattr("builtins.open", lambda path, mode, _open=open: (opened.append(path), _open(path, mode))[1])
    content_groups(images)
    assert {Path(path).name for path in opened} == {"5", "again"}


def test_files_that_cannot_be_read_are_copies_of_none(tmp_path: Path) -> None:
    images = write(tmp_path, {"a": b"1", "b": b"1"})
    lost = ImageSet([*images.paths, str(tmp_path / "lost"), str(tmp_path / "lost too")], np.zeros(4, np.int64))
    groups = content_groups(lost).tolist()
    assert groups[0] == groups[1]
    assert len(set(groups)) == 3
