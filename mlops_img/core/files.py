"""Files that are whole or not there: written beside, flushed to the disk, renamed."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

log = logging.getLogger(__name__)


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Let `write` fill a file that takes the name `path` only when it is whole and on the disk.

    A full disk, a crash or a power cut leaves what was there before.

    Raises:
        OSError: it could not be written; no part of it stays behind.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(beside, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def read_json(path: Path) -> dict[str, Any]:
    """Return what a JSON file of ours holds; nothing if it is not there."""
    return dict(json.loads(path.read_text(encoding="utf-8", errors="replace"))) if path.is_file() else {}


def write_json(path: Path, content: Any) -> None:
    """Write JSON for people and programs, atomically."""
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    # A file name that is not UTF-8 reaches us as lone surrogates; their escapes are JSON's too.
    data = text.encode(errors="backslashreplace")
    write_atomically(path, lambda file: file.write(data))


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text, atomically."""
    write_atomically(path, lambda file: file.write(text.encode()))


def point_link(link: Path, target: Path) -> None:
    """Let the symbolic link lead to `target`, at no moment to nothing.

    Where links cannot be made there is only a warning: they are a convenience.
    """
    fresh = link.with_name(f".{link.name}.{os.getpid()}")
    try:
        link.parent.mkdir(parents=True, exist_ok=True)
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(os.path.relpath(target.resolve(), link.parent.resolve()), target_is_directory=True)
        os.replace(fresh, link)
    except OSError as error:
        log.warning("%s does not lead to %s: %s", link, target, error.strerror)


def sync_tree(folder: Path) -> None:
    """Bring every file below the folder to the disk."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        else:
            _sync_folder(path)
    _sync_folder(folder)


def _sync_folder(folder: Path) -> None:
    # The new name is itself an entry on the disk. Windows and some mounted buckets cannot sync a folder; the
    # file has its name by now, so that is no failure.
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
