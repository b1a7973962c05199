"""Which files are copies of each other, found while reading as little as possible."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from mlops_img.config.data import FolderConfig
from mlops_img.data import duplicates
from mlops_img.data.dataset import load_dataset
from mlops_img.data.duplicates import HEAD_BYTES, ContentIndex
from mlops_img.data.names import absolute
from mlops_img.data.sources.base import ImageSet
from tests.helpers.content_files import Opened, numbered_files, write


def test_files_are_copies_if_and_only_if_all_bytes_agree(tmp_path: Path) -> None:
    long = bytes(HEAD_BYTES + 1000)
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
            "whole head": bytes(HEAD_BYTES),
            "copy of the whole head": bytes(HEAD_BYTES),
        },
    )
    groups = ContentIndex().groups(images).tolist()
    assert groups[0] == groups[2]
    assert groups[5] == groups[6]
    assert groups[7] == groups[8]
    assert len(set(groups)) == 6


def test_files_of_unique_size_are_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = write(tmp_path, {str(size): bytes(size) for size in range(1, 20)} | {"again": bytes(5)})
    opened: list[str] = []
    monkeypatch.setattr("builtins.open", lambda path, mode, _open=open: (opened.append(path), _open(path, mode))[1])
    ContentIndex().groups(images)
    assert {Path(path).name for path in opened} == {"5", "again"}


def test_files_that_cannot_be_read_are_copies_of_none(tmp_path: Path) -> None:
    images = write(tmp_path, {"a": b"1", "b": b"1"})
    lost = ImageSet([*images.paths, str(tmp_path / "lost"), str(tmp_path / "lost too")], np.zeros(4, np.int64))
    groups = ContentIndex().groups(lost).tolist()
    assert groups[0] == groups[1]
    assert len(set(groups)) == 3


@pytest.mark.parametrize("splits", [("",), ("train", "test"), ("train", "val", "test")])
def test_loading_a_data_set_opens_and_looks_at_each_file_once(
    tmp_path: Path, opened: Opened, monkeypatch: pytest.MonkeyPatch, splits: Sequence[str]
) -> None:
    root = numbered_files(tmp_path / "data", 300, splits)
    looked_at: Counter[str] = Counter()
    state = duplicates._state
    monkeypatch.setattr(duplicates, "_state", lambda path: (looked_at.update([path]), state(path))[1])
    load_dataset(FolderConfig(root=str(root)))
    assert len(opened.times) == len(looked_at) == 300 * len(splits)
    assert set(opened.times.values()) == set(looked_at.values()) == {1}


def test_a_file_larger_than_its_head_is_read_whole_only_if_another_starts_alike(tmp_path: Path, opened: Opened) -> None:
    body = bytes(HEAD_BYTES)
    contents = {str(number): bytes([number]) + body for number in range(3)} | {"copy of 1": b"\1" + body}
    ContentIndex().groups(write(tmp_path, contents))
    assert opened.times == {"0": 1, "1": 2, "2": 1, "copy of 1": 2}


def test_no_file_is_opened_for_sizes(tmp_path: Path, opened: Opened) -> None:
    images = write(tmp_path, {"a": b"123", "b": b"123", "c": b""})
    lost = ImageSet([*images.paths, str(tmp_path / "lost")], np.zeros(4, np.int64))
    assert ContentIndex().sizes(lost).tolist() == [3, 3, 0, 0]
    assert not opened.times


def test_many_files_show_a_progress_bar_on_a_terminal_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(duplicates, "SECONDS_BEFORE_PROGRESS", 0)
    images = write(tmp_path, {str(number): b"%03d" % number for number in range(200)})
    ContentIndex().groups(images)
    assert not capsys.readouterr().err
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    ContentIndex().groups(images)
    assert "comparing files" in capsys.readouterr().err


def test_paths_become_absolute_as_the_standard_library_makes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/tmp")
    paths = [
        "a",
        "./a",
        "b/../a",
        "b/.",
        "b/..",
        "b/",
        "",
        ".",
        "..",
        "/",
        "/a",
        "//a",
        "//a/b",
        "///a",
        "a//b",
        "/x/./y",
    ]
    assert absolute(paths) == [os.path.abspath(path) for path in paths]
