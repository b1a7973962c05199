"""Build models of timm or of a user's class, with weights, frozen stages and smaller stem strides."""

from __future__ import annotations

from contextlib import nullcontext
from types import MethodType
from typing import Any

import timm
import torch
from timm.models import load_model_config_from_hf, parse_model_name
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mlops_img.config.train import ModelConfig
from mlops_img.errors import UserError, did_you_mean
from mlops_img.models import small_cnn  # noqa: F401  # registers it in timm
from mlops_img.models.custom import create_custom
from mlops_img.models.errors import first_line
from mlops_img.models.weights import classifier_names, head_tensors, load_matching_weights, start_head_small
from mlops_img.models.weights_location import hub_or_cache, is_on_hub

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def build_model(config: ModelConfig, num_classes: int, image_size: int, *, load_weights: bool = True) -> nn.Module:
    """Build the model of the configuration on the CPU, in training mode.

    Args:
        config: the name and options of the model.
        num_classes: number of logits.
        image_size: side of the input in pixels; models with position embeddings are built for it.
        load_weights: False skips `config.weights`, for a model that is then loaded from a checkpoint.

    Returns:
        A module from float (n, in_chans, image_size, image_size) to logits (n, num_classes).

    Raises:
        UserError: unknown name or option, or weights that cannot be read or downloaded or do not fit.
    """
    pretrained = load_weights and config.weights == "hub"
    model = _create(config, num_classes, image_size, pretrained)
    if config.stem_stride is not None:
        shrink_stem(model, config.stem_stride)
    if config.bn_momentum is not None:
        set_bn_momentum(model, config.bn_momentum)
    check_forward(model, config, num_classes, image_size)
    if pretrained and num_classes != (getattr(model, "pretrained_cfg", None) or {}).get("num_classes"):
        # The only case in which timm does not load the classifier of its weights.
        start_head_small(model, head_tensors(model), "hub's weights")
    elif load_weights and config.weights not in ("none", "hub"):
        architecture = (getattr(model, "pretrained_cfg", None) or {}).get("architecture")
        load_matching_weights(model, config.weights, architecture or (None if config._target_ else config.name))
    if config.freeze != "none":
        freeze(model, config.freeze)
    return model


def normalization(model: nn.Module) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and standard deviation per RGB channel for the model's weights; by default ImageNet's."""
    config = getattr(model, "pretrained_cfg", None) or {}
    mean, std = config.get("mean", IMAGENET_MEAN), config.get("std", IMAGENET_STD)
    return (tuple(mean), tuple(std)) if len(mean) == 3 else (IMAGENET_MEAN, IMAGENET_STD)


def _create(config: ModelConfig, num_classes: int, image_size: int, pretrained: bool) -> nn.Module:
    if config.in_chans not in (1, 3):
        raise UserError(f"model.in_chans={config.in_chans}: images are RGB. Use 3, or 1 for gray values")
    if config._target_ is not None:
        return create_custom(config._target_, config, num_classes)
    switches = {"drop_rate": config.drop_rate, "drop_path_rate": config.drop_path_rate}
    if not config.zero_init_residual:
        switches["zero_init_last"] = False
    options = {"num_classes": num_classes, "in_chans": config.in_chans, **switches, **config.kwargs}
    off = {name for name, value in switches.items() if not value and name not in config.kwargs}
    if _takes_image_size(config.name):
        options.setdefault("img_size", image_size)
    if pretrained and not is_on_hub(config.name) and not timm.is_model_pretrained(config.name):
        raise UserError(
            f"model.weights=hub: {config.name} has no published weights. Use model.weights=none or "
            "model.weights=<file>, or another model"
        )
    try:
        with hub_or_cache() if pretrained or is_on_hub(config.name) else nullcontext():
            return _create_timm(config.name, pretrained, options, off)
    except Exception as error:
        # timm raises errors of many types for bad options; the Hugging Face client and safetensors have their own.
        if pretrained and not isinstance(error, TypeError | AssertionError | ValueError):
            raise UserError(
                f"model.weights=hub: the weights of {config.name} could not be downloaded ({first_line(error)}). "
                "Check the network, or use model.weights=none or model.weights=<file>"
            ) from None
        raise UserError(f"model {config.name}: {first_line(error)}. Check model.kwargs and data.image_size") from None


def _create_timm(name: str, pretrained: bool, options: dict[str, Any], off: set[str]) -> nn.Module:
    """Create a model; drop the options in `off` that the architecture does not take."""
    try:
        return timm.create_model(name, pretrained=pretrained, **options)
    except TypeError as error:
        unknown = {option for option in off if f"'{option}'" in str(error)}
        if not unknown:
            raise
    return _create_timm(name, pretrained, {key: options[key] for key in options if key not in unknown}, off - unknown)


def _takes_image_size(name: str) -> bool:
    """Return whether timm's model of this name is built for one image size.

    Raises:
        UserError: timm has no such model, or no such weights for it.
    """
    if is_on_hub(name):
        return bool(_config_on_hub(name).get("fixed_input_size"))
    architecture = name.partition(".")[0]
    if not timm.is_model(name):
        raise UserError(
            f"model.name: timm has no model {name!r}."
            f"{did_you_mean(architecture, timm.list_models(), count=3)} "
            "`python -c 'import timm; print(timm.list_models())'` lists all"
        )
    try:
        known = timm.get_pretrained_cfg(name, allow_unregistered=True)
    except RuntimeError:
        tags = timm.list_pretrained(f"{architecture}.*")
        raise UserError(
            f"model.name: timm has {architecture}, but no weights {name!r}. Use {' or '.join([architecture, *tags])}"
        ) from None
    return known is not None and known.fixed_input_size


def _config_on_hub(name: str) -> dict[str, Any]:
    """Return timm's configuration of the weights in a repository of the Hugging Face hub."""
    try:
        with hub_or_cache():
            config, architecture, _ = load_model_config_from_hf(parse_model_name(name)[1])
    except Exception as error:  # the client raises errors of many types
        raise UserError(
            f"model.name={name}: its config.json could not be downloaded ({first_line(error)}). "
            "Check the name and the network"
        ) from None
    if not timm.is_model(architecture):
        raise UserError(
            f"model.name={name} has the architecture {architecture!r}, which this version of timm does not have"
        )
    return dict(config)


def check_forward(
    model: nn.Module, config: ModelConfig, num_classes: int, image_size: int, key: str = "data.image_size"
) -> None:
    """Run the model on one image to detect an unsupported image size or a wrong output before training.

    Raises:
        UserError: the model cannot take images of this side, which `key` configures; or its output is not logits.
    """
    model.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            logits = model(torch.zeros(1, config.in_chans, image_size, image_size))
    except Exception as error:
        if config._target_ is not None:
            raise  # an error in the user's code, shown with its traceback
        raise UserError(
            f"{key}={image_size}: model {config.name} cannot take such images: {first_line(error)}. "
            "Choose another size, or check model.kwargs"
        ) from None
    model.train()
    shape = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
    if shape != (1, num_classes):
        raise UserError(
            f"model {config._target_ or config.name}: its output for one image is {shape}, not logits of shape "
            f"{(1, num_classes)}. Check model.kwargs"
        )


def shrink_stem(model: nn.Module, stride: int) -> None:
    """Reduce the stride of the stem of a convolutional network to `stride`.

    The stride of the first convolution is removed first, then the max-pooling.

    Raises:
        UserError: the first layer is not a convolution of stride 2, or `stride` is not possible for this stem.
    """
    name = (getattr(model, "pretrained_cfg", None) or {}).get("first_conv")
    stem = dict(model.named_modules()).get(name, nn.Identity()) if isinstance(name, str) else nn.Identity()
    first = next((layer for layer in stem.modules() if isinstance(layer, nn.Conv2d)), None)
    if first is None or first.stride != (2, 2):
        raise UserError(
            f"model.stem_stride={stride}: the first layer of this model is not a convolution of stride 2. "
            "Do not set model.stem_stride"
        )
    possible = (4, 2, 1) if hasattr(model, "maxpool") else (2, 1)
    if stride not in possible:
        raise UserError(f"model.stem_stride={stride}: for this model it can be {', '.join(map(str, possible))}")
    own = possible[0]
    if stride < own:
        first.stride = (1, 1)
    if stride * 4 == own:
        model.maxpool = nn.Identity()


def set_bn_momentum(model: nn.Module, momentum: float) -> None:
    """Set the share of a new batch in the running statistics of every batch norm.

    Raises:
        UserError: the model has no batch norm.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    if not norms:
        raise UserError(f"model.bn_momentum={momentum:g}: the model has no batch norm. Do not set model.bn_momentum")
    for norm in norms:
        norm.momentum = momentum


def freeze(model: nn.Module, until: str) -> None:
    """Freeze the backbone, or all modules up to and including `until` in the order of the forward pass.

    The direct parameters of a module (class tokens, position embeddings, layer scales) precede its submodules.
    Frozen batch norms also keep their running statistics.

    Raises:
        UserError: the model has no module of that name.
    """
    names = [name for name, _ in model.named_modules()]
    if until == "backbone":
        head = tuple(f"{name}." for name in classifier_names(model))
        frozen = [name for name in names if not f"{name}.".startswith(head)]
    else:
        inside = [index for index, name in enumerate(names) if name and f"{name}.".startswith(f"{until}.")]
        if not inside:
            stages = [name for name, _ in model.named_children()]
            raise UserError(
                f"model.freeze: the model has no module {until!r}; its stages are {', '.join(stages)}."
                f"{did_you_mean(until, names)}"
            )
        frozen = names[: inside[-1] + 1]
    for name in frozen:
        module = model.get_submodule(name)
        for parameter in module.parameters(recurse=False):
            parameter.requires_grad_(False)
        if isinstance(module, _BatchNorm):
            # model.train() no longer changes this module; deepcopy binds the method to the copy.
            module.train = MethodType(_stay_in_evaluation, module)  # type: ignore[method-assign]
            module.eval()


def _stay_in_evaluation(self: nn.Module, mode: bool = True) -> nn.Module:
    return type(self).train(self, False)
