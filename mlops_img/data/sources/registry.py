"""Open the source of a configuration, with the behavior common to all sources."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from importlib import import_module

import numpy as np

from mlops_img.config.data import CsvConfig, DataConfig
from mlops_img.data.sources.base import ImageSet, Source, Table
from mlops_img.data.sources.left_out import log_left_out
from mlops_img.errors import UserError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class OpenedSource:
    """A source with the behavior common to all sources."""

    source: Source
    config: DataConfig

    def table(self) -> Table:
        """List the images of a data set to train on, and log what was left out.

        Raises:
            UserError: the data are missing or malformed, or there is no train split.
        """
        table = self.any_splits()
        log_remarks(self.config.root, table)
        if "train" not in table.splits:
            named = "no folder train"
            if isinstance(self.config, CsvConfig):
                named = f"no image with train in column {self.config.split_column!r}"
            raise UserError(
                f"{self.config.root} has {', '.join(table.splits)} but {named}, and training needs it. "
                "To evaluate a finished run on it: python -m mlops_img.evaluate run=... data.root=..."
            )
        return table

    def any_splits(self) -> Table:
        """List the images of all splits, without a given test split if data.use_given_test=false.

        Raises:
            UserError: the data are missing or malformed.
        """
        table = self.source.table()
        if not self.config.use_given_test and "test" in table.splits and "train" in table.splits:
            return _without_test(table)
        return table


def log_remarks(root: str, table: Table) -> None:
    """Log the files that a source left out and the ambiguities that it found."""
    log_left_out(root, table.left_out)
    for doubt in table.doubts:
        log.warning("%s", doubt)


def _without_test(table: Table) -> Table:
    """Remove the test split and the classes that have images only in it."""
    splits = {split: images for split, images in table.splits.items() if split != "test"}
    only_test = _used(table.splits["test"]) - set().union(*map(_used, splits.values()))
    kept = [label for label in range(len(table.classes)) if label not in only_test]
    # Renumber the labels of the remaining classes from 0.
    renumbered = np.cumsum(np.isin(np.arange(len(table.classes)), kept)) - 1
    return replace(
        table,
        classes=[table.classes[label] for label in kept],
        splits={
            split: replace(images, labels=renumbered[images.labels].astype(np.int64))
            for split, images in splits.items()
        },
        class_mismatches=[],  # they may concern the test split; dataset.py compares the others
    )


def _used(images: ImageSet) -> set[int]:
    return set(np.unique(images.labels).tolist())


def open_source(config: DataConfig) -> OpenedSource:
    """Return the source for this kind of configuration."""
    module, _, name = type(config).implementation.partition(":")
    return OpenedSource(getattr(import_module(module), name)(config), config)
