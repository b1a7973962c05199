"""Tables with one row per image: a column of files and a column of labels."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mlops_img.data.class_folders import SPLIT_FOLDERS, existing_folder
from mlops_img.data.config import CsvConfig
from mlops_img.data.sources import SPLITS, ImageSet, Table
from mlops_img.errors import UserError, did_you_mean


@dataclass(frozen=True)
class Csv:
    """A table with a column of files and a column of labels."""

    config: CsvConfig

    def table(self) -> Table:
        import pandas

        root = existing_folder(self.config.root)
        path = root / self.config.table
        if not path.is_file():
            raise UserError(f"data.table: {path} does not exist. Name it with data.table=..., relative to data.root")
        try:
            rows = pandas.read_csv(path, dtype=str, keep_default_na=False)
        except (ValueError, UnicodeDecodeError) as error:
            raise UserError(f"{path} cannot be read as a CSV table: {error}".replace("\n", " ")) from None
        if rows.empty:
            raise UserError(f"{path} has no rows. Give it one for each image")
        files = self._column(rows, "file_column", path)
        labels = self._column(rows, "label_column", path)
        empty = [number for number, label in enumerate(labels) if not label]
        if empty:
            raise UserError(
                f"{path}, line {empty[0] + 2}: the label is empty ({len(empty)} such lines). "
                "Fill it in or take the line out"
            )
        paths = [str(root / f"{self.config.file_prefix}{file}{self.config.file_suffix}") for file in files]
        for number, image in enumerate(paths):
            if not os.path.isfile(image):
                raise UserError(
                    f"{path}, line {number + 2}: file {image} does not exist. "
                    "Mend the line, or set data.file_prefix and data.file_suffix"
                )
        classes = sorted(set(labels))
        index = {name: number for number, name in enumerate(classes)}
        images = ImageSet(paths, np.array([index[label] for label in labels], np.int64))
        if self.config.split_column is None:
            return Table(classes, {"train": images})
        return self._given_splits(images, classes, self._column(rows, "split_column", path), path)

    def _column(self, rows: Any, key: str, path: Path) -> list[str]:
        name = getattr(self.config, key)
        if name not in rows.columns:
            raise UserError(
                f"{path} has no column {name!r}; it has {', '.join(map(str, rows.columns))}."
                f"{did_you_mean(name, map(str, rows.columns))} Set data.{key}=..."
            )
        values: list[str] = rows[name].tolist()
        return values

    def _given_splits(self, images: ImageSet, classes: list[str], names: list[str], path: Path) -> Table:
        aliases = {alias: split for split, many in SPLIT_FOLDERS.items() for alias in many}
        unknown = sorted(set(names) - {name for name in names if name.lower() in aliases})
        if unknown:
            raise UserError(f"{path}, column {self.config.split_column!r}: {unknown[0]!r} is none of train, val, test")
        splits = np.array([aliases[name.lower()] for name in names])
        if "train" not in splits:
            raise UserError(f"{path}, column {self.config.split_column!r} says train of no image")
        sets = {split: images.select(np.flatnonzero(splits == split)) for split in SPLITS if split in splits}
        return Table(classes, sets)
