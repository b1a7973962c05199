"""Write files atomically: to a temporary file in the same folder, which is flushed to disk and renamed."""

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
    """Write a file with `write` and rename it to `path` when it is complete and on disk.

    After a full disk, a crash or a power failure, `path` has its former content.

    Raises:
        OSError: the file could not be written; the temporary file is removed.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; an empty dictionary if the file does not exist."""
    return dict(json.loads(path.read_text(encoding="utf-8", errors="replace"))) if path.is_file() else {}


def write_json(path: Path, content: Any) -> None:
    """Write indented JSON, atomically."""
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    # Python decodes file names that are not UTF-8 to lone surrogates; their escapes are valid JSON.
    data = text.encode(errors="backslashreplace")
    write_atomically(path, lambda file: file.write(data))


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text, atomically."""
    write_atomically(path, lambda file: file.write(text.encode()))


def point_link(link: Path, target: Path) -> None:
    """Create or replace a symbolic link to `target`, atomically.

    If links are not supported, only a warning is logged, because the link is a convenience.
    """
    fresh = link.with_name(f".{link.name}.{os.getpid()}")
    try:
        link.parent.mkdir(parents=True, exist_ok=True)
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(os.path.relpath(target.resolve(), link.parent.resolve()), target_is_directory=True)
        os.replace(fresh, link)
    except OSError as error:
        log.warning("cannot link %s to %s: %s", link, target, error.strerror)


def sync_tree(folder: Path) -> None:
    """Flush every file and folder below the folder to disk."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        else:
            _sync_folder(path)
    _sync_folder(folder)


def _sync_folder(folder: Path) -> None:
    # Flushes the new directory entry. Windows and some mounted buckets cannot flush a folder, which is no error because
    # the file has already been renamed.
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
