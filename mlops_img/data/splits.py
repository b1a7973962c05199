"""The three splits of a data set: those given, and stable ones made where none are."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from mlops_img.config import DataConfig
from mlops_img.data.duplicates import content_groups
from mlops_img.data.sources import SPLITS, ImageSet, Table
from mlops_img.errors import UserError


def with_all_splits(table: Table, config: DataConfig) -> Table:
    """Return the table with train, val and test, each no larger than `config.limit`.

    A split that the source lacks is taken from train, class by class. Copies of one image stay together,
    so that a split of ours never leaks. Which images go follows from `config.split_seed` and their names
    alone: adding an image moves at most one other.

    Raises:
        UserError: a class is too small to be in every split, or the fractions leave no training images.
    """
    wanted = {"val": config.val_fraction, "test": config.test_fraction}
    missing = {split: fraction for split, fraction in wanted.items() if split not in table.splits}
    splits = dict(table.splits)
    if missing:
        if any(not 0 < fraction < 1 for fraction in missing.values()) or sum(missing.values()) >= 1:
            raise UserError(
                f"data.val_fraction={config.val_fraction} and data.test_fraction={config.test_fraction}: "
                "each must lie between 0 and 1 and together leave something to train on"
            )
        splits |= _hold_back(splits["train"], table.classes, missing, config.split_seed)
    limit = config.limit
    if limit is not None:
        splits = {split: _evenly(images, limit, config.split_seed) for split, images in splits.items()}
    return replace(table, splits={split: splits[split] for split in SPLITS})


def _hold_back(
    images: ImageSet, classes: list[str], fractions: dict[str, float], seed: int
) -> dict[str, ImageSet]:
    """Split `images` into train and the given fractions of each class."""
    groups = content_groups(images)
    rank = _rank(images, seed)
    parts: dict[str, list[NDArray[np.intp]]] = {split: [] for split in ("train", *fractions)}
    for label, name in enumerate(classes):
        rows = np.flatnonzero(images.labels == label)
        # The copies of an image take the rank of the first of them, and so fall on one side.
        _, first, which = np.unique(groups[rows], return_index=True, return_inverse=True)
        order = np.argsort(rank[rows[first]], kind="stable")
        if len(order) < 1 + len(fractions):
            raise UserError(
                f"class {name!r} has {len(order)} different image{'s' * (len(order) != 1)}; splitting into "
                f"{', '.join(parts)} takes at least {1 + len(fractions)}. Add images or give the splits yourself"
            )
        start = 0
        for split, fraction in fractions.items():
            stop = start + max(1, round(fraction * len(order)))
            parts[split].append(rows[np.isin(which, order[start:stop])])
            start = stop
        if start >= len(order):
            raise UserError(
                f"class {name!r}: the fractions leave none of its {len(order)} images to train on"
            )
        parts["train"].append(rows[np.isin(which, order[start:])])
    return {split: images.select(np.sort(np.concatenate(rows))) for split, rows in parts.items()}


def _evenly(images: ImageSet, limit: int, seed: int) -> ImageSet:
    """Return at most `limit` images, taking one of each class in turn."""
    rank = _rank(images, seed)
    turn = np.empty(len(images), np.int64)
    for label in np.unique(images.labels):
        rows = np.flatnonzero(images.labels == label)
        turn[rows[np.argsort(rank[rows])]] = np.arange(len(rows))
    return images.select(np.sort(np.lexsort((rank, turn))[:limit]))


def _rank(images: ImageSet, seed: int) -> NDArray[np.uint64]:
    """Return a number for each image that looks random and follows from the seed and its name alone."""
    # Without the folder that all share: moving a data set elsewhere must not split it anew.
    shared = len(os.path.commonpath(images.paths))
    names = (f"{seed}:{path[shared:].replace(os.sep, '/')}" for path in images.paths)
    digests = (hashlib.blake2b(name.encode(), digest_size=8).digest() for name in names)
    return np.frombuffer(b"".join(digests), np.uint64)
