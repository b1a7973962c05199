"""First weights of a model: from a file, or from the hub of timm's weights."""

from __future__ import annotations

import logging
import pickle
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from huggingface_hub import constants, get_session
from safetensors.torch import load_file
from timm.models import adapt_input_conv, clean_state_dict
from torch import Tensor, nn

from mlops_img.errors import UserError

HUB_TIMEOUT = 5.0  # seconds
HEAD_STD = 0.001  # of a new classifier's weights beside a trained backbone

log = logging.getLogger(__name__)


def load_matching_weights(model: nn.Module, path: Path) -> None:
    """Load a safetensors file, a PyTorch state dict or a checkpoint of ours; its classifier may differ.

    Position embeddings are resampled and the first convolution's channels summed where the model of this
    configuration differs in them, as timm does for its own weights.

    Raises:
        UserError: no such file, not a weights file, or the weights of another architecture.
    """
    state = read_weights(path)
    misfits = _misfits(model, state)
    if misfits:
        state = _converted(model, state)
        misfits = _misfits(model, state)
    own = model.state_dict()
    if misfits:
        wrong = misfits[0]
        shapes = [tuple(tensors[wrong].shape) if wrong in tensors else "missing" for tensors in (own, state)]
        raise UserError(
            f"model.weights: {path} holds the weights of another architecture: {len(misfits)} of "
            f"{len(own.keys() | state.keys())} tensors do not fit, e.g. {wrong} is {shapes[0]} in the model and "
            f"{shapes[1]} in the file. Set model.name (and model.kwargs) to what was trained"
        )
    fitting = {name: tensor for name, tensor in state.items() if _fits(own.get(name), tensor)}
    model.load_state_dict(fitting, strict=False)
    start_head_small(model, [name for name in own if name not in fitting and own[name].is_floating_point()], "file")


def start_head_small(model: nn.Module, new: list[str], source: str) -> None:
    """Draw a classifier that did not come with the weights from N(0, `HEAD_STD`), with a bias of 0.

    Some families of timm draw it so wide that the first loss is several times log(classes), and its gradients
    damage the backbone before the classifier has learned anything.

    Args:
        model: its backbone has its weights.
        new: names of the tensors that the weights did not hold.
        source: where the weights came from, for the log.
    """
    if not new:
        return
    log.info("model.weights: new tensors, not in the %s: %s", source, ", ".join(new))
    for name in classifier_names(model):
        layers = [f"{name}.{part}".rstrip(".") for part, _ in model.get_submodule(name).named_modules()]
        matrices = [layer for layer in layers if f"{layer}.weight" in new and _weight(model, layer).ndim > 1]
        # Of a classifier of several layers only the last: two small ones in a row would learn very slowly.
        for layer in matrices[-1:]:
            nn.init.normal_(_weight(model, layer), std=HEAD_STD)
            if f"{layer}.bias" in new:
                nn.init.zeros_(model.get_parameter(f"{layer}.bias"))


def head_tensors(model: nn.Module) -> list[str]:
    """Return the names of the classifier's tensors."""
    head = tuple(f"{name}." for name in classifier_names(model))
    return [name for name in model.state_dict() if name.startswith(head)]


def _weight(model: nn.Module, layer: str) -> Tensor:
    return model.get_parameter(f"{layer}.weight")


def _misfits(model: nn.Module, state: dict[str, Tensor]) -> list[str]:
    """Name the tensors that differ in shape or that only one side has, the classifier's apart."""
    own = model.state_dict()
    head = tuple(f"{name}." for name in classifier_names(model))
    return [
        name
        for name in [*own, *(name for name in state if name not in own)]
        if not _fits(own.get(name), state.get(name))
        and not name.startswith(head)
        # Counters and tables of indices come and go between versions, and hold nothing learnt.
        and any(tensors[name].is_floating_point() for tensors in (own, state) if name in tensors)
    ]


def _fits(own: Tensor | None, given: Tensor | None) -> bool:
    return own is not None and given is not None and own.shape == given.shape


def _converted(model: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the state as timm converts weights of another image size, number of channels or age."""
    first = (getattr(model, "pretrained_cfg", None) or {}).get("first_conv")
    weight = f"{first}.weight"
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    try:
        converted = convert(dict(state), model) if convert is not None else dict(state)
        wanted = model.state_dict().get(weight)
        if weight in converted and wanted is not None and converted[weight].shape[1] == 3:
            converted[weight] = adapt_input_conv(wanted.shape[1], converted[weight])
    except Exception:  # made for weights of this architecture, it fails on others in any way
        return state
    return converted


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the state dict in a file, without running any code that the file may hold.

    Raises:
        UserError: no such file, or no weights in it.
    """
    if not path.is_file():
        raise UserError(f"model.weights: file {path} does not exist. Use none, hub or the path of a weights file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise UserError(
            f"model.weights: {path} is no weights file, or holds more than tensors, which could be code and is "
            "not loaded. Save it as safetensors or as a plain state dict"
        ) from None
    except Exception as error:  # safetensors, zip and torch each have errors of their own
        raise UserError(f"model.weights: {path} is no weights file: {first_line(error)}") from None
    # Checkpoints of ours and of timm: the averaged weights before the others.
    for key in ("ema", "state_dict_ema", "model_ema", "model", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    tensors = content.items() if isinstance(content, dict) else ()
    state = clean_state_dict({name: tensor for name, tensor in tensors if isinstance(tensor, Tensor)})
    if not state:
        raise UserError(f"model.weights: {path} holds no state dict. Save model.state_dict()")
    return state


def classifier_names(model: nn.Module) -> list[str]:
    """Return the names of the modules that map features to logits."""
    name = (getattr(model, "pretrained_cfg", None) or {}).get("classifier") or []
    if name:
        return [name] if isinstance(name, str) else list(name)
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    return linear[-1:]


@contextmanager
def hub_or_cache() -> Iterator[None]:
    """Inside the block the Hugging Face client looks into its cache alone if the hub does not answer.

    By itself it would retry for most of a minute before it says so.
    """
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not _hub_answers()
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _hub_answers() -> bool:
    try:
        get_session().head(constants.ENDPOINT, timeout=HUB_TIMEOUT)
    except Exception:  # no name, no route, no certificate, offline mode: all mean no
        return False
    return True


def first_line(error: Exception) -> str:
    """Return what the error says, without its further lines."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__
