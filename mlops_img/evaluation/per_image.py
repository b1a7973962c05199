"""The predictions of a split, image by image, as a table: what cross-validation puts together."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from mlops_img.core.files import write_text
from mlops_img.evaluation.predictions import Predictions

# The columns before those of the classes' probabilities.
COLUMNS = ("path", "label", "predicted")


def write_predictions(path: Path, predictions: Predictions, classes: Sequence[str], paths: Sequence[str]) -> None:
    """Write a CSV table with a row for each image: its path, label, predicted class, and each class's probability.

    Args:
        path: of the table.
        predictions: of the split; probabilities are those before temperature scaling.
        classes: names.
        paths: of the image set, indexed by `predictions.rows`.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*COLUMNS, *classes])
    rows = zip(
        predictions.rows.tolist(),
        predictions.labels.tolist(),
        predictions.predicted.tolist(),
        predictions.probabilities().tolist(),
        strict=True,
    )
    for row, label, predicted, probabilities in rows:
        writer.writerow([paths[row], classes[label], classes[predicted], *(f"{value:.6g}" for value in probabilities)])
    write_text(path, text.getvalue())
