"""Models by `model._target_`: a class or function of the user's own, or of another library such as torchvision."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from mlops_img.config.plugins import import_target
from mlops_img.config.train import ModelConfig
from mlops_img.errors import UserError
from mlops_img.models.weights_file import first_line


def create_custom(target: str, config: ModelConfig, num_classes: int) -> nn.Module:
    """Call the target with num_classes, model.kwargs and, unless it does not take it, in_chans.

    Raises:
        UserError: there is no such target, it does not take these options, or it takes images of three channels only
            and `model.in_chans` is another number.
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
            # It may hand its **kwargs on to something that does not take in_chans, as torchvision's models do.
            try:
                return _call(make, with_channels)
            except _OptionError as error:
                if "'in_chans'" not in str(error):
                    raise
        if config.in_chans != 3:
            raise UserError(
                f"model.in_chans={config.in_chans}: {target} takes no in_chans. Use 3, or a class of yours that does"
            )
        return _call(make, options)
    except (ValueError, _OptionError) as error:
        raise UserError(
            f"model._target_={target}: {first_line(error)}. It must be the import path of a class or "
            f"function that takes {', '.join(options)} and may take in_chans"
        ) from None


class _OptionError(Exception):
    """An option that a callable does not take."""


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
        raise  # the user's own code, who needs to see where
    if type(own).__module__.startswith("torchvision.models.") and getattr(own, "aux_logits", False):
        raise UserError(
            f"model._target_: {type(own).__name__} gives further logits in training, which the loss does not take. "
            "Set model.kwargs.aux_logits=false"
        )
    return own
