"""Files are written completely or not at all."""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path
from typing import IO

import pytest

from mlops_img.core.files import write_atomically, write_json, write_text


def full_disk(file: IO[bytes]) -> None:
    file.write(b"half of")
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_file_is_replaced_atomically(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    write_text(path, "before")
    before = os.stat(path).st_ino

    def write(file: IO[bytes]) -> None:
        file.write(b"after")
        assert path.read_text() == "before"

    write_atomically(path, write)
    assert path.read_text() == "after"
    assert os.stat(path).st_ino != before
    assert os.listdir(tmp_path) == ["notes.txt"]


@pytest.mark.parametrize("exists", [True, False])
def test_failed_write_keeps_the_old_file_and_leaves_no_temporary_file(exists: bool, tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    if exists:
        path.write_text("before")
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, full_disk)
    assert os.listdir(tmp_path) == (["notes.txt"] if exists else [])
    assert not exists or path.read_text() == "before"


def test_interrupted_write_leaves_no_temporary_file(tmp_path: Path) -> None:
    def interrupted(file: IO[bytes]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "notes.txt", interrupted)
    assert os.listdir(tmp_path) == []


def test_content_is_flushed_to_disk_before_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, calls = tmp_path / "notes.txt", []
    sync, rename = os.fsync, os.replace

    def fsync(handle: int) -> None:
        calls.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file")
        sync(handle)

    def replace(source: Path, target: Path) -> None:
        calls.append("rename")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    write_text(path, "text")
    assert calls == ["file", "rename", "folder"]


def test_failure_to_flush_the_folder_is_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sync = os.fsync

    def fsync(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "not on this file system")
        sync(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    write_text(tmp_path / "notes.txt", "text")
    assert (tmp_path / "notes.txt").read_text() == "text"


def test_json_round_trip_keeps_the_content_and_unicode(tmp_path: Path) -> None:
    content = {"name": "Krähe", "values": [1, 2.5, None, True]}
    write_json(tmp_path / "a.json", content)
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert json.loads(text) == content
    assert "Krähe" in text
    assert text.endswith("}\n")


def test_content_that_is_not_json_keeps_the_old_file(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"kept": True})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"path": tmp_path})
    assert json.loads((tmp_path / "a.json").read_text()) == {"kept": True}
