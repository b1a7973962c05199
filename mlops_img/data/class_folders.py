"""Class folders on disk: which splits they make, which classes, and which files."""

from __future__ import annotations

import logging
import os
from collections import Counter
from pathlib import Path

from PIL import Image

from mlops_img.errors import UserError

# Names of a split's folder, in any case.
SPLIT_FOLDERS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
# What Pillow knows by name but cannot read, or only with another program.
NOT_READ = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "PALM", "PDF", "WMF"})

log = logging.getLogger(__name__)


def existing_folder(root: str) -> Path:
    """Return the folder's path.

    Raises:
        UserError: it does not exist, is a file, or holds nothing.
    """
    path = Path(root).expanduser()
    if not path.exists():
        raise UserError(f"data.root: folder {path} does not exist. Name the folder of your images with data.root=...")
    if not path.is_dir():
        raise UserError(f"data.root: {path} is a file. Name the folder that holds the images")
    try:
        empty = not any(path.iterdir())
    except OSError as error:
        raise UserError(f"data.root: folder {path} cannot be read: {error.strerror}") from None
    if empty:
        raise UserError(f"data.root: folder {path} is empty. Put one folder of images per class into it")
    return path


def split_folders(root: Path) -> dict[str, Path]:
    """Map each split that has a folder below `root` to it; without splits, "train" is `root` itself."""
    inside = _visible_folders(root)
    found: dict[str, Path] = {}
    for split, aliases in SPLIT_FOLDERS.items():
        folders = [path for path in inside if path.name.lower() in aliases]
        if len(folders) > 1:
            raise UserError(f"{folders[0]} and {folders[1]} both name the {split} split. Merge them")
        if folders:
            found[split] = folders[0]
    others = [path.name for path in inside if path not in found.values()]
    # A folder "train" without folders inside may be a class as well: pictures of trains.
    if "train" in found and _visible_folders(found["train"]):
        if others:
            log.warning("%s: left out %s, which lie beside the splits", root, ", ".join(others))
        return found
    if others or not found:
        return {"train": root}
    if "train" not in found:
        raise UserError(f"{root} has {', '.join(path.name for path in found.values())} but no folder train")
    return found


def class_files(folder: Path) -> dict[str, list[str]]:
    """Map each class (a subfolder) to its sorted image files, at any depth.

    Raises:
        UserError: there are no class folders, one has no images, or one cannot be read.
    """
    formats = Image.registered_extensions()
    suffixes = tuple(suffix for suffix, kind in formats.items() if kind not in NOT_READ)
    left_out: Counter[str] = Counter()
    classes: dict[str, list[str]] = {}
    for place in _visible_folders(folder):
        files = _files_below(place)
        classes[place.name] = [file for file in files if file.lower().endswith(suffixes)]
        others = [Path(file) for file in files if not file.lower().endswith(suffixes)]
        left_out.update(path.suffix or path.name for path in others)
        if not classes[place.name]:
            found = f"of its {len(files)} files none is an image by its name" if files else "it is empty"
            raise UserError(f"class {place.name!r} has no images: {place}, {found}. Add some or take the folder away")
    if not classes:
        raise UserError(f"{folder} has no class folders. Put the images of each class into a folder of its own")
    if left_out:
        named = ", ".join(f"{name} ({count})" for name, count in left_out.most_common(5))
        log.warning("%s: left out %d files, no images by their names: %s", folder, left_out.total(), named)
    return classes


def _visible_folders(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError as error:
        raise UserError(f"folder {folder} cannot be read: {error.strerror}") from None


def _files_below(folder: Path) -> list[str]:
    """Return the files at any depth, sorted, without hidden ones."""

    def fail(error: OSError) -> None:
        raise UserError(f"folder {error.filename} cannot be read: {error.strerror}")

    files: list[str] = []
    visited = {os.path.realpath(folder)}
    for place, folders, names in os.walk(folder, onerror=fail, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        # Links are followed, but none twice: they may run in a circle.
        for name in list(folders):
            real = os.path.realpath(os.path.join(place, name))
            if real in visited:
                folders.remove(name)
            visited.add(real)
        files += [os.path.join(place, name) for name in names if not name.startswith(".")]
    return sorted(files)
