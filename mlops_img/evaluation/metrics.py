"""Metrics of predictions: accuracy, scores per class, calibration, and the mistakes with the highest confidence."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.sparse import csr_array
from torch import Tensor, nn
from torch.nn import functional

from mlops_img.core.precision import Precision
from mlops_img.data.batch import Batch
from mlops_img.errors import UserError
from mlops_img.evaluation.confidence import top1_interval
from mlops_img.evaluation.confusion import count_confusion, store_confusion
from mlops_img.preprocessing.transforms import Preprocessing

CALIBRATION_BINS = 15
WORST_MISTAKES = 24
# Logits are processed in chunks of this many values, which fit into the CPU cache and avoid a copy of all logits.
PART_VALUES = 2**18


@dataclass(frozen=True)
class Predictions:
    """The logits of a model for a whole image set, on the CPU.

    Attributes:
        logits: float32 (n, classes).
        labels: int64 (n,).
        rows: int64 (n,), the indices of the images in their ImageSet.
    """

    logits: Tensor
    labels: Tensor
    rows: Tensor

    @cached_property
    def predicted(self) -> Tensor:
        """The predicted classes, int64 (n,).

        Taken from the logits, because rounded probabilities can be equal where logits differ.
        """
        return self.logits.argmax(1)

    @cached_property
    def confusion(self) -> csr_array:
        """Counts by class, sparse int64 (classes, classes): rows are labels, columns predictions."""
        return count_confusion(self.labels, self.predicted, self.logits.shape[1])

    def probabilities(self, temperature: float = 1.0) -> Tensor:
        """Return the softmax probabilities, float32 (n, classes)."""
        return (self.logits / temperature).softmax(1)

    def probability_of(self, chosen: Tensor, temperature: float = 1.0) -> Tensor:
        """Return the probability of one class of each image, float32 (n,).

        Args:
            chosen: The class of each image, int64 (n,).
            temperature: Divisor of the logits.
        """
        return torch.cat(
            [
                (logits / temperature).softmax(1).gather(1, classes.unsqueeze(1)).squeeze(1)
                for logits, classes in self._parts(chosen)
            ]
        )

    def cross_entropy(self, temperature: float = 1.0) -> float:
        """Return the mean cross-entropy in nats, computed in float64."""
        parts = self._parts(self.labels)
        total = sum(
            functional.cross_entropy(logits.double() / temperature, labels, reduction="sum").item()
            for logits, labels in parts
        )
        return total / len(self.labels)

    def _parts(self, others: Tensor) -> Iterable[tuple[Tensor, Tensor]]:
        """Split the logits and another tensor, (n, ...), into chunks of images."""
        rows = max(1, PART_VALUES // self.logits.shape[1])
        return zip(self.logits.split(rows), others.split(rows), strict=True)


@torch.inference_mode()
def predict(
    model: nn.Module, batches: Iterable[Batch], preprocessing: Preprocessing, precision: Precision
) -> Predictions:
    """Run the model in evaluation mode over the batches, each image once, and restore its mode.

    Raises:
        UserError: Some logits are not finite.
    """
    was_training = model.training
    model.eval()
    logits, labels, rows = [], [], []
    for batch in batches:
        moved = batch.to(precision.device)
        with precision.autocast():
            logits.append(model(preprocessing.normalize(moved.images)).float())
        labels.append(batch.labels)
        rows.append(batch.rows)
    model.train(was_training)
    predictions = Predictions(torch.cat(logits).cpu(), torch.cat(labels), torch.cat(rows))
    broken = int((~predictions.logits.isfinite()).any(1).sum())
    if broken:
        raise UserError(
            f"the model's logits for {broken} of {len(predictions.labels)} images are not finite: its weights have "
            "diverged. Lower optim.lr or train.grad_clip, or use train.precision=fp32"
        )
    return predictions


@dataclass(frozen=True)
class Metric:
    """A scalar metric of predictions.

    Attributes:
        compute: Computes the metric from predictions on the CPU.
        label: The name in tables and in the report.
        higher_is_better: The direction of optimization and ranking.
        percent: Whether it is a share, which the report shows in percent.
    """

    compute: Callable[[Predictions], float]
    label: str
    higher_is_better: bool = True
    percent: bool = False


# By name; `metric` registers more. All of them are computed for each epoch and each evaluation.
METRICS: dict[str, Metric] = {}
F = TypeVar("F", bound=Callable[[Predictions], float])


def metric(name: str, label: str, *, higher_is_better: bool = True, percent: bool = False) -> Callable[[F], F]:
    """Register a metric; the arguments are the attributes of `Metric`.

    It is then written to metrics.jsonl, summary.json, the report, the tracker and the ranking of a multirun, and
    `optimized_metric=val.<name>` optimizes it.
    """

    def register(compute: F) -> F:
        METRICS[name] = Metric(compute, label, higher_is_better, percent)
        return compute

    return register


@metric("loss", "Loss", higher_is_better=False)
def cross_entropy(predictions: Predictions) -> float:
    """Return the mean cross-entropy in nats."""
    return predictions.cross_entropy()


@metric("top1", "Top-1", percent=True)
def top1(predictions: Predictions) -> float:
    """Return the share of images whose label is the predicted class."""
    return (predictions.predicted == predictions.labels).double().mean().item()


@metric("top5", "Top-5", percent=True)
def top5(predictions: Predictions) -> float:
    """Return the share of images whose label is among the five classes with the highest logits."""
    logits, labels = predictions.logits, predictions.labels
    among_five = (logits.topk(min(5, logits.shape[1])).indices == labels.unsqueeze(1)).any(1)
    # topk may break ties differently from argmax, so top-5 could be lower than top-1.
    return (among_five | (predictions.predicted == labels)).double().mean().item()


@metric("f1_macro", "F1, macro")
def f1_macro(predictions: Predictions) -> float:
    """Return the mean F1 over the classes that occur as label or prediction."""
    return float(_mean_over_present(per_class(predictions.confusion)["f1"], predictions.confusion))


def summarize(predictions: Predictions) -> dict[str, float]:
    """Return every metric of `METRICS` by name."""
    return {name: entry.compute(predictions) for name, entry in METRICS.items()}


def per_class(confusion: csr_array) -> dict[str, NDArray[np.float64]]:
    """Return precision, recall and F1 of each class, float64 (classes,); 0 where undefined."""
    hits = confusion.diagonal().astype(np.float64)
    predicted, support = confusion.sum(0), confusion.sum(1)
    return {
        "precision": hits / predicted.clip(1),
        "recall": hits / support.clip(1),
        "f1": 2 * hits / (predicted + support).clip(1),
    }


def evaluation(predictions: Predictions, classes: list[str], paths: list[str], temperature: float) -> dict[str, Any]:
    """Return all results that the report shows, as plain values for JSON.

    Args:
        predictions: The logits of the model.
        classes: The class names.
        paths: The paths of the image set, indexed by `predictions.rows`.
        temperature: Divisor of the logits for calibrated probabilities (`fit_temperature`).
    """
    confusion = predictions.confusion
    scores = per_class(confusion)
    reliability = _reliability(predictions, 1.0)
    calibrated = _reliability(predictions, temperature)
    figures = summarize(predictions)
    interval = top1_interval(figures["top1"], len(predictions.labels))
    return {
        "n": len(predictions.labels),
        **figures,
        "top1_interval": None if interval is None else list(interval),
        **{f"{name}_macro": float(_mean_over_present(scores[name], confusion)) for name in ("precision", "recall")},
        "ece": _expected_error(reliability),
        "temperature": temperature,
        "ece_calibrated": _expected_error(calibrated),
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


def fit_temperature(predictions: Predictions) -> float:
    """Return the temperature that minimizes the cross-entropy (arXiv:1706.04599), between 0.05 and 20."""

    def loss(log_temperature: float) -> float:
        return predictions.cross_entropy(float(np.exp(log_temperature)))

    return float(np.exp(minimize_scalar(loss, bounds=(np.log(0.05), np.log(20)), method="bounded").x))


def _mean_over_present(values: NDArray[np.float64], confusion: csr_array) -> np.float64:
    """Average over the classes that occur, as label or prediction (scikit-learn's convention)."""
    present = (confusion.sum(0) + confusion.sum(1)) > 0
    return np.float64(values[present].mean())


def _reliability(predictions: Predictions, temperature: float) -> list[dict[str, float | int | None]]:
    """Return mean confidence, accuracy and count of images in bins of equal width."""
    confidence = predictions.probability_of(predictions.predicted, temperature)
    right = (predictions.predicted == predictions.labels).double()
    bins = (confidence * CALIBRATION_BINS).long().clamp(max=CALIBRATION_BINS - 1)
    rows: list[dict[str, float | int | None]] = []
    for number in range(CALIBRATION_BINS):
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


def _expected_error(reliability: list[dict[str, Any]]) -> float:
    """Return the expected calibration error: the mean gap between confidence and accuracy."""
    filled = [row for row in reliability if row["count"]]
    gaps = sum(row["count"] * abs(row["confidence"] - row["accuracy"]) for row in filled)
    return float(gaps / sum(row["count"] for row in filled))


def _mistakes(
    predictions: Predictions, classes: list[str], paths: list[str], temperature: float
) -> list[dict[str, Any]]:
    predicted = predictions.predicted
    confidence = predictions.probability_of(predicted, temperature)
    label_probability = predictions.probability_of(predictions.labels, temperature)
    wrong = torch.nonzero(predicted != predictions.labels).squeeze(1)
    worst = wrong[confidence[wrong].argsort(descending=True, stable=True)][:WORST_MISTAKES]
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
