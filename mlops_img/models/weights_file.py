"""Read the tensors of a weights file without executing code that it may contain."""

from __future__ import annotations

import itertools
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import safe_open
from torch import Tensor

from mlops_img.errors import UserError
from mlops_img.models.errors import SAVE_TENSORS, first_line, not_weights
from mlops_img.models.weights_pickle import StandIn, read_pickle

# Keys of the state dict in checkpoints of mlops_img, timm, torchvision, Lightning and many training scripts, by
# preference: averaged weights come first.
STATE_KEYS = (
    "ema",
    "state_dict_ema",
    "model_ema",
    "ema_state_dict",
    "model_state_dict_ema",
    "state_dict",
    "model",
    "model_state_dict",
    "model_state",
    "net",
    "network",
    "weights",
    "params",
    "module",
)

# Files that may be mistaken for weights files: offset of the signature, signature, and description of the file.
SIGNATURES = (
    (0, b"version https://git-lfs", "a Git LFS pointer. Get the file itself with git lfs pull"),
    (0, b"<!DOCTYPE", "a web page. Download the file itself"),
    (0, b"<!doctype", "a web page. Download the file itself"),
    (0, b"<html", "a web page. Download the file itself"),
    (0, b"\x89HDF", "an HDF5 file of Keras or TensorFlow. Use weights of PyTorch"),
    (0, b"GGUF", "a GGUF file. Use weights of PyTorch"),
    (0, b"\x1f\x8b", "a gzip archive. Unpack it first"),
    (257, b"ustar", "a tar archive. Unpack it first"),
)


@dataclass(frozen=True)
class Weights:
    """The content of a weights file.

    Attributes:
        state: tensors by name, on the CPU.
        architecture: timm's name of the model; None if the file does not name it.
    """

    state: dict[str, Tensor]
    architecture: str | None


def read_weights(path: Path) -> Weights:
    """Read a safetensors file or a file of `torch.save`, recognized by its content.

    Raises:
        UserError: the file does not exist, does not contain weights, or contains something that could be code.
    """
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise UserError(f"model.weights: file {path} cannot be read: {error.strerror}") from None
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 32:
        return _read_safetensors(path)
    _refuse_other_formats(path, head)
    content = read_pickle(path)
    return Weights(_state_dict(content, path), _architecture(content))


def _read_safetensors(path: Path) -> Weights:
    try:
        with safe_open(path, framework="pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            metadata = file.metadata() or {}
    except Exception as error:  # safetensors raises its own type of error
        raise not_weights(path, first_line(error)) from None
    return Weights(_state_dict(state, path), metadata.get("architecture") or metadata.get("arch"))


def _refuse_other_formats(path: Path, head: bytes) -> None:
    for offset, signature, kind in SIGNATURES:
        if head[offset:].startswith(signature):
            raise UserError(f"model.weights: {path} is {kind}")
    if path.suffix == ".onnx" or (head[:1] == b"\x08" and b"pytorch" in head[:16]):
        raise UserError(f"model.weights: {path} is an ONNX model. Use the PyTorch weights that it was exported from")
    names = _names_in_zip(path)
    if "constants.pkl" in names:
        raise UserError(f"model.weights: {path} is a TorchScript archive. {SAVE_TENSORS}")
    if names and "data.pkl" not in names:
        raise UserError(f"model.weights: {path} is a zip archive without a state dict. {SAVE_TENSORS}")


def _names_in_zip(path: Path) -> set[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            return {name.partition("/")[2] for name in archive.namelist()}
    except (zipfile.BadZipFile, OSError):
        return set()


def _state_dict(content: Any, path: Path) -> dict[str, Tensor]:
    while isinstance(content, dict):  # {"model": {"state_dict": ...}}
        inner = [content[key] for key in STATE_KEYS if key in content]
        found = [one for one in inner if _has_tensors(one)] or [one for one in inner if isinstance(one, StandIn)]
        if not found:
            break
        content = found[0]
    if isinstance(content, StandIn):
        raise UserError(
            f"model.weights: {path} contains an object of {content.origin} instead of tensors. {SAVE_TENSORS}"
        )
    if not isinstance(content, dict):
        raise UserError(f"model.weights: {path} contains a {type(content).__name__}, not a state dict. {SAVE_TENSORS}")
    state = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if not state:
        keys = ", ".join(itertools.islice(map(str, content), 8)) or "none"
        raise UserError(f"model.weights: {path} contains no state dict; its keys: {keys}. {SAVE_TENSORS}")
    for name, tensor in state.items():
        _refuse_unusable(name, tensor, path)
    return state


def _has_tensors(content: Any) -> bool:
    return isinstance(content, dict) and any(
        isinstance(value, Tensor) or (key in STATE_KEYS and _has_tensors(value)) for key, value in content.items()
    )


def _refuse_unusable(name: str, tensor: Tensor, path: Path) -> None:
    if tensor.is_quantized:
        kind = f"quantized ({tensor.dtype})"
    elif tensor.is_complex():
        kind = f"complex ({tensor.dtype})"
    elif tensor.is_meta:
        kind = "on the meta device, without values"
    elif tensor.layout != torch.strided:
        kind = f"sparse ({tensor.layout})"
    else:
        return
    raise UserError(
        f"model.weights: {path}: tensor {name} is {kind}. Save the weights as ordinary floating-point tensors"
    )


def _architecture(content: Any) -> str | None:
    """Return timm's name of the model in a checkpoint of timm, torchvision or Lightning; None if there is none."""
    if not isinstance(content, dict):
        return None
    arguments = [content.get(key) for key in ("args", "hyper_parameters", "config")]
    options = [content, *(one.state if isinstance(one, StandIn) else one for one in arguments)]
    named = [
        one.get(key)
        for one in options
        if isinstance(one, dict)
        for key in ("arch", "architecture", "model_name", "model")
    ]
    # If timm does not know the name, it writes the class in lower case (resnet) to `arch`, which is not a model.
    return next((name for name in named if isinstance(name, str) and timm.is_model(name)), None)
