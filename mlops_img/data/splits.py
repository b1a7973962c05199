"""The three splits of a data set: those given, and stable ones made where none are."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from mlops_img.data.config import DataConfig
from mlops_img.data.duplicates import ContentIndex
from mlops_img.data.names import names_below
from mlops_img.data.sources import SPLITS, ImageSet, Table
from mlops_img.errors import UserError


def with_all_splits(table: Table, config: DataConfig, contents: ContentIndex | None = None) -> Table:
    """Return the table with train, val and test, each no larger than `config.limit`.

    A split that the source lacks is taken from train, class by class. Copies of one image stay together,
    so that a split of ours never leaks. Which images go follows from `config.split_seed` and their names
    below `config.root` alone, so a data set may move. Adding an image moves two others at most between
    splits, and mostly none: each split keeps its share of the class, and that is all that can push one out.
    `contents` tells which images are copies, and spares reading files again that it has read before.

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
        splits |= _hold_back(splits["train"], table.classes, missing, config, contents or ContentIndex())
    if config.limit is not None:
        splits = {split: _evenly(images, config.limit, config) for split, images in splits.items()}
    return replace(table, splits={split: splits[split] for split in SPLITS})


def _hold_back(
    images: ImageSet, classes: list[str], fractions: dict[str, float], config: DataConfig, contents: ContentIndex
) -> dict[str, ImageSet]:
    """Split `images` into train and the given fractions of each class."""
    # The copies of an image follow the first of them, in label as in rank, and so fall on one side.
    _, first, which = np.unique(contents.groups(images), return_index=True, return_inverse=True)
    labels, rank = images.labels[first], _rank(images, config)[first]
    order = np.lexsort((rank, labels))
    bounds = np.searchsorted(labels[order], np.arange(len(classes) + 1))
    parts = ("train", *fractions)
    part = np.zeros(len(first), np.intp)
    for name, start, stop in zip(classes, bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        members, size = order[start:stop], stop - start
        if not size and config.allow_class_mismatch:
            continue  # a class of another split's alone
        if size < len(parts):
            raise UserError(
                f"class {name!r} has {size} different image{'s' * (size != 1)}; splitting into "
                f"{', '.join(parts)} takes at least {len(parts)}. Add images or give the splits yourself"
            )
        counts = [max(1, round(fraction * size)) for fraction in fractions.values()]
        if sum(counts) >= size:
            raise UserError(f"class {name!r}: the fractions leave none of its {size} images to train on")
        # From both ends, with train between, so that when one part grows the other stays as it is.
        part[members[: counts[0]]] = 1
        if len(counts) > 1:
            part[members[size - counts[1] :]] = 2
    return {split: images.select(np.flatnonzero(part[which] == number)) for number, split in enumerate(parts)}


def _evenly(images: ImageSet, limit: int, config: DataConfig) -> ImageSet:
    """Return at most `limit` images, taking one of each class in turn."""
    rank = _rank(images, config)
    order = np.lexsort((rank, images.labels))
    labels = images.labels[order]
    turn = np.arange(len(order)) - np.searchsorted(labels, labels)  # the how-manieth of its class
    return images.select(np.sort(order[np.lexsort((rank[order], turn))[:limit]]))


def _rank(images: ImageSet, config: DataConfig) -> NDArray[np.uint64]:
    """Return a number for each image that looks random and follows from the seed and its name alone."""
    names = (os.fsencode(name) for name in names_below(config.root, images.paths))
    seed = f"{config.split_seed}:".encode()
    digests = (hashlib.blake2b(seed + name, digest_size=8).digest() for name in names)
    return np.frombuffer(b"".join(digests), np.uint64)
