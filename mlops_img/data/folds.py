"""Dividing images by class into parts of given shares: folds, or train, val and test, with groups kept whole."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from mlops_img.config.data import DataConfig
from mlops_img.data.names import names_below
from mlops_img.data.sources.base import ImageSet
from mlops_img.errors import UserError


def equal_folds(labels: NDArray[np.int64], rank: NDArray[np.uint64], folds: int) -> NDArray[np.intp]:
    """Return the fold of each image, int64 (n,): both the folds and their classes differ by at most one image.

    Args:
        labels: int64 (n,).
        rank: the order of the images of a class, uint64 (n,).
        folds: how many.
    """
    fold = np.empty(len(labels), np.intp)
    fold[np.lexsort((rank, labels))] = np.arange(len(labels)) % folds
    return fold


def parts_of_groups(
    labels: NDArray[np.int64], groups: NDArray[np.intp], rank: NDArray[np.uint64], shares: Sequence[float]
) -> NDArray[np.intp]:
    """Return the part of each image, int64 (n,), such that no group is divided.

    The largest groups are placed first, each where the classes stay nearest to the shares of the parts.

    Args:
        labels: int64 (n,).
        groups: int64 (n,), numbered from 0.
        rank: the order of groups of the same size, uint64 (n,); that of a group is its lowest.
        shares: of the parts, above 0.
    """
    total = np.bincount(labels)
    counts = np.asarray(csr_array((np.ones(len(labels)), (groups, labels))).todense())
    lowest = np.full(len(counts), np.iinfo(np.uint64).max, np.uint64)
    np.minimum.at(lowest, groups, rank)
    weight = 1 / (np.array(shares)[:, None] * np.maximum(total, 1) ** 2)
    placed = np.zeros((len(shares), len(total)))
    part = np.empty(len(counts), np.intp)
    for group in np.lexsort((lowest, -counts.sum(1))).tolist():
        # How much the sum over parts and classes of count ** 2 / share grows: lowest where the shares are kept best.
        growth = ((2 * placed + counts[group]) * counts[group] * weight).sum(1)
        part[group] = np.lexsort((placed.sum(1) / shares, growth.round(12)))[0]
        placed[part[group]] += counts[group]
    return part[groups]


def joined(first: NDArray[np.int64], second: NDArray[np.int64]) -> NDArray[np.intp]:
    """Number the images so that those with the same number in either grouping have the same one, int64 (n,)."""
    _, first = np.unique(first, return_inverse=True)
    _, second = np.unique(second, return_inverse=True)
    edges = (np.ones(len(first), np.bool_), (first, second + first.max() + 1))
    nodes = int(first.max() + second.max() + 2)
    _, component = connected_components(csr_array(edges, shape=(nodes, nodes)), directed=False)
    _, numbers = np.unique(component[first], return_inverse=True)
    return numbers


def with_groups(images: ImageSet, config: DataConfig) -> ImageSet:
    """Return the images with the groups that the pattern `data.group` finds in their names below the root.

    Raises:
        UserError: the pattern is malformed, or a name does not match it.
    """
    if config.group is None or images.groups is not None:
        return images
    try:
        pattern = re.compile(config.group)
    except re.error as error:
        raise UserError(f"data.group={config.group}: it is not a regular expression: {error}") from None
    groups = []
    for name in names_below(config.root, images.paths):
        found = pattern.search(name)
        if found is None:
            raise UserError(
                f"data.group={config.group}: it does not match {name}. It is a regular expression that finds an "
                "image's group in its name, such as 'patient[0-9]+'"
            )
        groups.append(found[pattern.groups and 1])
    return replace(images, groups=groups)
