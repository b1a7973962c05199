"""Calibration of probabilities: temperature scaling, reliability bins and the expected calibration error."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar

from mlops_img.evaluation.predictions import Predictions

BINS = 15


def fit_temperature(predictions: Predictions) -> float:
    """Return the temperature that minimizes the cross-entropy (arXiv:1706.04599), between 0.05 and 20."""

    def loss(log_temperature: float) -> float:
        return predictions.cross_entropy(float(np.exp(log_temperature)))

    return float(np.exp(minimize_scalar(loss, bounds=(np.log(0.05), np.log(20)), method="bounded").x))


def reliability_bins(predictions: Predictions, temperature: float) -> list[dict[str, float | int | None]]:
    """Return mean confidence, accuracy and count of images in bins of equal width."""
    confidence = predictions.probability_of(predictions.predicted, temperature)
    right = (predictions.predicted == predictions.labels).double()
    bins = (confidence * BINS).long().clamp(max=BINS - 1)
    rows: list[dict[str, float | int | None]] = []
    for number in range(BINS):
        inside = bins == number
        count = int(inside.sum())
        rows.append(
            {
                "confidence": confidence[inside].double().mean().item() if count else None,
                "accuracy": right[inside].mean().item() if count else None,
                "count": count,
            }
        )
    return rows


def expected_calibration_error(reliability: list[dict[str, Any]]) -> float:
    """Return the expected calibration error: the mean gap between confidence and accuracy."""
    filled = [row for row in reliability if row["count"]]
    gaps = sum(row["count"] * abs(row["confidence"] - row["accuracy"]) for row in filled)
    return float(gaps / sum(row["count"] for row in filled))
