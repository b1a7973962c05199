"""Which files hold the same bytes, found while reading as little as possible."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from mlops_img.data.content_cache import FILE, UNREAD, ContentCache
from mlops_img.data.names import absolute
from mlops_img.data.sources.base import ImageSet, read_file

# A file up to this size is read whole at once; reading this much takes a disk about as long as reading one byte.
HEAD_BYTES = 16 * 1024
# Most of the time passes waiting for the disk or the network, so more threads than cores are of use.
THREADS = 16
FILES_PER_TASK = 64
SECONDS_BEFORE_PROGRESS = 1.0
# A file that changed so shortly before it was looked at may change again under the same timestamp, which some file
# systems keep in steps of 2 s. Such a file is not kept in the cache (Git has the same rule, for "racy" files).
SETTLED_NS = 2_000_000_000
# The cache keeps files that are not in use at present or no longer exist, up to this many.
MAX_UNUSED = 1_000_000
DIGEST_BYTES = 16

Result = TypeVar("Result")


class State(NamedTuple):
    """What tells that a file has changed: its size in bytes, modification and change time in nanoseconds."""

    size: int
    mtime: int
    ctime: int


NOT_FOUND = State(-1, 0, 0)


class Digests(NamedTuple):
    """What was read of a file, 16 bytes each or UNREAD, and the file's state after that."""

    head: bytes
    whole: bytes
    state: State


class ContentIndex:
    """Sizes and contents of files. Each file is looked at once, however often it is asked for.

    Args:
        root: the folder of the data set. What is read of its files is kept in a cache for the next process, and
            read again only where a file's size or one of its times differ. None: no cache.
    """

    def __init__(self, root: str | None = None) -> None:
        self._cache = None if root is None else ContentCache(root)
        self._cached: tuple[dict[str, int], NDArray[np.void]] | None = None
        self._row_of: dict[str, int] = {}
        self._files = np.zeros(0, FILE)
        self._settled = np.zeros(0, np.bool_)
        self._changed = False

    def sizes(self, images: ImageSet) -> NDArray[np.int64]:
        """Return each image's size in bytes, int64 (n,); 0 for images that are not files or cannot be found."""
        if images.read is not read_file:
            return np.zeros(len(images), np.int64)
        rows = self._rows(images)
        sizes: NDArray[np.int64] = self._files["size"][rows].clip(0)
        return sizes

    def groups(self, images: ImageSet) -> NDArray[np.int64]:
        """Number the images so that two have the same number if and only if their files hold the same bytes.

        Only files of the same size are opened, each once. Those larger than `HEAD_BYTES` are opened once more, and
        read whole, where their first bytes agree too. Images that are not files, or cannot be read, each get a
        number of their own.

        Returns:
            int64 (n,).
        """
        if images.read is not read_file:
            return np.arange(len(images), dtype=np.int64)
        rows, which = np.unique(self._rows(images), return_inverse=True)
        sizes = self._files["size"][rows]
        # A file that cannot be found has a size of its own.
        groups = _numbered(np.where(sizes < 0, -1 - rows, sizes))
        for field, read in (("head", _head), ("whole", _whole)):
            several = list(groups_of_several(groups))
            if not several:
                break
            places = np.concatenate(several)
            self._read_missing(field, read, rows[places])
            # Equal digests mean equal sizes, and equal first bytes: they replace the group up to here.
            groups[places] = groups.max() + 1 + _numbered(self._files[field][rows[places]])
        self._save()
        return groups[which]

    def _rows(self, images: ImageSet) -> NDArray[np.intp]:
        """Return the place of each image in the index, after looking for those that are new to it."""
        fresh = [path for path in dict.fromkeys(images.paths) if path not in self._row_of]
        if fresh:
            self._add(fresh)
        return np.fromiter(map(self._row_of.__getitem__, images.paths), np.intp, len(images))

    def _add(self, paths: list[str]) -> None:
        settled_before = time.time_ns() - SETTLED_NS
        states = _table(_in_threads(_state, paths, "looking for files"))
        files = np.zeros(len(paths), FILE)
        files["size"], files["mtime"], files["ctime"] = states.T
        self._take_from_cache(paths, files)
        self._row_of |= {path: row for row, path in enumerate(paths, start=len(self._row_of))}
        self._files = np.concatenate([self._files, files])
        self._settled = np.concatenate([self._settled, states[:, 1:].max(1) < settled_before])

    def _take_from_cache(self, paths: list[str], files: NDArray[np.void]) -> None:
        """Fill in the digests of the files that are as they were when they were read."""
        if self._cache is None:
            return
        if self._cached is None:
            self._cached = self._cache.load()
        row_of, known = self._cached
        rows = np.fromiter((row_of.get(path, -1) for path in absolute(paths)), np.intp, len(paths))
        places = np.flatnonzero(rows >= 0)
        found = known[rows[places]]
        same = np.all([found[field] == files[field][places] for field in State._fields], axis=0)
        files[places[same]] = found[same]

    def _read_missing(self, field: str, read: Callable[[str], Digests], rows: NDArray[np.intp]) -> None:
        """Read the files that lack this digest."""
        rows = rows[self._files[field][rows] == UNREAD]
        if not len(rows):
            return
        paths = list(self._row_of)
        found = _in_threads(read, [paths[row] for row in rows.tolist()], "comparing files")
        for kind in ("head", "whole"):
            digests = np.frombuffer(b"".join(getattr(one, kind) for one in found), UNREAD.dtype)
            known = digests != UNREAD
            self._files[kind][rows[known]] = digests[known]
        states = _table([one.state for one in found])
        before = np.stack([self._files[name][rows] for name in State._fields], axis=1)
        self._settled[rows] &= (states == before).all(1)
        self._changed = True

    def _save(self) -> None:
        """Keep what is known of files that will not change unnoticed, for the next process."""
        if self._cache is None or self._cached is None or not self._changed:
            return
        self._changed = False
        rows = np.flatnonzero(self._settled & (self._files["head"] != UNREAD))
        paths = absolute(list(self._row_of))
        row_of, known = self._cached
        used = set(paths)
        unused = [(path, row) for path, row in row_of.items() if path not in used][:MAX_UNUSED]
        self._cache.save(
            [paths[row] for row in rows.tolist()] + [path for path, _ in unused],
            np.concatenate([self._files[rows], known[[row for _, row in unused]]]),
        )


def groups_of_several(groups: NDArray[np.int64]) -> Iterator[NDArray[np.intp]]:
    """Yield the positions of each number that occurs more than once, in ascending order."""
    order = np.argsort(groups, kind="stable")
    starts = np.flatnonzero(np.diff(groups[order], prepend=groups.min(initial=0) - 1))
    stops = np.append(starts[1:], len(order))
    several = stops - starts > 1
    for start, stop in zip(starts[several].tolist(), stops[several].tolist(), strict=True):
        yield order[start:stop]


def _numbered(values: NDArray[Any]) -> NDArray[np.int64]:
    """Return for each value the number of the different values before its first occurrence, int64 (n,)."""
    numbers: dict[object, int] = {}
    return np.fromiter((numbers.setdefault(value, len(numbers)) for value in values.tolist()), np.int64, len(values))


def _in_threads(call: Callable[[str], Result], paths: Sequence[str], title: str) -> list[Result]:
    """Return the result for each path, with a progress bar on a terminal if it takes longer than a moment."""
    parts = [paths[start : start + FILES_PER_TASK] for start in range(0, len(paths), FILES_PER_TASK)]
    results: list[Result] = []
    with (
        # disable=None: no bar where stderr is not a terminal.
        tqdm(
            total=len(paths), desc=title, unit="file", disable=None, leave=False, delay=SECONDS_BEFORE_PROGRESS
        ) as bar,
        ThreadPoolExecutor(min(THREADS, len(parts))) as pool,
    ):
        for part in pool.map(lambda part: [call(path) for path in part], parts):
            results += part
            bar.update(len(part))
    return results


def _table(states: Sequence[State]) -> NDArray[np.int64]:
    """Return int64 (n, 3)."""
    return np.fromiter(chain.from_iterable(states), np.int64).reshape(len(states), 3)


def _state(path: str) -> State:
    try:
        return _state_of(os.stat(path))
    except (OSError, ValueError):  # whatever decodes the image explains it better
        return NOT_FOUND


def _state_of(found: os.stat_result) -> State:
    return State(found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def _head(path: str) -> Digests:
    """Read a file's first bytes, and with them the whole of a small file."""
    try:
        with open(path, "rb") as file:
            start = file.read(HEAD_BYTES + 1)
            state = _state_of(os.fstat(file.fileno()))
    except OSError:
        return _unreadable(path)
    head = _digest(state.size.to_bytes(8) + start[:HEAD_BYTES])
    return Digests(head, _digest(start) if len(start) <= HEAD_BYTES else UNREAD.tobytes(), state)


def _whole(path: str) -> Digests:
    """Read all of a file."""
    try:
        with open(path, "rb") as file:
            whole = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=DIGEST_BYTES)).digest()
            return Digests(UNREAD.tobytes(), whole, _state_of(os.fstat(file.fileno())))
    except OSError:
        return _unreadable(path)


def _unreadable(path: str) -> Digests:
    """Return digests that no other file has: a file that cannot be read is a copy of none."""
    own = _digest(b"unreadable " + os.fsencode(path))
    return Digests(own, own, NOT_FOUND)


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=DIGEST_BYTES).digest()
