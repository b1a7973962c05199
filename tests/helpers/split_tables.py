"""Tables of images that are never read, and how they are split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mlops_img.config.data import DataConfig, FolderConfig
from mlops_img.data.sources.base import ImageSet, Table
from mlops_img.data.sources.registry import open_source
from mlops_img.data.splits import with_all_splits

SPLITS = ("train", "val", "test")


def split_folder(root: Path, **changes: Any) -> Table:
    config = FolderConfig(root=str(root), **changes)
    return with_all_splits(open_source(config).table(), config)


def in_memory(sizes: Mapping[str, int], extra: Sequence[str] = ()) -> Table:
    """A table of images that are never read: `sizes` of each class, and some more of the first one."""
    index = {name: number for number, name in enumerate(sizes)}
    names = [f"{name}/{number:05}" for name, size in sizes.items() for number in range(size)] + list(extra)
    labels = np.array([index[name.split("/")[0]] for name in names])
    blank = Image.new("RGB", (1, 1))
    return Table(list(sizes), {"train": ImageSet(names, labels, lambda _: blank)})


def assignment(table: Table, **changes: Any) -> dict[str, str]:
    splits = with_all_splits(table, DataConfig(source="custom", root="data", **changes)).splits
    return {path: split for split, images in splits.items() for path in images.paths}


def counts(assigned: Mapping[str, str]) -> dict[str, Counter[str]]:
    found: dict[str, Counter[str]] = {split: Counter() for split in SPLITS}
    for name, split in assigned.items():
        found[split][name.split("/")[0]] += 1
    return found
