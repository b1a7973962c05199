"""The splits of a data set: those given, and stable ones that are split off train if they are missing."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from mlops_img.config.data import DataConfig
from mlops_img.data.duplicates import ContentIndex
from mlops_img.data.folds import equal_folds, joined, parts_of_groups, with_groups
from mlops_img.data.names import names_below
from mlops_img.data.sources.base import SPLITS, ImageSet, Table
from mlops_img.data.sources.split_origin import SplitOrigin
from mlops_img.errors import UserError


def with_all_splits(table: Table, config: DataConfig, contents: ContentIndex | None = None) -> Table:
    """Return the table with train, val and test, each no larger than `config.limit`, and where each came from.

    A split that the source lacks is split off train, class by class; with `config.test_fraction` = 0 there is no
    test split then. With `config.folds`, val is one part of train and a given val split. Copies of one image, and
    images of one group, stay together, so that such a split never leaks. The choice depends on `config.split_seed` and
    the names below `config.root` alone, so a data set may move. Adding an image moves at most two others between
    splits, and mostly none, without folds and groups: a split only changes to keep its share of the class.

    Args:
        table: as the source lists it.
        config: of the data.
        contents: finds copies, and avoids reading files that it has read before.

    Raises:
        UserError: a class is too small to be in every split, the fractions leave no training images, or a group is in
            two given splits.
    """
    contents = contents or ContentIndex()
    splits = {split: with_groups(images, config) for split, images in table.splits.items()}
    origins = {split: table.origins.get(split, SplitOrigin()) for split in splits}
    if not config.allow_leakage:
        _check_groups(splits, config)
    if config.folds is not None:
        splits["train"] = _together(splits["train"], splits.pop("val", None))
    fractions = _missing_fractions(splits, config)
    held_back = {split: fraction for split, fraction in fractions.items() if fraction > 0}
    if held_back:
        splits |= _hold_back(splits["train"], table.classes, held_back, config, contents)
    if config.folds is not None:
        splits |= _fold(splits["train"], table.classes, config, contents)
        origins["val"] = SplitOrigin("fold", seed=config.split_seed, fold=config.fold, folds=config.folds)
    if config.limit is not None:
        splits = {split: _evenly(images, config.limit, config) for split, images in splits.items()}
    origins |= {
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


def _together(train: ImageSet, val: ImageSet | None) -> ImageSet:
    """Return the images of both splits."""
    if val is None:
        return train
    groups = None if train.groups is None or val.groups is None else [*train.groups, *val.groups]
    return replace(
        train, paths=[*train.paths, *val.paths], labels=np.concatenate([train.labels, val.labels]), groups=groups
    )


def _missing_fractions(splits: Mapping[str, ImageSet], config: DataConfig) -> dict[str, float]:
    """Return the share of train for each split that is missing and is no fold; 0 for no such split.

    Raises:
        UserError: validation would be empty, or the shares leave nothing to train on.
    """
    wanted = {"val": config.val_fraction} if config.folds is None else {}
    wanted["test"] = config.test_fraction
    missing = {split: fraction for split, fraction in wanted.items() if split not in splits}
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
    parts = ("train", *fractions)
    if images.groups is not None:
        shares = [1 - sum(fractions.values()), *fractions.values()]
        of_image = parts_of_groups(images.labels, _groups(images, contents), _rank(images, config), shares)
        _check_classes(images, of_image, classes, len(parts), f"each of {', '.join(parts)}", config)
        return {split: images.select(np.flatnonzero(of_image == number)) for number, split in enumerate(parts)}
    # Copies of an image get the label and the rank of the first one, and so end in the same split.
    _, first, which = np.unique(contents.groups(images), return_index=True, return_inverse=True)
    labels, rank = images.labels[first], _rank(images, config)[first]
    order = np.lexsort((rank, labels))
    bounds = np.searchsorted(labels[order], np.arange(len(classes) + 1))
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


def _fold(images: ImageSet, classes: list[str], config: DataConfig, contents: ContentIndex) -> dict[str, ImageSet]:
    """Split `images` into train, and as val the fold that the configuration names."""
    assert config.folds is not None
    rank = _rank(images, config)
    if images.groups is not None:
        fold = parts_of_groups(images.labels, _groups(images, contents), rank, [1.0] * config.folds)
    else:
        # Copies of an image are in the fold of the first one.
        _, first, which = np.unique(contents.groups(images), return_index=True, return_inverse=True)
        fold = equal_folds(images.labels[first], rank[first], config.folds)[which]
    _check_classes(images, fold, classes, config.folds, f"data.folds={config.folds}", config)
    return {
        "train": images.select(np.flatnonzero(fold != config.fold)),
        "val": images.select(np.flatnonzero(fold == config.fold)),
    }


def _groups(images: ImageSet, contents: ContentIndex) -> NDArray[np.intp]:
    """Number the images, int64 (n,): copies of one image, and images of one group, have the same number."""
    _, numbers = np.unique(np.array(images.groups), return_inverse=True)
    return joined(numbers, contents.groups(images))


def _check_classes(
    images: ImageSet, part: NDArray[np.intp], classes: list[str], parts: int, wanted: str, config: DataConfig
) -> None:
    """Raise a UserError where a class is not in every part; `wanted` names the parts."""
    for label, name in enumerate(classes):
        members = part[images.labels == label]
        if len(np.unique(members)) == parts or (not len(members) and config.allow_class_mismatch):
            continue
        has = f"{len(members)} different image{'s' * (len(members) != 1)}"
        if images.groups is not None:
            groups = {images.groups[row] for row in np.flatnonzero(images.labels == label).tolist()}
            has = f"{len(members)} images in {len(groups)} group{'s' * (len(groups) != 1)} of data.group={config.group}"
        raise UserError(f"class {name!r} has {has}, which is too few for {wanted}. Add images, or use fewer parts")


def _check_groups(splits: Mapping[str, ImageSet], config: DataConfig) -> None:
    """Raise a UserError where images of one group are in two splits."""
    split_of: dict[str, str] = {}
    for split, images in splits.items():
        for group in dict.fromkeys(images.groups or ()):
            if split_of.setdefault(group, split) != split:
                raise UserError(
                    f"data.group={config.group}: images of {group!r} are in {split_of[group]} and {split}. "
                    "Move them into one split, or train anyway with data.allow_leakage=true"
                )


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
