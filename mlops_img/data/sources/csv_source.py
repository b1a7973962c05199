"""A table with one row per image as a source: a column of files and a column of labels."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mlops_img.config.data import CsvConfig
from mlops_img.data.sources.base import SPLITS, ImageSet, Table
from mlops_img.data.sources.class_folders import existing_folder
from mlops_img.data.sources.csv_images import ImageFiles
from mlops_img.data.sources.csv_labels import clean_labels, one_hot_hint, one_hot_labels, sorted_classes
from mlops_img.data.sources.csv_reader import CsvRows, read_csv
from mlops_img.data.sources.listing import split_of
from mlops_img.data.sources.split_origin import SplitOrigin
from mlops_img.errors import UserError, did_you_mean

TABLE_SUFFIXES = (".csv", ".tsv", ".txt", ".gz", ".bz2", ".xz", ".zip")

log = logging.getLogger(__name__)


class Row(NamedTuple):
    """A row of the table: the number of its first line, the image file, the label, the split and the group."""

    line: int
    file: str
    label: str
    split: str
    group: str


@dataclass(frozen=True)
class Csv:
    """A table with a column of files and a column of labels."""

    config: CsvConfig

    def table(self) -> Table:
        """List the images; see `mlops_img.data.sources.base.Source`."""
        root = existing_folder(self.config.root)
        path = self._table_path(root)
        table = read_csv(path, self._columns(), self.config.separator, self.config.encoding)
        files = table.column(self.config.file_column, "file_column")
        labels = self._labels(table)
        splits = self._splits(table)
        groups = [""] * len(files) if self.config.group is None else table.column(self.config.group, "group")
        rows = [Row(*row) for row in zip(table.lines, files, labels, splits, groups, strict=True)]
        if "train" in splits and not self.config.use_given_test:
            rows = [row for row in rows if row.split != "test"]  # they may have no labels
        rows = _each_file_once(self._existing(self._labeled(rows, path), root, path), path)
        classes = sorted_classes(self.config.label_columns or (row.label for row in rows))
        index = {name: number for number, name in enumerate(classes)}
        images = ImageSet(
            [row.file for row in rows],
            np.array([index[row.label] for row in rows], np.int64),
            groups=None if self.config.group is None else [row.group for row in rows],
        )
        of_row = np.array([row.split for row in rows])
        sets = {split: images.select(np.flatnonzero(of_row == split)) for split in SPLITS if split in of_row}
        origin = f"{path}, column {self.config.split_column!r}"
        given = sets if self.config.split_column is not None else ()
        return Table(classes, sets, origins={split: SplitOrigin(place=origin) for split in given})

    def _columns(self) -> list[str]:
        """Return the names of the columns to read."""
        labels = self.config.label_columns or [self.config.label_column]
        return [
            name
            for name in (self.config.file_column, *labels, self.config.split_column, self.config.group)
            if name is not None
        ]

    def _table_path(self, root: Path) -> Path:
        name = self.config.table
        path = root / Path(name).expanduser()
        if path.is_dir():
            raise UserError(f"data.table: {path} is a folder. Set data.table=... to the CSV file")
        if not path.exists():
            here = Path(name).resolve()
            tables = [entry.name for entry in root.iterdir() if entry.name.lower().endswith(TABLE_SUFFIXES)]
            hint = did_you_mean(name, tables)
            if here.is_file():
                hint = f" Did you mean data.table={here}?"
            elif len(tables) == 1:
                hint = f" Did you mean {tables[0]!r}?"
            raise UserError(
                f"data.table: {path} does not exist.{hint} "
                "Set data.table=... to the path of the table, absolute or relative to data.root"
            )
        return path

    def _labels(self, table: CsvRows) -> list[str]:
        """Return the label of each row; an empty string if it has none."""
        if self.config.label_columns is not None:
            return one_hot_labels(table, self.config.label_columns)
        name = self.config.label_column
        hint = ""
        if name not in table.columns:
            hint = one_hot_hint(table, (self.config.file_column, self.config.split_column, self.config.group))
        return clean_labels(table.column(name, "label_column", hint), table)

    def _splits(self, table: CsvRows) -> list[str]:
        """Return the split of each row: train, val or test; train if the table has no column of splits."""
        name = self.config.split_column
        if name is None:
            return ["train"] * len(table.lines)
        splits = []
        for line, cell in zip(table.lines, table.column(name, "split_column"), strict=True):
            split = split_of(cell.strip())
            if split is None:
                found = f"{cell.strip()!r} is not train, val or test" if cell.strip() else "the split is empty"
                raise UserError(f"{table.path}, line {line}, column {name!r}: {found}. Fix or delete the line")
            splits.append(split)
        return splits

    def _labeled(self, rows: list[Row], path: Path) -> list[Row]:
        """Return the rows that have a label."""
        labeled = [row for row in rows if row.label]
        if len(labeled) == len(rows):
            return rows
        first, count = next(row.line for row in rows if not row.label), len(rows) - len(labeled)
        if self.config.on_missing_label != "skip":
            raise UserError(
                f"{path}, line {first}: there is no label ({_rows(count)} of {len(rows)} without one). "
                "Fill it in, delete the line, or skip such rows with data.on_missing_label=skip"
            )
        if not labeled:
            raise UserError(f"{path} has no label in any of its {_rows(count)}. Fill them in")
        log.warning("%s: left out %d of %d rows, which have no label (first: line %d)", path, count, len(rows), first)
        return labeled

    def _existing(self, rows: list[Row], root: Path, path: Path) -> list[Row]:
        """Return the rows with the paths of their files.

        Raises:
            UserError: a file does not exist; the message gives the first one.
        """
        images = ImageFiles(str(root), os.path.expanduser(self.config.file_prefix), self.config.file_suffix)
        found = [images.find(row.file) if row.file.strip() else None for row in rows]
        missing = [row for row, file in zip(rows, found, strict=True) if file is None]
        if missing:
            raise _missing_files(missing, len(rows), images, path)
        return [row._replace(file=file) for row, file in zip(rows, found, strict=True) if file is not None]


def _missing_files(missing: list[Row], total: int, images: ImageFiles, path: Path) -> UserError:
    """Return the error for the first file that does not exist, with a fix."""
    where, name = f"{path}, line {missing[0].line}", missing[0].file
    if not name.strip():
        return UserError(f"{where}: there is no file name. Fill it in or delete the line")
    if "\n" in name or "\r" in name:
        return UserError(f"{where}: there is a line break in the file name {name!r:.40}. Check its double quotes")
    reason, fix = images.why_missing(name)
    count = f"{len(missing)} of {total} files are missing" if len(missing) > 1 else "1 file is missing"
    return UserError(f"{where}: file {reason} ({count}). {fix}")


def _each_file_once(rows: list[Row], path: Path) -> list[Row]:
    """Return the rows without those that repeat a file in the same split.

    A file in two splits stays in both, so that the leakage check reports it.

    Raises:
        UserError: a file has two labels; the message gives the lines.
    """
    first_of: dict[str, Row] = {}
    kept: dict[tuple[str, str], Row] = {}
    repeated = []
    conflicts = []
    for row in rows:
        file = os.path.abspath(row.file)
        first = first_of.setdefault(file, row)
        if first.label != row.label:
            conflicts.append((first, row))
        if kept.setdefault((file, row.split), row) is not row:
            repeated.append(row)
    if conflicts:
        one, other = conflicts[0]
        more = f" ({len(conflicts)} such pairs of lines)" if len(conflicts) > 1 else ""
        raise UserError(
            f"{path}: {one.file} has two labels: {one.label!r} in line {one.line} and {other.label!r} in line "
            f"{other.line}{more}. Keep one label per image: several are not supported"
        )
    if repeated:
        example = repeated[0]
        log.warning(
            "%s: left out %s that only repeat a file and its label (first: line %d, %s)",
            path,
            _rows(len(repeated)),
            example.line,
            example.file,
        )
    return list(kept.values())


def _rows(count: int) -> str:
    return f"{count} row{'s' * (count != 1)}"
