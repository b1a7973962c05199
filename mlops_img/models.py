"""Models by name: any of timm's or a class of the user's, with weights, frozen stages and small stems."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import timm
import torch
from timm.utils.model import freeze as freeze_modules
from torch import Tensor, nn

from mlops_img.config import ModelConfig
from mlops_img.errors import UserError, did_you_mean

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def build_model(
    config: ModelConfig, num_classes: int, image_size: int, *, load_weights: bool = True
) -> nn.Module:
    """Build the model of the configuration, on the CPU, in training mode.

    Args:
        config: the model's name and options.
        num_classes: number of logits.
        image_size: side of the input in pixels; models with position embeddings are built for it.
        load_weights: False leaves out what `config.weights` names, for a checkpoint to fill in.

    Returns:
        A module from float (n, in_chans, image_size, image_size) to logits (n, num_classes).

    Raises:
        UserError: unknown name or option, or weights that cannot be had or do not fit.
    """
    pretrained = load_weights and config.weights == "hub"
    model = _create(config, num_classes, image_size, pretrained)
    if config.stem_stride is not None:
        shrink_stem(model, config.stem_stride)
    if load_weights and config.weights not in ("none", "hub"):
        load_matching_weights(model, Path(config.weights))
    if config.freeze != "none":
        freeze(model, config.freeze)
    return model


def normalization(model: nn.Module) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation per RGB channel that the model's weights expect; else ImageNet's."""
    config = getattr(model, "pretrained_cfg", None) or {}
    mean, std = config.get("mean", IMAGENET_MEAN), config.get("std", IMAGENET_STD)
    return (tuple(mean), tuple(std)) if len(mean) == 3 else (IMAGENET_MEAN, IMAGENET_STD)


def _create(config: ModelConfig, num_classes: int, image_size: int, pretrained: bool) -> nn.Module:
    if config.in_chans not in (1, 3):
        raise UserError(f"model.in_chans={config.in_chans}: images are RGB; use 3, or 1 for their grey value")
    if config._target_ is not None:
        from hydra.utils import get_method

        own: nn.Module = get_method(config._target_)(
            num_classes=num_classes, in_chans=config.in_chans, **config.kwargs
        )
        return own
    if not timm.is_model(config.name):
        raise UserError(
            f"model.name: timm has no model {config.name!r}."
            f"{did_you_mean(config.name.split('.')[0], timm.list_models(), count=3)} "
            "`python -c 'import timm; print(timm.list_models())'` lists all"
        )
    options: dict[str, Any] = {
        "num_classes": num_classes,
        "in_chans": config.in_chans,
        "drop_rate": config.drop_rate,
        "drop_path_rate": config.drop_path_rate,
        **config.kwargs,
    }
    if timm.get_pretrained_cfg(config.name, allow_unregistered=True).fixed_input_size:
        options.setdefault("img_size", image_size)
    try:
        return timm.create_model(config.name, pretrained=pretrained, **options)
    except (TypeError, AssertionError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"model {config.name}: {reason}. Check model.kwargs and data.image_size") from None
    except (OSError, RuntimeError) as error:
        if not pretrained:
            raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"model.weights=hub: the weights of {config.name} could not be had ({reason}). "
            "Check the network, or use model.weights=none or model.weights=<file>"
        ) from None


def shrink_stem(model: nn.Module, stride: int) -> None:
    """Let the first layers of a conv net shrink the image by `stride` only.

    First the stride of the first convolution goes, then the max-pooling.

    Raises:
        UserError: the stem is no strided convolution, or does not shrink by as much as `stride`.
    """
    name = (getattr(model, "pretrained_cfg", None) or {}).get("first_conv")
    first = dict(model.named_modules()).get(name) if isinstance(name, str) else None
    if not isinstance(first, nn.Conv2d) or first.stride != (2, 2):
        raise UserError(
            f"model.stem_stride={stride}: this model's first layer is no convolution of stride 2. "
            "Leave model.stem_stride out"
        )
    own = 4 if hasattr(model, "maxpool") else 2
    if stride not in (1, 2, own):
        raise UserError(
            f"model.stem_stride={stride}: this model's is {own}; it can be {own}, {own // 2} or 1"
        )
    if stride < own:
        first.stride = (1, 1)
    if stride * 4 == own:
        model.maxpool = nn.Identity()


def load_matching_weights(model: nn.Module, path: Path) -> None:
    """Load a safetensors file, a PyTorch state dict or a checkpoint of ours; its classifier may differ.

    Raises:
        UserError: no such file, not a weights file, or the weights of another architecture.
    """
    state = read_weights(path)
    own = model.state_dict()
    matching = {
        name: tensor for name, tensor in state.items() if name in own and own[name].shape == tensor.shape
    }
    head = tuple(f"{name}." for name in classifier_names(model))
    wrong = [name for name in own if name not in matching and not name.startswith(head)]
    if wrong:
        found = f"{tuple(state[wrong[0]].shape)}" if wrong[0] in state else "nothing"
        raise UserError(
            f"model.weights: {path} holds the weights of another architecture: {len(wrong)} of {len(own)} tensors "
            f"do not fit, e.g. {wrong[0]} should be {tuple(own[wrong[0]].shape)} and is {found}. "
            "Set model.name (and model.kwargs) to what was trained"
        )
    model.load_state_dict(matching, strict=False)


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the state dict in a file, without running any code that the file may hold."""
    if not path.is_file():
        raise UserError(
            f"model.weights: file {path} does not exist. Use none, hub or the path of a weights file"
        )
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, zipfile.BadZipFile) as error:
        raise UserError(f"model.weights: {path} is no weights file: {str(error).splitlines()[0]}") from None
    except Exception as error:  # weights_only refuses with pickle.UnpicklingError, safetensors with its own
        raise UserError(
            f"model.weights: {path} cannot be loaded safely ({type(error).__name__}). "
            "Save it as safetensors or as a plain state dict"
        ) from None
    for key in ("ema", "model", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    return {name: tensor for name, tensor in content.items() if isinstance(tensor, Tensor)}


def classifier_names(model: nn.Module) -> list[str]:
    """Return the names of the modules that map features to logits."""
    name = (getattr(model, "pretrained_cfg", None) or {}).get("classifier") or []
    if name:
        return [name] if isinstance(name, str) else list(name)
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    return linear[-1:]


def freeze(model: nn.Module, until: str) -> None:
    """Freeze the backbone, or all up to and including the module `until` in the order of the forward pass.

    Frozen batch norms keep their running statistics too.

    Raises:
        UserError: the model has no module of that name.
    """
    leaves = [name for name, module in model.named_modules() if name and not any(module.children())]
    if until == "backbone":
        head = tuple(classifier_names(model))
        frozen = [name for name in leaves if not f"{name}.".startswith(tuple(f"{part}." for part in head))]
    else:
        inside = [place for place, name in enumerate(leaves) if f"{name}.".startswith(f"{until}.")]
        if not inside:
            stages = [name for name, _ in model.named_children()]
            raise UserError(
                f"model.freeze: the model has no module {until!r}; its stages are {', '.join(stages)}."
                f"{did_you_mean(until, [name for name, _ in model.named_modules()])}"
            )
        frozen = leaves[: inside[-1] + 1]
    freeze_modules(model, frozen)
    # Parameters that belong to no leaf (class tokens, position embeddings) come before every block.
    for name, parameter in model.named_parameters():
        if name.rsplit(".", 1)[0] not in leaves and "." not in name:
            parameter.requires_grad_(False)
