"""Suggest another data.root if the class folders are below or above the given folder."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Protocol

from mlops_img.config.command_line import for_shell
from mlops_img.core.text import shortened_list
from mlops_img.data.sources.listing import is_image, split_of, visible_folders
from mlops_img.errors import UserError

# Limits of the search, so that a hint takes little time in any folder tree.
DEEPEST = 5
MOST_FOLDERS = 50
MOST_FILES = 1000
NAMES_SHOWN = 3


class Listed(Protocol):
    """A class folder: its path and the names of the folders directly in it."""

    @property
    def path(self) -> Path:
        """The folder."""

    @property
    def subfolders(self) -> list[str]:
        """The names of the folders directly in it."""


def hint_below(root: Path) -> str:
    """Suggest the folder below `root` that contains the class folders or splits.

    Returns:
        A continuation of an error message, starting with ". "; empty if there is not exactly one such folder.
    """
    found = _data_set_below(root)
    if found is None:
        return ""
    names = [path.name for path in _folders(found)]
    what = "splits" if _has_splits(found) else "classes"
    return f". If {shortened_list(names, NAMES_SHOWN)} in {found} are the {what}, set {root_override(found)}"


def hint_above(root: Path, loose: int) -> str:
    """Suggest the folder above `root` if `root` looks like a class folder; else return an empty string."""
    if not loose:
        return ""
    whole = root.resolve()
    parent = whole.parent
    siblings = [path for path in _folders(parent) if path != whole][:MOST_FOLDERS]
    if not any(_has_images(path) for path in siblings):
        return ""
    if split_of(parent.name) and _has_splits(parent.parent):
        parent = parent.parent
    return f". If {whole.name!r} is one of the classes, set {root_override(_as_given(root, parent))}"


def doubts(classes: Sequence[Listed]) -> list[str]:
    """Return warnings about class folders that look like splits or data sets."""
    found = []
    for one in classes:
        if split_of(one.path.name) in ("val", "test"):
            leave_out = ", or leave it out with data.use_given_test=false" if split_of(one.path.name) == "test" else ""
            found.append(
                f"{one.path} is read as a class: it is a split only next to a folder train that contains the class "
                f"folders. If it is not a class, move it to another folder{leave_out}"
            )
        if any(split_of(name) == "train" for name in one.subfolders) and _has_splits(one.path):
            found.append(
                f"{one.path} is read as a class but contains splits. If it is the data set, "
                f"set {root_override(one.path)}"
            )
    like_splits = [one for one in classes if re.search(r"train|test|val", one.path.name.lower())]
    if len(like_splits) > 1:
        first, second = (_names_inside(one) for one in like_splits[:2])
        shared = sorted(first & second)
        if len(shared) > 1:
            names = " and ".join(one.path.name for one in like_splits[:2])
            found.append(
                f"{names} are read as classes, but both contain {', '.join(shared[:NAMES_SHOWN])}. "
                "If they are splits, rename them to train, val or test"
            )
    return found


def root_override(path: Path) -> str:
    """Return `data.root=<path>`, quoted for the shell and Hydra."""
    text = str(path)
    if re.fullmatch(r"[\w/.@%+-]+", text, re.ASCII):
        return f"data.root={text}"
    return for_shell("data.root", text)


def _names_inside(one: Listed) -> set[str]:
    """Return the names of the subfolders; one level deeper if the only subfolder repeats the name of the folder."""
    if [name.lower() for name in one.subfolders] == [one.path.name.lower()]:
        return {path.name for path in _folders(one.path / one.subfolders[0])}
    return set(one.subfolders)


def _data_set_below(root: Path) -> Path | None:
    level = _folders(root)
    for _ in range(DEEPEST):
        found = [path for path in level if _is_data_set(path)]
        if found:
            return found[0] if len(found) == 1 else None
        level = [path for folder in level for path in _folders(folder)][:MOST_FOLDERS]
    return None


def _is_data_set(folder: Path) -> bool:
    return _has_splits(folder) or sum(_has_images(path) for path in _folders(folder)[:MOST_FOLDERS]) > 1


def _has_splits(folder: Path) -> bool:
    return any(split_of(path.name) == "train" and _folders(path) for path in _folders(folder))


def _has_images(folder: Path) -> bool:
    try:
        with os.scandir(folder) as entries:
            return any(is_image(entry.name) for entry in islice(entries, MOST_FILES))
    except OSError:
        return False


def _folders(folder: Path) -> list[Path]:
    try:
        return visible_folders(folder)
    except UserError:
        return []  # no hint for folders that cannot be read


def _as_given(root: Path, above: Path) -> Path:
    """Return `above` relative to the working directory if `root` is relative."""
    if root.is_absolute():
        return above
    relative = os.path.relpath(above)
    return above if relative.startswith("..") else Path(relative)
