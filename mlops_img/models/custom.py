"""Create models by `model._target_`: a class or function of the user or of a library such as torchvision."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from mlops_img.config.plugins import import_target
from mlops_img.config.train import ModelConfig
from mlops_img.errors import UserError
from mlops_img.models.errors import first_line


def create_custom(target: str, config: ModelConfig, num_classes: int) -> nn.Module:
    """Call the target with num_classes, model.kwargs and, if it takes it, in_chans.

    Raises:
        UserError: the target does not exist or does not take these options; or it does not take in_chans, and
            `model.in_chans` is not 3.
    """
    if config.weights == "hub":
        raise UserError(f"model.weights=hub: the hub has no weights for {target}. Use none or the path of a file")
    options = {"num_classes": num_classes, **config.kwargs}
    with_channels = {"in_chans": config.in_chans, **options}
    make = import_target("model._target_", target)
    try:
        taken = inspect.signature(make).parameters
        anything = any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values())
        if "in_chans" in taken or "in_chans" in config.kwargs:
            return _call(make, with_channels)
        if anything:
            # It may pass **kwargs to a function that does not take in_chans, as torchvision's models do.
            try:
                return _call(make, with_channels)
            except _OptionError as error:
                if "'in_chans'" not in str(error):
                    raise
        if config.in_chans != 3:
            raise UserError(
                f"model.in_chans={config.in_chans}: {target} takes no in_chans. Use 3, or a class that takes in_chans"
            )
        return _call(make, options)
    except (ValueError, _OptionError) as error:
        raise UserError(
            f"model._target_={target}: {first_line(error)}. It must be the import path of a class or "
            f"function that takes {', '.join(options)} and may take in_chans"
        ) from None


class _OptionError(Exception):
    """The callable does not take an option."""


def _call(make: Callable[..., nn.Module], options: dict[str, Any]) -> nn.Module:
    try:
        inspect.signature(make).bind(**options)
    except TypeError as error:
        raise _OptionError(first_line(error)) from None
    try:
        own = make(**options)
    except TypeError as error:
        if any(f"unexpected keyword argument '{name}'" in str(error) for name in options):
            raise _OptionError(first_line(error)) from None
        raise  # an error in the user's code, shown with its traceback
    if type(own).__module__.startswith("torchvision.models.") and getattr(own, "aux_logits", False):
        raise UserError(
            f"model._target_: {type(own).__name__} returns auxiliary logits in training, which the loss does "
            "not support. Set model.kwargs.aux_logits=false"
        )
    return own
