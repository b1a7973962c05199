"""The optimizers: any of timm, or a class of the user's own; and the learning rate of each parameter group."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import Any

import timm.optim
import torch
from torch import nn

from mlops_img.config.plugins import import_target
from mlops_img.config.train import OptimConfig
from mlops_img.errors import UserError, did_you_mean
from mlops_img.models.weights import classifier_names

# PyTorch's own optimizers that have a fused kernel for all weights.
FUSED = ("adam", "adamw", "sgd", "nesterov", "momentum")
# timm's normalization layers derive from these.
NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def make_optimizer(config: OptimConfig, model: nn.Module) -> torch.optim.Optimizer:
    """Build the optimizer over what is not frozen; norms and biases get no weight decay.

    Raises:
        UserError: no such optimizer, or options that it does not take.
    """
    optimizer = _timm_optimizer(config, model) if config._target_ is None else _own_optimizer(config, model)
    if config.lr_scales:
        scales = learning_rate_scales(model, config.lr_scales)
        optimizer.param_groups[:] = [part for group in optimizer.param_groups for part in _split_by(group, scales)]
    return optimizer


def _timm_optimizer(config: OptimConfig, model: nn.Module) -> torch.optim.Optimizer:
    known = [str(name) for name in timm.optim.list_optimizers()]
    if config.name not in known:
        raise UserError(
            f"optim.name: timm has no optimizer {config.name!r}.{did_you_mean(config.name, known)} "
            "`python -c 'import timm.optim; print(timm.optim.list_optimizers())'` lists all"
        )
    options: dict[str, Any] = dict(config.kwargs)
    info = timm.optim.get_optimizer_info(config.name)
    for key, taken in (("betas", info.has_betas), ("eps", info.has_eps)):
        if key in options and not taken:  # timm would drop it silently
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
    return optimizer


def _own_optimizer(config: OptimConfig, model: nn.Module) -> torch.optim.Optimizer:
    target = f"optim._target_={config._target_}"
    if config.layer_decay is not None:
        raise UserError(f"{target}: optim.layer_decay is for timm's optimizers. Leave it out, or use optim.lr_scales")
    groups = timm.optim.param_groups_weight_decay(model, config.weight_decay)
    kind = import_target("optim._target_", str(config._target_))
    try:
        optimizer = kind(groups, lr=config.lr, weight_decay=config.weight_decay, **config.kwargs)
    except (TypeError, ValueError) as error:
        raise UserError(f"{target}: {error}. It is called with groups, lr, weight_decay and optim.kwargs") from None
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise UserError(f"{target}: it returned {type(optimizer).__name__}, not a torch.optim.Optimizer")
    return optimizer


def learning_rate_scales(model: nn.Module, wanted: dict[str, float]) -> dict[nn.Parameter, float]:
    """Return the multiple of the learning rate for each parameter that an entry of `optim.lr_scales` matches.

    Raises:
        UserError: an entry matches no trained parameter, or its multiple is not above 0.
    """
    scales: dict[nn.Parameter, float] = {}
    for part, scale in wanted.items():
        if not 0 < scale < float("inf"):
            raise UserError(f"optim.lr_scales.{part}={scale}: it must be a number above 0")
        fitting = [parameter for parameter in _parameters_of(model, part) if parameter.requires_grad]
        if not fitting:
            raise UserError(
                f"optim.lr_scales.{part}: it matches no trained parameter. Use head, norm, bias or a pattern of "
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
