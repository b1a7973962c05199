"""The images to predict: those of a folder, a table or a list.

A further kind of input is an entry of `READERS`. It names each image and gives an `ImageSet` that reads them, which
need not be files of their own.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mlops_img.config.predict import PredictDataConfig
from mlops_img.data.sources.base import ImageSet
from mlops_img.data.sources.class_folders import images_below
from mlops_img.data.sources.csv_images import ImageFiles
from mlops_img.data.sources.csv_reader import CsvRows, read_csv, read_lines
from mlops_img.data.sources.left_out import LeftOutFiles, log_left_out
from mlops_img.errors import UserError, did_you_mean

COMPRESSED = (".gz", ".bz2", ".xz", ".zip")
FILE_COLUMNS = ("path", "file")


@dataclass(frozen=True)
class Input:
    """The images to predict, in an order that does not change.

    Attributes:
        location: as it was given.
        names: of each image: relative to the folder, or as the table or the list has it.
        images: reads them; the labels are all 0.
        fingerprint: sha256 of the names and the sizes of the files. Times are not part of it, so that a copy of the
            images on another machine has the same.
    """

    location: str
    names: Sequence[str]
    images: ImageSet
    fingerprint: str


def open_input(location: str, config: PredictDataConfig) -> Input:
    """List the images of an input.

    Raises:
        UserError: there is no such input, it has no images, or none of those that it names exists.
    """
    path, given = Path(location), f"input={location}"
    if "://" in location:
        raise UserError(f"{given}: only local files are read. Copy or mount them, and name their folder")
    if not path.exists():
        here = "" if path.is_absolute() else f" (seen from {os.getcwd()})"
        raise UserError(f"{given}: there is no such file or folder{here}. Name a folder, a table or a list of images")
    if path.is_dir():
        names, paths = _from_folder(path)
    else:
        names, paths = _reader(path)(path, config)
    if not names:
        raise UserError(f"{given}: there are no images in it. Name a folder, a table or a list that has some")
    sizes = [_size(file) for file in paths]
    if all(size is None for size in sizes):
        raise UserError(
            f"{given}: none of its {len(paths):,} files exists, for example {paths[0]}. Names are relative to the "
            "folder of the table; data.file_prefix and data.file_suffix add to them"
        )
    return Input(location, names, ImageSet(paths, np.zeros(len(paths), np.int64)), _fingerprint(names, sizes))


def _from_folder(folder: Path) -> tuple[list[str], list[str]]:
    """Return the names and the paths of the images at any depth, sorted by path."""
    left_out = LeftOutFiles()
    paths = images_below(folder, left_out).files
    log_left_out(str(folder), left_out.as_list())
    above = os.path.join(folder, "")  # relpath would take as long as everything else here
    return [path.removeprefix(above) for path in paths], paths


def _from_table(path: Path, config: PredictDataConfig) -> tuple[list[str], list[str]]:
    wanted = FILE_COLUMNS if config.file_column is None else (config.file_column,)
    table = read_csv(path, wanted, config.separator, config.encoding, least_columns=1)
    names = table.column(_file_column(table, config.file_column), "file_column")
    return names, _paths(names, path.parent, config)


def _file_column(table: CsvRows, wanted: str | None) -> str:
    """Return the name of the column of files."""
    if wanted is not None or len(table.columns) == 1:
        return wanted or table.columns[0]
    found = [name for name in FILE_COLUMNS if name in table.columns]
    if len(found) != 1:
        which = f"has the columns {' and '.join(found)}" if found else f"has neither {' nor '.join(FILE_COLUMNS)}"
        raise UserError(
            f"{table.path} {which} among {', '.join(table.columns)}. Name the column of files with data.file_column=..."
        )
    return found[0]


def _from_list(path: Path, config: PredictDataConfig) -> tuple[list[str], list[str]]:
    names = read_lines(path, config.encoding)
    return names, _paths(names, path.parent, config)


def _paths(names: Sequence[str], root: Path, config: PredictDataConfig) -> list[str]:
    """Return the path of each name. That of a file which does not exist is kept: its row says so."""
    prefix, suffix = os.path.expanduser(config.file_prefix), config.file_suffix
    files = ImageFiles(str(root), prefix, suffix)
    return [files.find(name) or str(root / f"{prefix}{name}{suffix}") for name in names]


Reader = Callable[[Path, PredictDataConfig], tuple[list[str], list[str]]]
# By the ending of the file, before that of its compression.
READERS: dict[str, Reader] = {".csv": _from_table, ".tsv": _from_table, ".txt": _from_list}


def _reader(path: Path) -> Reader:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSED:
        suffixes.pop()
    ending = suffixes[-1] if suffixes else ""
    if ending not in READERS:
        raise UserError(
            f"input={path}: this file is neither a table (.csv, .tsv) nor a list of files (.txt)."
            f"{did_you_mean(ending, READERS)} Name one, or a folder of images"
        )
    return READERS[ending]


def _size(path: str) -> int | None:
    """Return the bytes of a file; None if there is none."""
    try:
        return os.stat(path).st_size
    except (OSError, ValueError):
        return None


def _fingerprint(names: Sequence[str], sizes: Sequence[int | None]) -> str:
    digest = hashlib.sha256()
    for name, size in zip(names, sizes, strict=True):
        digest.update(f"{name}\0{size}\0".encode(errors="surrogateescape"))
    return digest.hexdigest()
