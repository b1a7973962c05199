"""The predictions of a model for an image set, and how they are computed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import torch
from scipy.sparse import csr_array
from torch import Tensor, nn
from torch.nn import functional

from mlops_img.core.precision import Precision
from mlops_img.data.batch import Batch
from mlops_img.errors import UserError
from mlops_img.evaluation.confusion import count_confusion
from mlops_img.preprocessing.transforms import Preprocessing

# Logits are processed in chunks of this many values, which fit into the CPU cache and avoid a copy of all logits.
CHUNK_VALUES = 2**18


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
                for logits, classes in self.chunks(chosen)
            ]
        )

    def cross_entropy(self, temperature: float = 1.0) -> float:
        """Return the mean cross-entropy in nats, computed in float64."""
        chunks = self.chunks(self.labels)
        total = sum(
            functional.cross_entropy(logits.double() / temperature, labels, reduction="sum").item()
            for logits, labels in chunks
        )
        return total / len(self.labels)

    def chunks(self, others: Tensor) -> Iterable[tuple[Tensor, Tensor]]:
        """Split the logits and another tensor, (n, ...), into chunks of images."""
        rows = max(1, CHUNK_VALUES // self.logits.shape[1])
        return zip(self.logits.split(rows), others.split(rows), strict=True)


def collect_predictions(
    model: nn.Module, batches: Iterable[Batch], preprocessing: Preprocessing, precision: Precision
) -> Predictions:
    """Run the model in evaluation mode over the batches, each image once, and restore its mode.

    Raises:
        UserError: Some logits are not finite.
    """
    return checked(predict_batches(model, batches, preprocessing, precision))


def join_predictions(parts: Iterable[Predictions]) -> Predictions:
    """Return the predictions for parts of an image set as those for all of it, in the order of its rows."""
    filled = [part for part in parts if len(part.rows)]
    rows = torch.cat([part.rows for part in filled])
    order = rows.argsort()
    logits, labels = (torch.cat([getattr(part, name) for part in filled])[order] for name in ("logits", "labels"))
    return Predictions(logits, labels, rows[order])


@torch.inference_mode()
def predict_batches(
    model: nn.Module, batches: Iterable[Batch], preprocessing: Preprocessing, precision: Precision
) -> Predictions:
    """Do what `collect_predictions` does, also without any image, and leave the logits unchecked."""
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
    if not rows:
        none = torch.zeros(0, dtype=torch.int64)
        return Predictions(torch.zeros(0, 0), none, none)
    return Predictions(torch.cat(logits).cpu(), torch.cat(labels), torch.cat(rows))


def checked(predictions: Predictions) -> Predictions:
    """Return the predictions.

    Raises:
        UserError: Some logits are not finite.
    """
    broken = int((~predictions.logits.isfinite()).any(1).sum())
    if broken:
        raise UserError(
            f"the model's logits for {broken} of {len(predictions.labels)} images are not finite: its weights have "
            "diverged. Lower optim.lr or train.grad_clip, or use train.precision=fp32"
        )
    return predictions
