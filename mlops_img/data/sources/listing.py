"""List the splits, class folders and images in a folder by their names."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

from PIL import Image

from mlops_img.data.sources.left_out import LeftOutFiles, Reason, clutter
from mlops_img.errors import UserError

# Names of split folders; letter case is ignored.
SPLIT_FOLDERS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
# Formats whose extension Pillow registers but that it cannot read, or only with an external program.
NOT_READ = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "PALM", "PDF", "WMF"})


def split_of(name: str) -> str | None:
    """Return the split with this folder name; None if it is not the name of a split."""
    return next((split for split, aliases in SPLIT_FOLDERS.items() if name.lower() in aliases), None)


def visible_folders(folder: Path, left_out: LeftOutFiles | None = None) -> list[Path]:
    """Return the subfolders that may be classes or splits, sorted; count the others in `left_out`.

    Raises:
        UserError: `folder` cannot be read.
    """
    counted = left_out or LeftOutFiles()
    folders = []
    try:
        for path in sorted(folder.iterdir()):
            if path.is_dir():
                reason = clutter(path.name)
                if reason is None:
                    folders.append(path)
                elif reason is not Reason.HIDDEN:  # .git, .dvc and similar folders
                    leave_out_folder(str(path), reason, counted)
            elif path.is_symlink() and not is_image(path.name) and not path.exists() and clutter(path.name) is None:
                counted.add(Reason.BROKEN_LINK, path.name, str(path))
    except OSError as error:
        raise UserError(f"folder {folder} cannot be read: {error.strerror}") from None
    return folders


def count_loose_images(folder: Path, left_out: LeftOutFiles) -> int:
    """Count the image files directly in `folder`, which belong to no class, and return their number."""
    count = 0
    with os.scandir(folder) as entries:
        for entry in entries:
            if is_image(entry.name) and clutter(entry.name) is None and not entry.is_dir():
                left_out.add(Reason.LOOSE, os.path.splitext(entry.name)[1].lower(), entry.path)
                count += 1
    return count


def is_image(name: str) -> bool:
    """Return whether the name has an image extension."""
    return name.lower().endswith(_image_suffixes())


@cache
def _image_suffixes() -> tuple[str, ...]:
    return tuple(suffix for suffix, kind in Image.registered_extensions().items() if kind not in NOT_READ)


def leave_out_folder(path: str, reason: Reason, left_out: LeftOutFiles) -> None:
    """Count a folder of other software."""
    count = 1
    # Only thumbnails are counted as files, because snapshots and trash may contain copies of everything.
    if reason is Reason.THUMBNAILS:
        count = sum(len(files) for _, _, files in os.walk(path))
    left_out.add(reason, f"{os.path.basename(path)}/", path, count)
