"""List class folders on disk: their splits, classes and files."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from mlops_img.data.sources.left_out import LeftOutFiles, Reason, clutter
from mlops_img.data.sources.levels import hint_above, hint_below
from mlops_img.data.sources.listing import (
    SPLIT_FOLDERS,
    count_loose_images,
    is_image,
    leave_out_folder,
    split_of,
    visible_folders,
)
from mlops_img.errors import UserError


@dataclass(frozen=True)
class ClassFolder:
    """The folder of a class.

    Attributes:
        path: the folder.
        files: its image files at any depth, sorted.
        subfolders: the names of the folders directly in it.
    """

    path: Path
    files: list[str]
    subfolders: list[str]


def existing_folder(root: str) -> Path:
    """Return the path of the folder.

    Raises:
        UserError: it does not exist, is a file, cannot be read or is empty.
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


def split_folders(root: Path, left_out: LeftOutFiles) -> dict[str, Path]:
    """Return the folder of each split in `root`; without split folders, "train" is `root` itself."""
    inside = visible_folders(root)
    found: dict[str, Path] = {}
    for split in SPLIT_FOLDERS:
        folders = [path for path in inside if split_of(path.name) == split]
        if len(folders) > 1:
            raise UserError(f"{folders[0]} and {folders[1]} both name the {split} split. Merge them")
        if folders:
            found[split] = folders[0]
    others = [path for path in inside if path not in found.values()]
    # A folder "train" without subfolders may be a class: images of trains.
    if "train" in found and visible_folders(found["train"]):
        visible_folders(root, left_out)
        for path in others:
            left_out.add(Reason.BESIDE_SPLITS, f"{path.name}/", str(path))
        count_loose_images(root, left_out)
        return found
    return {"train": root} if others or not found else found


def class_folders(folder: Path, left_out: LeftOutFiles, hint: str = "") -> list[ClassFolder]:
    """Return the classes, one per subfolder, with their image files at any depth; count the files left out.

    Args:
        folder: the folder of a split.
        left_out: counts the files that are left out.
        hint: continuation of the error message if there are no class folders.

    Raises:
        UserError: there are no class folders, one has no images, or one cannot be read.
    """
    inside = visible_folders(folder, left_out)
    loose = count_loose_images(folder, left_out)
    if not inside:
        direct = f" ({loose:,} images are directly in it)" if loose else ""
        hint = hint or hint_above(folder, loose)
        raise UserError(
            f"{folder} has no class folders{direct}. Put the images of each class into a separate folder{hint}"
        )
    classes = [images_below(path, left_out) for path in inside]
    empty = next((one for one in classes if not one.files), None)
    if empty:
        count = sum(len(files) for _, _, files in os.walk(empty.path))
        found = f"none of its {count} files has an image extension" if count else "the folder is empty"
        hint = hint_below(folder) if sum(bool(one.files) for one in classes) == 1 else ""
        raise UserError(
            f"class {empty.path.name!r} has no images: {empty.path}, {found}. Add images or remove the folder{hint}"
        )
    return classes


def images_below(folder: Path, left_out: LeftOutFiles) -> ClassFolder:
    """List the image files of a folder at any depth, without hidden files and files of other software.

    Raises:
        UserError: a folder cannot be read.
    """

    def fail(error: OSError) -> None:
        raise UserError(f"folder {error.filename} cannot be read: {error.strerror}")

    files: list[str] = []
    subfolders: list[str] | None = None
    visited = {os.path.realpath(folder)}
    for current, folders, names in os.walk(folder, onerror=fail, followlinks=True):
        folders[:] = _own_folders(current, folders, visited, left_out)
        if subfolders is None:
            subfolders = list(folders)
        for name in names:
            reason = clutter(name)
            path = os.path.join(current, name)
            if reason is not None:
                left_out.add(reason, "._*" if name.startswith("._") else name, path)
            elif is_image(name):
                files.append(path)
            elif os.path.islink(path) and not os.path.exists(path):
                left_out.add(Reason.BROKEN_LINK, name, path)
            else:
                left_out.add(Reason.EXTENSION, os.path.splitext(name)[1] or name, path)
    return ClassFolder(folder, sorted(files), subfolders or [])


def _own_folders(parent: str, names: list[str], visited: set[str], left_out: LeftOutFiles) -> list[str]:
    """Return the folders to list, sorted, without folders of other software and folders already visited."""
    kept = []
    for name in sorted(names):
        path = os.path.join(parent, name)
        reason = clutter(name)
        if reason is not None:
            leave_out_folder(path, reason, left_out)
            continue
        # Links are followed, but no folder is visited twice, because links may form a cycle.
        real = os.path.realpath(path)
        if real not in visited:
            kept.append(name)
        visited.add(real)
    return kept
