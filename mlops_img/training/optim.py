"""Optimisers of timm, and the losses."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import timm.optim
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from mlops_img.config.class_names import find_class
from mlops_img.config.train import LossConfig, OptimConfig
from mlops_img.errors import UserError, did_you_mean
from mlops_img.models.weights import classifier_names

# PyTorch's own optimisers that update all weights in one kernel when asked to.
FUSED = ("adam", "adamw", "sgd", "nesterov", "momentum")
# timm's normalisation layers derive from these.
NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def make_optimizer(config: OptimConfig, model: nn.Module) -> torch.optim.Optimizer:
    """Build timm's optimiser of this name over what is not frozen; norms and biases get no weight decay.

    Raises:
        UserError: no such optimiser, or options that it does not take.
    """
    known = [str(name) for name in timm.optim.list_optimizers()]
    if config.name not in known:
        raise UserError(
            f"optim.name: timm has no optimiser {config.name!r}.{did_you_mean(config.name, known)} "
            "`python -c 'import timm.optim; print(timm.optim.list_optimizers())'` lists all"
        )
    options: dict[str, Any] = dict(config.kwargs)
    info = timm.optim.get_optimizer_info(config.name)
    for key, taken in (("betas", info.has_betas), ("eps", info.has_eps)):
        if key in options and not taken:  # timm would leave it out without a word
            raise UserError(f"optim.kwargs.{key}: {config.name} takes no {key}. Leave it out")
    if config.name in FUSED and "foreach" not in options:
        options.setdefault("fused", True)
    if config.layer_decay is not None:
        options["layer_decay"] = config.layer_decay
    try:
        optimizer: torch.optim.Optimizer = timm.optim.create_optimizer_v2(
            model,
            opt=config.name,
            lr=config.lr,
            weight_decay=config.weight_decay,
            momentum=config.momentum,
            **options,
        )
    except (TypeError, ValueError, AssertionError, ImportError) as error:
        raise UserError(f"optim.name={config.name}: {error}. Check optim.kwargs and its other keys") from None
    if getattr(optimizer, "is_second_order", False):
        raise UserError(f"optim.name={config.name} needs second derivatives, which the loop does not compute")
    if config.lr_scales:
        scales = learning_rate_scales(model, config.lr_scales)
        optimizer.param_groups[:] = [part for group in optimizer.param_groups for part in _split_by(group, scales)]
    return optimizer


def learning_rate_scales(model: nn.Module, wanted: dict[str, float]) -> dict[nn.Parameter, float]:
    """Return the multiple of the learning rate for each parameter that an entry of `optim.lr_scales` fits.

    Raises:
        UserError: an entry fits no parameter that is trained, or its multiple is not above 0.
    """
    scales: dict[nn.Parameter, float] = {}
    for part, scale in wanted.items():
        if not 0 < scale < float("inf"):
            raise UserError(f"optim.lr_scales.{part}={scale}: it must be a number above 0")
        fitting = [parameter for parameter in _parameters_of(model, part) if parameter.requires_grad]
        if not fitting:
            raise UserError(
                f"optim.lr_scales.{part}: it fits no parameter that is trained. Use head, norm, bias or a pattern of "
                f"parameter names; there are {', '.join(_some_names(model))}"
            )
        scales |= dict.fromkeys(fitting, scale)
    return scales


def _parameters_of(model: nn.Module, part: str) -> Iterator[nn.Parameter]:
    if part == "head":
        for name in classifier_names(model):
            yield from model.get_submodule(name).parameters()
    elif part == "norm":
        for module in model.modules():
            if isinstance(module, NORMS):
                yield from module.parameters(recurse=False)
    else:
        pattern = "*bias" if part == "bias" else part
        yield from (parameter for name, parameter in model.named_parameters() if fnmatchcase(name, pattern))


def _some_names(model: nn.Module) -> list[str]:
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    return names if len(names) <= 3 else [names[0], "...", *names[-2:]]


def _split_by(group: dict[str, Any], scales: dict[nn.Parameter, float]) -> list[dict[str, Any]]:
    """Split a parameter group into one for each scale, which multiplies the one that it has."""
    parts: dict[float, list[nn.Parameter]] = {}
    for parameter in group["params"]:
        parts.setdefault(scales.get(parameter, 1.0), []).append(parameter)
    return [
        {**group, "params": parameters, "lr_scale": group.get("lr_scale", 1.0) * scale}
        for scale, parameters in parts.items()
    ]


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the rate of every group; groups of layer-wise decay take their share of it."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("lr_scale", 1.0)


class SoftCrossEntropy(nn.CrossEntropyLoss):
    """Cross-entropy over float32 logits (n, classes), for int64 (n,) labels or mixed float (n, classes) ones."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Return the mean loss."""
        return super().forward(input.float(), target)


class BinaryLoss(nn.Module):
    """Binary cross-entropy, one yes or no per class (arXiv:2110.00476), with a weight for each class's images."""

    def __init__(self, smoothing: float, weight: Tensor | None) -> None:
        super().__init__()
        self.smoothing = smoothing
        self.register_buffer("weight", weight)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the mean loss of float logits (n, classes) and labels as `SoftCrossEntropy` takes them."""
        logits = logits.float()
        if target.ndim == 1:
            target = functional.one_hot(target, logits.shape[1])
        target = target.float()
        # timm's loss of this name smooths hard labels only, and so would let go of it under mixup.
        smoothed = target * (1 - self.smoothing) + self.smoothing / logits.shape[1]
        losses = functional.binary_cross_entropy_with_logits(logits, smoothed, reduction="none")
        if isinstance(self.weight, Tensor):
            losses = losses * (target @ self.weight).unsqueeze(1)
        return losses.mean()


def make_loss(config: LossConfig, classes: list[str], labels: NDArray[np.int64]) -> nn.Module:
    """Build the loss; `labels` (n,) are those of the training images, for balanced weights.

    Raises:
        UserError: a weight for a class that does not exist, or that is no number above 0.
    """
    weight = _class_weights(config.class_weights, classes, labels)
    if config.name == "bce":
        return BinaryLoss(config.label_smoothing, weight)
    return SoftCrossEntropy(weight=weight, label_smoothing=config.label_smoothing)


def _class_weights(wanted: Any, classes: list[str], labels: NDArray[np.int64]) -> Tensor | None:
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
