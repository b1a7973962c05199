"""Names of images: absolute, and relative to the folder of the data set."""

from __future__ import annotations

import os
from collections.abc import Sequence


def names_below(root: str, paths: Sequence[str]) -> list[str]:
    """Return each image's path relative to `root`: a name that does not change if the data set moves.

    Where not all lie below `root`, they are seen from the folder that they share.
    """
    full = absolute(paths)
    above = os.path.join(os.path.abspath(os.path.expanduser(root)), "")
    if full and not all(path.startswith(above) for path in full):
        above = os.path.join(os.path.commonpath({os.path.dirname(path) for path in full}), "")
    return [path[len(above) :] for path in full]


def absolute(paths: Sequence[str]) -> list[str]:
    """Return os.path.abspath of each path, computed once per folder: a large data set has many files in few."""
    folders: dict[str, str] = {}
    full = []
    for path in paths:
        name = path[path.rfind("/") + 1 :]
        if name in ("", ".", ".."):
            full.append(os.path.abspath(path))
            continue
        folder = path[: -len(name)]
        if folder not in folders:
            folders[folder] = os.path.join(os.path.abspath(folder), "")
        full.append(folders[folder] + name)
    return full
