"""The splits of a data set: those given, and stable ones that are split off train if they are missing."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from mlops_img.config.data import DataConfig
from mlops_img.data.duplicates import ContentIndex
from mlops_img.data.names import names_below
from mlops_img.data.sources.base import SPLITS, ImageSet, Table
from mlops_img.data.sources.split_origin import SplitOrigin
from mlops_img.errors import UserError


def with_all_splits(table: Table, config: DataConfig, contents: ContentIndex | None = None) -> Table:
    """Return the table with train, val and test, each no larger than `config.limit`, and where each came from.

    A split that the source lacks is split off train, class by class; with `config.test_fraction` = 0 there is no
    test split then. Copies of one image stay together, so that such a split never leaks. The choice depends on
    `config.split_seed` and the names below `config.root` alone, so a data set may move. Adding an image moves at most
    two others between splits, and mostly none: a split only changes to keep its share of the class.

    Args:
        table: as the source lists it.
        config: of the data.
        contents: finds copies, and avoids reading files that it has read before.

    Raises:
        UserError: a class is too small to be in every split, or the fractions leave no training images.
    """
    fractions = _missing_fractions(table, config)
    held_back = {split: fraction for split, fraction in fractions.items() if fraction > 0}
    splits = dict(table.splits)
    if held_back:
        contents = contents or ContentIndex()
        splits |= _hold_back(splits["train"], table.classes, held_back, config, contents)
    if config.limit is not None:
        splits = {split: _evenly(images, config.limit, config) for split, images in splits.items()}
    origins = {split: table.origins.get(split, SplitOrigin()) for split in table.splits} | {
        split: SplitOrigin("split off train", fraction=fraction, seed=config.split_seed)
        if fraction > 0
        else SplitOrigin("none")
        for split, fraction in fractions.items()
    }
    return replace(
        table,
        splits={split: splits[split] for split in SPLITS if split in splits},
        origins={split: origins[split] for split in SPLITS},
    )


def _missing_fractions(table: Table, config: DataConfig) -> dict[str, float]:
    """Return the share of train for each split that the source lacks; 0 for no such split.

    Raises:
        UserError: validation would be empty, or the shares leave nothing to train on.
    """
    wanted = {"val": config.val_fraction, "test": config.test_fraction}
    missing = {split: fraction for split, fraction in wanted.items() if split not in table.splits}
    if missing.get("val") == 0:
        raise UserError(
            "data.val_fraction=0: training needs validation images, which choose the best epoch and calibrate the "
            "probabilities. Set it above 0, or give a val split"
        )
    if any(not 0 <= fraction < 1 for fraction in missing.values()) or sum(missing.values()) >= 1:
        raise UserError(
            f"data.val_fraction={config.val_fraction} and data.test_fraction={config.test_fraction}: "
            "each must lie between 0 and 1 and together leave something to train on"
        )
    return missing


def _hold_back(
    images: ImageSet, classes: list[str], fractions: dict[str, float], config: DataConfig, contents: ContentIndex
) -> dict[str, ImageSet]:
    """Split `images` into train and the given fractions of each class."""
    # Copies of an image get the label and the rank of the first one, and so end in the same split.
    _, first, which = np.unique(contents.groups(images), return_index=True, return_inverse=True)
    labels, rank = images.labels[first], _rank(images, config)[first]
    order = np.lexsort((rank, labels))
    bounds = np.searchsorted(labels[order], np.arange(len(classes) + 1))
    parts = ("train", *fractions)
    part = np.zeros(len(first), np.intp)
    for name, start, stop in zip(classes, bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        members, size = order[start:stop], stop - start
        if not size and config.allow_class_mismatch:
            continue  # a class of another split only
        if size < len(parts):
            raise UserError(
                f"class {name!r} has {size} different image{'s' * (size != 1)}; splitting into "
                f"{', '.join(parts)} takes at least {len(parts)}. Add images, or provide the splits"
            )
        counts = [max(1, round(fraction * size)) for fraction in fractions.values()]
        if sum(counts) >= size:
            raise UserError(f"class {name!r}: the fractions leave none of its {size} images to train on")
        # From both ends, with train between, so that a part that grows does not move the other one.
        part[members[: counts[0]]] = 1
        if len(counts) > 1:
            part[members[size - counts[1] :]] = 2
    return {split: images.select(np.flatnonzero(part[which] == number)) for number, split in enumerate(parts)}


def _evenly(images: ImageSet, limit: int, config: DataConfig) -> ImageSet:
    """Return at most `limit` images, taking one of each class in turn."""
    rank = _rank(images, config)
    order = np.lexsort((rank, images.labels))
    labels = images.labels[order]
    turn = np.arange(len(order)) - np.searchsorted(labels, labels)  # index within its class
    return images.select(np.sort(order[np.lexsort((rank[order], turn))[:limit]]))


def _rank(images: ImageSet, config: DataConfig) -> NDArray[np.uint64]:
    """Return a pseudo-random number for each image, which depends on the seed and its name alone."""
    names = (os.fsencode(name) for name in names_below(config.root, images.paths))
    seed = f"{config.split_seed}:".encode()
    digests = (hashlib.blake2b(seed + name, digest_size=8).digest() for name in names)
    return np.frombuffer(b"".join(digests), np.uint64)
