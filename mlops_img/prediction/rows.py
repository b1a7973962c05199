"""The rows of one part: filled batch by batch, then turned into columns."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mlops_img.bundle.predictor import most_probable
from mlops_img.core.text import valid_utf8
from mlops_img.data.batch import Batch
from mlops_img.prediction.formats import Columns
from mlops_img.prediction.model import Model

NOT_FINITE = "the model's outputs for it are not finite"


def column_names(top_k: int) -> list[str]:
    """Return the names of the columns of every part."""
    ranked = [f"{name}_{place}" for place in range(1, top_k + 1) for name in ("label", "probability")]
    return ["path", "row", *ranked, "error"]


class PartRows:
    """Predictions for a range of rows.

    Args:
        rows: of the input.
        top_k: classes that a row lists.
    """

    def __init__(self, rows: range, top_k: int) -> None:
        self.rows = rows
        self.classes: NDArray[np.int64] = np.full((len(rows), top_k), -1)
        self.probabilities: NDArray[np.float32] = np.zeros((len(rows), top_k), np.float32)
        self.errors: dict[int, str] = {}

    def add(self, batch: Batch, model: Model) -> None:
        """Predict a batch of these rows."""
        self.errors |= {row: " ".join(reason.split()) for row, reason in batch.bad}
        if not len(batch.rows):
            return
        logits = model.logits(batch.images)
        places = batch.rows.numpy() - self.rows.start
        probabilities, classes = most_probable(logits, model.temperature, self.classes.shape[1])
        self.probabilities[places], self.classes[places] = probabilities.numpy(), classes.numpy()
        for place in places[~logits.isfinite().all(1).numpy()].tolist():
            self.classes[place] = -1
            self.errors[self.rows.start + place] = NOT_FINITE

    def columns(self, names: Sequence[str], labels: Sequence[str]) -> Columns:
        """Return the columns of the part.

        Args:
            names: of all images of the input.
            labels: names of the classes.
        """
        content: list[Sequence[object]] = [[valid_utf8(names[row]) for row in self.rows], list(self.rows)]
        for place in range(self.classes.shape[1]):
            indices = self.classes[:, place].tolist()
            shares = self.probabilities[:, place].tolist()
            content.append([labels[index] if index >= 0 else None for index in indices])
            content.append([share if index >= 0 else None for index, share in zip(indices, shares, strict=True)])
        content.append([self.errors.get(row) for row in self.rows])
        return dict(zip(column_names(self.classes.shape[1]), content, strict=True))
