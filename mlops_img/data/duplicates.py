"""Which files hold the same bytes, found while reading as little as possible."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from itertools import count

import numpy as np
from numpy.typing import NDArray

from mlops_img.data.sources import ImageSet, read_file

HEAD_BYTES = 4096


def content_groups(images: ImageSet) -> NDArray[np.int64]:
    """Number the images so that two have the same number if and only if their files hold the same bytes.

    Only files of the same size are opened, and read whole only where their first bytes agree too. Images
    that are not files, or cannot be read, each get a number of their own.

    Returns:
        int64 (n,).
    """
    if images.read is not read_file:
        return np.arange(len(images), dtype=np.int64)
    groups = np.zeros(len(images), np.int64)
    fresh = count(1)
    keys: tuple[Callable[[str], object], ...] = (os.path.getsize, _head, _digest)
    for key in keys:
        for rows in list(groups_of_several(groups)):
            numbers: dict[object, int] = {}
            groups[rows] = [numbers.setdefault(_or_itself(key, images.paths[row]), next(fresh)) for row in rows]
    return groups


def groups_of_several(groups: NDArray[np.int64]) -> Iterator[NDArray[np.intp]]:
    """Yield the positions of each number that occurs more than once, in ascending order."""
    order = np.argsort(groups, kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(groups[order])) + 1):
        if len(rows) > 1:
            yield rows


def _or_itself(key: Callable[[str], object], path: str) -> object:
    """Return the key of a file, or its path where it cannot be read: whoever decodes it says so better."""
    try:
        return key(path)
    except OSError:
        return path


def _head(path: str) -> bytes:
    with open(path, "rb") as file:
        return hashlib.md5(file.read(HEAD_BYTES), usedforsecurity=False).digest()


def _digest(path: str) -> bytes:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "md5").digest()
