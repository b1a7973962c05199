"""A user's function as a source."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mlops_img.config.data import CustomDataConfig
from mlops_img.config.plugins import import_target
from mlops_img.data.sources.base import SPLITS, Table
from mlops_img.errors import UserError


@dataclass(frozen=True)
class Custom:
    """The function of the user that `data._target_` names."""

    config: CustomDataConfig

    def table(self) -> Table:
        target = self.config._target_
        table = import_target("data._target_", target)(root=self.config.root, **self.config.kwargs)
        if not isinstance(table, Table):
            raise UserError(f"data._target_: {target} returned {type(table).__name__}, not a Table")
        fault = _fault(table)
        if fault:
            raise UserError(f"data._target_: the Table that {target} returned {fault}")
        return table


def _fault(table: Table) -> str | None:
    """Return why a table is invalid; None if it is valid."""
    if not table.splits or not set(table.splits) <= set(SPLITS):
        return f"has the splits {', '.join(table.splits)}. Name them train, val and test"
    for split, images in table.splits.items():
        labels, count = images.labels, len(images)
        if not count:
            return f"has no images in {split}. Leave the split out to have it split off train"
        if labels.shape != (count,) or not np.issubdtype(labels.dtype, np.integer):
            return f"has {count} images in {split} and labels of shape {labels.shape}, type {labels.dtype}"
        if labels.min() < 0 or labels.max() >= len(table.classes):
            found = f"{labels.min()} to {labels.max()}"
            return f"has labels from {found} in {split}, but {len(table.classes)} classes"
    return None
