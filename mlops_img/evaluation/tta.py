"""Test-time augmentation: the logits of an image are averaged over several views of it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mlops_img.data.sources.base import ImageSet
from mlops_img.evaluation.confidence import top1_interval
from mlops_img.evaluation.evaluator import Evaluator
from mlops_img.evaluation.metrics import summarize
from mlops_img.evaluation.predictions import Predictions
from mlops_img.preprocessing.views import VIEWS, View, view_of


@dataclass(frozen=True)
class ViewAveraging:
    """Which views are averaged, and for which images.

    Attributes:
        name: an entry of `VIEWS`.
        share: of the images, the least certain ones; the others keep their logits.
    """

    name: str
    share: float = 1.0

    def predict(self, evaluator: Evaluator, model: nn.Module, images: ImageSet, plain: Predictions) -> Predictions:
        """Return the predictions with the further views.

        Args:
            evaluator: of the images.
            model: in evaluation mode.
            images: that `plain` was predicted for.
            plain: the predictions of the images as they are.
        """
        own, *others = VIEWS[self.name]
        places = least_certain(plain, self.share)
        rows = plain.rows[places]
        further, _ = evaluator.predict(SumOverViews(model, others).eval(), images.select(rows.numpy()))
        logits = plain.logits.clone()
        logits[places] = own.weight * logits[places] + further.logits
        return Predictions(logits, plain.labels, plain.rows)

    def evaluate(self, evaluator: Evaluator, model: nn.Module, images: ImageSet, plain: Predictions) -> dict[str, Any]:
        """Return the metrics with the further views, as `tta` in evaluation/<split>.json; see `predict`."""
        start = time.perf_counter()
        predictions = self.predict(evaluator, model, images, plain)
        metrics = summarize(predictions)
        interval = top1_interval(metrics["top1"], len(predictions.labels))
        return {
            "views": self.name,
            "share": self.share,
            "seconds": time.perf_counter() - start,
            **metrics,
            "top1_interval": None if interval is None else list(interval),
        }


class SumOverViews(nn.Module):
    """The weighted sum of a model's logits over views of its images."""

    def __init__(self, model: nn.Module, views: list[View]) -> None:
        super().__init__()
        self.model = model
        self.views = views

    def forward(self, images: Tensor) -> Tensor:
        """Map normalized images (n, channels, side, side) to logits (n, classes)."""
        return torch.stack([view.weight * self.model(view_of(images, view)).float() for view in self.views]).sum(0)


def least_certain(predictions: Predictions, share: float) -> Tensor:
    """Return the places, int64 (m,) ascending, of the images whose predicted class has the lowest probability."""
    count = max(1, round(share * len(predictions.labels)))
    probability = predictions.probability_of(predictions.predicted)
    return probability.argsort(stable=True)[:count].sort().values
