"""The confusion matrix, stored sparse: with many classes, most pairs are never confused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.sparse import coo_array, csr_array

# The format in evaluation/<split>.json: {"cells": [[label, predicted, count], ...]} for counts above 0.
# Earlier versions wrote one row of counts per label.
Stored = dict[str, list[list[int]]] | Sequence[Sequence[int]]


def count_confusion(labels: ArrayLike, predicted: ArrayLike, classes: int) -> csr_array:
    """Count the images of each label (rows) that were predicted as each class (columns), int64 (classes, classes).

    Args:
        labels: The class index of each image, int64 (n,).
        predicted: The predicted class index of each image, int64 (n,).
        classes: The number of classes.
    """
    labels, predicted = np.asarray(labels), np.asarray(predicted)
    # The conversion sums the entries of a cell.
    return coo_array((np.ones(len(labels), np.int64), (labels, predicted)), shape=(classes, classes)).tocsr()


def store_confusion(confusion: csr_array) -> dict[str, list[list[int]]]:
    """Return the matrix as plain values for JSON, sorted by label and prediction."""
    confusion.sort_indices()
    cells = confusion.tocoo()
    return {"cells": np.stack([cells.row, cells.col, cells.data], axis=1).tolist()}


def read_confusion(stored: Stored, classes: int) -> csr_array:
    """Return the matrix of a stored evaluation, int64 (classes, classes)."""
    if not isinstance(stored, dict):
        return csr_array(np.asarray(stored, np.int64).reshape(classes, classes))
    row, column, count = np.asarray(stored["cells"], np.int64).reshape(-1, 3).T
    return coo_array((count, (row, column)), shape=(classes, classes)).tocsr()


def most_confused(stored: Stored, classes: Sequence[str], limit: int | None = None) -> list[dict[str, Any]]:
    """Rank pairs of classes by the number of images of `label` predicted as `predicted`, largest first.

    Each is {"label", "predicted", "count", "share" of the label's images}. Pairs with a count of 0 are omitted.
    """
    return [
        {"label": classes[row], "predicted": classes[column], "count": count, "share": share}
        for row, column, count, share in confused_pairs(read_confusion(stored, len(classes)), limit)
    ]


def confused_pairs(confusion: csr_array, limit: int | None = None) -> list[tuple[int, int, int, float]]:
    """Return label, predicted class, count and share of the label's images for each confused pair, largest first."""
    totals = confusion.sum(axis=1)
    confusion.sort_indices()
    cells = confusion.tocoo()
    wrong = (cells.row != cells.col) & (cells.data > 0)
    row, column, count = cells.row[wrong], cells.col[wrong], cells.data[wrong]
    share = count / totals[row]
    order = np.lexsort((-share, -count))[:limit]
    return list(
        zip(row[order].tolist(), column[order].tolist(), count[order].tolist(), share[order].tolist(), strict=True)
    )
