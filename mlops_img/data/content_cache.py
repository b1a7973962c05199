"""What is known about the contents of files from earlier runs: one cache file for each data root."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mlops_img.core.files import write_atomically

# One row per file. `size` to `ctime` identify the state of the file (bytes; nanoseconds). `head` is a digest of the
# size and the first bytes, `whole` one of all bytes; zeros stand for "not read".
FILE = np.dtype([("size", "<i8"), ("mtime", "<i8"), ("ctime", "<i8"), ("head", "V16"), ("whole", "V16")])
UNREAD = np.void(bytes(16))
# Part of the cache file's name: another layout of FILE, or another meaning of a digest, takes another number.
FORMAT = 1

log = logging.getLogger(__name__)


class ContentCache:
    """The cache file of one data root, below XDG_CACHE_HOME or ~/.cache; it may be deleted at any time.

    A cache that is missing, damaged or cannot be written is not an error: files are then read again.
    """

    def __init__(self, root: str) -> None:
        self._root = os.path.join(os.path.abspath(os.path.expanduser(root)), "")
        self._path = _cache_path(self._root)

    def load(self) -> tuple[dict[str, int], NDArray[np.void]]:
        """Return the row of each absolute path, and the rows: `FILE` (n,)."""
        if self._path is None:
            return {}, np.zeros(0, FILE)
        try:
            # Each part of the archive has a checksum, so that half of a file is never taken for a whole one.
            with open(self._path, "rb") as file, np.load(file, allow_pickle=False) as content:
                files: NDArray[np.void] = content["files"]
                names = os.fsdecode(content["names"].tobytes()).split("\0")
            if files.dtype != FILE or files.shape != (len(names),):
                raise ValueError("it has another layout")
        except FileNotFoundError:
            return {}, np.zeros(0, FILE)
        # A damaged archive raises many kinds of exceptions, and none of them is worth stopping for.
        except Exception as error:
            log.debug("%s is ignored: %s", self._path, error)
            return {}, np.zeros(0, FILE)
        paths = (name if name.startswith("/") else self._root + name for name in names)
        return {path: row for row, path in enumerate(paths)}, files

    def save(self, paths: Sequence[str], files: NDArray[np.void]) -> None:
        """Replace the cache file: absolute paths, and their rows, `FILE` (n,)."""
        if self._path is None or not paths:
            return
        start = len(self._root)
        names = "\0".join(path[start:] if path.startswith(self._root) else path for path in paths)
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(
                self._path,
                lambda file: np.savez(file, files=files, names=np.frombuffer(os.fsencode(names), np.uint8)),
            )
        except OSError as error:
            log.debug("%s cannot be written: %s", self._path, error)


def cache_folder() -> Path | None:
    """Return where the cache files are kept; None where the user has no home directory."""
    home = os.environ.get("XDG_CACHE_HOME", "")
    folder = home if os.path.isabs(home) else os.path.expanduser("~/.cache")
    return Path(folder, "mlops_img", "contents") if os.path.isabs(folder) else None


def _cache_path(root: str) -> Path | None:
    folder = cache_folder()
    name = hashlib.blake2b(os.fsencode(root), digest_size=16).hexdigest()
    return None if folder is None else folder / f"{name}.{FORMAT}.npz"
