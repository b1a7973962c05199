"""The table of metrics: each is computed for every epoch and every evaluation. Add one with `metric`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from mlops_img.evaluation.predictions import Predictions

__all__ = ["METRICS", "Metric", "Predictions", "class_scores", "macro_average", "metric", "summarize"]


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
    return float(macro_average(class_scores(predictions.confusion)["f1"], predictions.confusion))


def summarize(predictions: Predictions) -> dict[str, float]:
    """Return every metric of `METRICS` by name."""
    return {name: entry.compute(predictions) for name, entry in METRICS.items()}


def class_scores(confusion: csr_array) -> dict[str, NDArray[np.float64]]:
    """Return precision, recall and F1 of each class, float64 (classes,); 0 where undefined."""
    hits = confusion.diagonal().astype(np.float64)
    predicted, support = confusion.sum(0), confusion.sum(1)
    return {
        "precision": hits / predicted.clip(1),
        "recall": hits / support.clip(1),
        "f1": 2 * hits / (predicted + support).clip(1),
    }


def macro_average(values: NDArray[np.float64], confusion: csr_array) -> np.float64:
    """Average over the classes that occur, as label or prediction (scikit-learn's convention)."""
    present = (confusion.sum(0) + confusion.sum(1)) > 0
    return np.float64(values[present].mean())
