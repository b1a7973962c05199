"""How good the predictions are: accuracy, per-class measures, calibration, and the worst mistakes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics.functional.classification import multiclass_confusion_matrix

from mlops_img.data.loader import Batch
from mlops_img.data.transforms import Preprocessing
from mlops_img.errors import UserError
from mlops_img.training.precision import Precision

CALIBRATION_BINS = 15
WORST_MISTAKES = 24


@dataclass(frozen=True)
class Predictions:
    """What a model said of a whole set of images, on the CPU.

    Attributes:
        logits: float32 (n, classes).
        labels: int64 (n,).
        rows: int64 (n,), the images' places in their ImageSet.
    """

    logits: Tensor
    labels: Tensor
    rows: Tensor

    def probabilities(self, temperature: float = 1.0) -> Tensor:
        """Return float32 (n, classes)."""
        return (self.logits / temperature).softmax(1)


@torch.inference_mode()
def predict(
    model: nn.Module, batches: Iterable[Batch], preprocessing: Preprocessing, precision: Precision
) -> Predictions:
    """Run the model in evaluation mode over the batches, each image once; leaves it in the mode it was in.

    Raises:
        UserError: the logits are not finite, so nothing that follows from them would mean anything.
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


def summarize(predictions: Predictions) -> dict[str, float]:
    """Return the numbers that follow each epoch: loss (cross-entropy in nats), top1, top5, f1_macro."""
    logits, labels = predictions.logits, predictions.labels
    # By argmax, as everywhere here: among equal logits topk may put another one first.
    right = logits.argmax(1) == labels
    among_five = (logits.topk(min(5, logits.shape[1])).indices == labels.unsqueeze(1)).any(1) | right
    confusion = confusion_matrix(predictions)
    return {
        "loss": functional.cross_entropy(logits, labels).item(),
        "top1": right.double().mean().item(),
        "top5": among_five.double().mean().item(),
        "f1_macro": float(_mean_over_present(per_class(confusion)["f1"], confusion)),
    }


def confusion_matrix(predictions: Predictions) -> NDArray[np.int64]:
    """Return int64 (classes, classes): rows are labels, columns predictions."""
    count = predictions.logits.shape[1]
    matrix = multiclass_confusion_matrix(predictions.logits.argmax(1), predictions.labels, num_classes=count)
    counts: NDArray[np.int64] = matrix.numpy()
    return counts


def per_class(confusion: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
    """Return precision, recall and f1 of each class, float64 (classes,); 0 where nothing was predicted."""
    hits = confusion.diagonal().astype(np.float64)
    predicted, support = confusion.sum(0), confusion.sum(1)
    return {
        "precision": hits / predicted.clip(1),
        "recall": hits / support.clip(1),
        "f1": 2 * hits / (predicted + support).clip(1),
    }


def evaluation(predictions: Predictions, classes: list[str], paths: list[str], temperature: float) -> dict[str, Any]:
    """Return everything that the report shows, as plain values for JSON.

    Args:
        predictions: the model's logits.
        classes: the names of the classes.
        paths: the name of each image of the set that `predictions.rows` index.
        temperature: by which logits are divided for calibrated probabilities (`fit_temperature`).
    """
    confusion = confusion_matrix(predictions)
    scores = per_class(confusion)
    reliability = _reliability(predictions, 1.0)
    calibrated = _reliability(predictions, temperature)
    return {
        "n": len(predictions.labels),
        **summarize(predictions),
        **{f"{name}_macro": float(_mean_over_present(scores[name], confusion)) for name in ("precision", "recall")},
        "ece": _expected_error(reliability),
        "temperature": temperature,
        "ece_calibrated": _expected_error(calibrated),
        "classes": classes,
        "per_class": [
            {"name": name, "support": int(confusion[label].sum())}
            | {measure: float(values[label]) for measure, values in scores.items()}
            for label, name in enumerate(classes)
        ],
        "confusion": confusion.tolist(),
        "reliability": reliability,
        "reliability_calibrated": calibrated,
        "mistakes": _mistakes(predictions, classes, paths, temperature),
    }


def fit_temperature(predictions: Predictions) -> float:
    """Return the temperature that minimises the cross-entropy (arXiv:1706.04599), between 0.05 and 20."""
    logits, labels = predictions.logits.double(), predictions.labels

    def loss(log_temperature: float) -> float:
        return functional.cross_entropy(logits / np.exp(log_temperature), labels).item()

    return float(np.exp(minimize_scalar(loss, bounds=(np.log(0.05), np.log(20)), method="bounded").x))


def _mean_over_present(values: NDArray[np.float64], confusion: NDArray[np.int64]) -> np.float64:
    """Average over the classes that occur, as label or prediction (scikit-learn's convention)."""
    present = (confusion.sum(0) + confusion.sum(1)) > 0
    return np.float64(values[present].mean())


def _answers(predictions: Predictions, temperature: float) -> tuple[Tensor, Tensor]:
    """Return the predicted classes, int64 (n,), and how surely, float32 (n,).

    The class is that of the largest logit: probabilities are rounded, and may be equal where logits are not.
    """
    predicted = predictions.logits.argmax(1)
    return predicted, predictions.probabilities(temperature).gather(1, predicted.unsqueeze(1)).squeeze(1)


def _reliability(predictions: Predictions, temperature: float) -> list[dict[str, float | int | None]]:
    """Bin by confidence: how sure the model was, and how often it was right."""
    predicted, confidence = _answers(predictions, temperature)
    right = (predicted == predictions.labels).double()
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
    probabilities = predictions.probabilities(temperature)
    predicted, confidence = _answers(predictions, temperature)
    wrong = torch.nonzero(predicted != predictions.labels).squeeze(1)
    worst = wrong[confidence[wrong].argsort(descending=True, stable=True)][:WORST_MISTAKES]
    return [
        {
            "index": int(predictions.rows[place]),
            "path": paths[int(predictions.rows[place])],
            "label": classes[int(predictions.labels[place])],
            "predicted": classes[int(predicted[place])],
            "confidence": confidence[place].item(),
            "label_probability": probabilities[place, predictions.labels[place]].item(),
        }
        for place in worst.tolist()
    ]
