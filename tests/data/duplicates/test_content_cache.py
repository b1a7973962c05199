"""The content cache: the next process reads nothing again that has not changed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mlops_img.config.data import FolderConfig
from mlops_img.data import duplicates
from mlops_img.data.dataset import load_dataset
from mlops_img.data.duplicates import ContentIndex
from tests.helpers.content_files import Opened, numbered_files, write


@pytest.mark.usefixtures("settled")
def test_a_second_run_opens_no_file(tmp_path: Path, opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    root = numbered_files(tmp_path / "data", 100, ("train", "test"))
    before = load_dataset(FolderConfig(root=str(root)))
    assert len(opened.clear()) == 200
    after = load_dataset(FolderConfig(root=str(root)))
    monkeypatch.chdir(root)
    load_dataset(FolderConfig(root="."))
    assert not opened.times
    assert after.fingerprint == before.fingerprint
    assert after.val.paths == before.val.paths


def same_size(file: Path) -> None:
    file.write_bytes(file.read_bytes()[::-1])


def same_size_and_time(file: Path) -> None:
    before = file.stat()
    file.write_bytes(file.read_bytes()[::-1])
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def another_size(file: Path) -> None:
    file.write_bytes(b"a copy of this one")
    (file.parent / "copy.png").write_bytes(b"a copy of this one")


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("edit", [same_size, same_size_and_time, another_size])
def test_an_edited_file_is_read_again(tmp_path: Path, opened: Opened, edit: Callable[[Path], None]) -> None:
    root = numbered_files(tmp_path / "data", 20)
    load_dataset(FolderConfig(root=str(root)))
    opened.clear()
    file = root / "class0" / "004.png"
    earlier = file.stat()
    edit(file)
    # Both edits may fall into one tick of the file system's clock; the rule for files that changed just before
    # they were read is tested below.
    if (file.stat().st_mtime_ns, file.stat().st_ctime_ns) == (earlier.st_mtime_ns, earlier.st_ctime_ns):
        pytest.skip("the clock of the file system did not tick")
    load_dataset(FolderConfig(root=str(root)))
    assert opened.clear() - {"copy.png"} == {"004.png"}


@pytest.mark.usefixtures("settled")
def test_what_was_cached_declares_no_edited_file_a_copy(tmp_path: Path) -> None:
    images = write(tmp_path, {"a": b"one", "b": b"one", "c": b"two"})
    assert len(set(ContentIndex(str(tmp_path)).groups(images).tolist())) == 2
    Path(images.paths[1]).unlink()  # another file, and so another change time than that of the first
    shutil.copy(images.paths[2], images.paths[1])
    os.utime(images.paths[1], ns=(0, 1))
    groups = ContentIndex(str(tmp_path)).groups(images).tolist()
    assert groups[1] == groups[2] != groups[0]


def test_files_that_changed_just_before_they_were_read_are_not_trusted(
    tmp_path: Path, opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = write(tmp_path, {"old": b"one", "new": b"two"})
    settled_before = 10**18
    state = {"old": (3, 1, settled_before - 1), "new": (3, 1, settled_before)}
    monkeypatch.setattr(duplicates, "_state_of", lambda found: duplicates.State(*state[names[found.st_ino]]))
    names = {Path(path).stat().st_ino: Path(path).name for path in images.paths}
    monkeypatch.setattr("time.time_ns", lambda: settled_before + duplicates.SETTLED_NS)
    for names_opened in ({"old", "new"}, {"new"}, {"new"}):
        ContentIndex(str(tmp_path)).groups(images)
        assert opened.clear() == names_opened


@pytest.mark.usefixtures("settled")
def test_a_file_that_changes_while_it_is_read_is_not_trusted(
    tmp_path: Path, opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = write(tmp_path, {"a": b"one", "b": b"two"})
    with monkeypatch.context() as during:
        read = duplicates._head

        def changing(path: str) -> duplicates.Digests:
            if path == images.paths[1]:
                Path(path).write_bytes(b"longer than before")
            return read(path)

        during.setattr(duplicates, "_head", changing)
        ContentIndex(str(tmp_path)).groups(images)
    opened.clear()
    Path(images.paths[1]).write_bytes(b"two")
    ContentIndex(str(tmp_path)).groups(images)
    assert opened.clear() == {"b"}


@pytest.mark.usefixtures("settled")
def test_a_part_of_the_files_is_no_reason_to_forget_the_others(tmp_path: Path, opened: Opened) -> None:
    images = write(tmp_path, {str(number): b"%03d" % number for number in range(20)})
    ContentIndex(str(tmp_path)).groups(images.select(np.arange(10)))
    ContentIndex(str(tmp_path)).groups(images.select(np.arange(10, 20)))
    opened.clear()
    ContentIndex(str(tmp_path)).groups(images)
    assert not opened.times


@pytest.mark.usefixtures("settled")
def test_files_that_cannot_be_read_are_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = write(tmp_path, {"a": b"1", "b": b"1"})

    def broken(path: str, *_: object) -> None:
        raise PermissionError(13, "Permission denied", path)

    with monkeypatch.context() as locked:
        locked.setattr("builtins.open", broken)
        assert len(set(ContentIndex(str(tmp_path)).groups(images).tolist())) == 2
    assert len(set(ContentIndex(str(tmp_path)).groups(images).tolist())) == 1


def cut_off(cache: Path) -> None:
    cache.write_bytes(cache.read_bytes()[:-30])


def flip_a_bit(cache: Path) -> None:
    content = bytearray(cache.read_bytes())
    content[len(content) // 3] ^= 1
    cache.write_bytes(content)


def empty(cache: Path) -> None:
    cache.write_bytes(b"")


def another_layout(cache: Path) -> None:
    with cache.open("wb") as file:
        np.savez(file, files=np.zeros(20), names=np.frombuffer(b"\0" * 19, np.uint8))


def a_pickle(cache: Path) -> None:
    with cache.open("wb") as file:
        np.save(file, np.array([{}]), allow_pickle=True)


def a_folder(cache: Path) -> None:
    cache.unlink()
    cache.mkdir()


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("damage", [cut_off, flip_a_bit, empty, another_layout, a_pickle, a_folder])
def test_a_damaged_cache_is_ignored(tmp_path: Path, damage: Callable[[Path], None], opened: Opened) -> None:
    (tmp_path / "data").mkdir()
    images = write(tmp_path / "data", {str(number): b"%03d" % (number // 2) for number in range(20)})
    wanted = ContentIndex(str(tmp_path / "data")).groups(images).tolist()
    (cache,) = Path(os.environ["XDG_CACHE_HOME"], "mlops_img", "contents").iterdir()
    damage(cache)
    opened.clear()
    assert ContentIndex(str(tmp_path / "data")).groups(images).tolist() == wanted
    assert len(opened.clear()) == 20


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("home", ["/proc/nowhere", "relative/folder", ""])
def test_without_a_place_for_it_there_is_no_cache_and_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", home)
    monkeypatch.setenv("HOME", "/proc/nowhere")
    images = write(tmp_path, {"a": b"1", "b": b"1"})
    assert ContentIndex(str(tmp_path)).groups(images).tolist() == ContentIndex().groups(images).tolist()
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b"}


@pytest.mark.usefixtures("settled")
def test_names_that_are_not_utf_8_and_files_outside_the_root_are_cached(tmp_path: Path, opened: Opened) -> None:
    (tmp_path / "data").mkdir()
    odd = os.fsdecode(b"data/\xff\n.png")
    images = write(tmp_path, {odd: b"1", "outside.png": b"1", "data/c.png": b"2"})
    wanted = ContentIndex(str(tmp_path / "data")).groups(images).tolist()
    opened.clear()
    assert ContentIndex(str(tmp_path / "data")).groups(images).tolist() == wanted
    assert not opened.times
