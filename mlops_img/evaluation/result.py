"""The result of an evaluation, as evaluation/<split>.json stores it and the report shows it."""

from __future__ import annotations

from typing import Any

import torch

from mlops_img.evaluation.calibration import expected_calibration_error, reliability_bins
from mlops_img.evaluation.confidence import top1_interval
from mlops_img.evaluation.confusion import store_confusion
from mlops_img.evaluation.metrics import class_scores, macro_average, summarize
from mlops_img.evaluation.predictions import Predictions

MAX_MISTAKES = 24


def build_result(predictions: Predictions, classes: list[str], paths: list[str], temperature: float) -> dict[str, Any]:
    """Return all results that the report shows, as plain values for JSON.

    Args:
        predictions: The logits of the model.
        classes: The class names.
        paths: The paths of the image set, indexed by `predictions.rows`.
        temperature: Divisor of the logits for calibrated probabilities (`fit_temperature`).
    """
    confusion = predictions.confusion
    scores = class_scores(confusion)
    reliability = reliability_bins(predictions, 1.0)
    calibrated = reliability_bins(predictions, temperature)
    metrics = summarize(predictions)
    interval = top1_interval(metrics["top1"], len(predictions.labels))
    return {
        "n": len(predictions.labels),
        **metrics,
        "top1_interval": None if interval is None else list(interval),
        **{f"{name}_macro": float(macro_average(scores[name], confusion)) for name in ("precision", "recall")},
        "ece": expected_calibration_error(reliability),
        "temperature": temperature,
        "ece_calibrated": expected_calibration_error(calibrated),
        "classes": classes,
        "per_class": [
            {"name": name, "support": support, "precision": precision, "recall": recall, "f1": f1}
            for name, support, precision, recall, f1 in zip(
                classes,
                confusion.sum(1).tolist(),
                *(scores[measure].tolist() for measure in ("precision", "recall", "f1")),
                strict=True,
            )
        ],
        "confusion": store_confusion(confusion),
        "reliability": reliability,
        "reliability_calibrated": calibrated,
        "mistakes": _mistakes(predictions, classes, paths, temperature),
    }


def _mistakes(
    predictions: Predictions, classes: list[str], paths: list[str], temperature: float
) -> list[dict[str, Any]]:
    predicted = predictions.predicted
    confidence = predictions.probability_of(predicted, temperature)
    label_probability = predictions.probability_of(predictions.labels, temperature)
    wrong = torch.nonzero(predicted != predictions.labels).squeeze(1)
    worst = wrong[confidence[wrong].argsort(descending=True, stable=True)][:MAX_MISTAKES]
    return [
        {
            "index": int(predictions.rows[place]),
            "path": paths[int(predictions.rows[place])],
            "label": classes[int(predictions.labels[place])],
            "predicted": classes[int(predicted[place])],
            "confidence": confidence[place].item(),
            "label_probability": label_probability[place].item(),
        }
        for place in worst.tolist()
    ]
