"""The losses, each an entry of `LOSSES`, and the weights of the classes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from mlops_img.config.class_names import find_class
from mlops_img.config.plugins import import_target
from mlops_img.config.train import LossConfig
from mlops_img.errors import UserError


class SoftCrossEntropy(nn.CrossEntropyLoss):
    """Cross-entropy over float32 logits (n, classes), for int64 (n,) labels or mixed float (n, classes) ones."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Return the mean loss."""
        return super().forward(input.float(), target)


class BinaryLoss(nn.Module):
    """Binary cross-entropy, one decision per class (arXiv:2110.00476), with a weight for each class's images."""

    def __init__(self, label_smoothing: float = 0.0, weight: Tensor | None = None) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing
        self.register_buffer("weight", weight)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the mean loss of float logits (n, classes) and labels as `SoftCrossEntropy` takes them."""
        logits = logits.float()
        if target.ndim == 1:
            target = functional.one_hot(target, logits.shape[1])
        target = target.float()
        # timm's loss of this name smooths hard labels only, and so would drop it under mixup.
        smoothed = target * (1 - self.label_smoothing) + self.label_smoothing / logits.shape[1]
        losses = functional.binary_cross_entropy_with_logits(logits, smoothed, reduction="none")
        if isinstance(self.weight, Tensor):
            losses = losses * (target @ self.weight).unsqueeze(1)
        return losses.mean()


# By `loss.name`: called with label_smoothing and weight, float32 (classes,) or None.
LOSSES: dict[str, Callable[..., nn.Module]] = {"cross_entropy": SoftCrossEntropy, "bce": BinaryLoss}


def make_loss(config: LossConfig, classes: list[str], labels: NDArray[np.int64]) -> nn.Module:
    """Build the loss; `labels` (n,) are those of the training images, for balanced weights.

    Raises:
        UserError: a weight for a class that does not exist, or one that is not a number above 0; or `loss._target_`
            cannot be imported or built.
    """
    weight = class_weights(config.class_weights, classes, labels)
    options = {"label_smoothing": config.label_smoothing, "weight": weight, **config.kwargs}
    if config._target_ is None:
        return _build(LOSSES[config.name], f"loss.name={config.name}", options)
    return _build(import_target("loss._target_", config._target_), f"loss._target_={config._target_}", options)


def _build(kind: Callable[..., Any], given: str, options: dict[str, Any]) -> nn.Module:
    try:
        loss = kind(**options)
    except (TypeError, ValueError) as error:
        raise UserError(f"{given}: {error}. It is called with {', '.join(options)}; check loss.kwargs") from None
    if not isinstance(loss, nn.Module):
        raise UserError(f"{given}: it returned {type(loss).__name__}, not a torch.nn.Module")
    return loss


def is_weighted(loss: nn.Module) -> bool:
    """Return whether the loss is divided by the sum of its images' weights instead of by their number."""
    return isinstance(loss, nn.CrossEntropyLoss) and loss.weight is not None


def denominator(loss: nn.Module, target: Tensor) -> Tensor:
    """Return what the loss of these targets is divided by, float32 (): their number, or the sum of their weights.

    A loss of the user's own is taken to be a mean over images.
    """
    if isinstance(loss, nn.CrossEntropyLoss) and loss.weight is not None and target.ndim == 1:
        return loss.weight[target].sum()
    return torch.tensor(float(len(target)), device=target.device)


def class_weights(wanted: Any, classes: list[str], labels: NDArray[np.int64]) -> Tensor | None:
    """Return the weight of each class, float32 (classes,), as `loss.class_weights` asks; None for equal weights.

    Raises:
        UserError: it names a class that does not exist, or a weight is not a number above 0.
    """
    if wanted == "none":
        return None
    if wanted == "balanced":
        counts = np.bincount(labels, minlength=len(classes)).clip(1)
        return torch.tensor(len(labels) / (len(classes) * counts), dtype=torch.float32)
    if not isinstance(wanted, dict):
        raise UserError(f"loss.class_weights={wanted}: it can be none, balanced or {{class name: weight}}")
    weights = torch.ones(len(classes))
    label_of = {name: label for label, name in enumerate(classes)}
    given: set[str] = set()
    for name, weight in wanted.items():
        meant = find_class("loss.class_weights", name, classes)
        if meant in given:
            raise UserError(f"loss.class_weights: the class {meant!r} has two weights. Leave one out")
        given.add(meant)
        if not isinstance(weight, int | float) or not 0 < weight < float("inf"):
            raise UserError(f"loss.class_weights: the weight of {name!r} is {weight}; it must be a number above 0")
        weights[label_of[meant]] = weight
    return weights
