"""Reading the tensors of a weights file, without running any code that the file may hold."""

from __future__ import annotations

import io
import itertools
import pickle
import pickletools
import sys
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import timm
import torch
from safetensors import safe_open
from torch import Tensor

from mlops_img.errors import UserError

_SAVE_TENSORS = "Save its tensors alone: torch.save(model.state_dict(), ...), or as safetensors"

# Where checkpoints keep their state dict: averaged weights before the others. Of mlops_img, timm, torchvision,
# Lightning, and many training scripts.
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

# Data types of the standard library that checkpoints hold beside the tensors. Whatever else a file names of the
# standard library could only be code.
HARMLESS = {
    "_codecs.encode",  # how bytes are written
    "argparse.Namespace",
    "types.SimpleNamespace",
    "collections.Counter",
    "collections.OrderedDict",
    "collections.defaultdict",
    "collections.deque",
    "copyreg._reconstructor",
    "decimal.Decimal",
    "fractions.Fraction",
    "functools.partial",
    "uuid.UUID",
    *(f"datetime.{name}" for name in ("date", "datetime", "time", "timedelta", "timezone")),
    *(
        f"{module}.{kind}"
        for module in ("pathlib", "pathlib._local")
        for kind in ("Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath", "PureWindowsPath")
    ),
    *(f"builtins.{kind.__name__}" for kind in (bool, bytearray, bytes, complex, dict, float, frozenset, int, list)),
    *(f"builtins.{kind.__name__}" for kind in (object, range, set, slice, str, tuple)),
    "typing.Any",
    "typing.Union",
}

# First bytes of what is mistaken for a weights file: where they are, what they are, and what the file is.
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
    """What was read.

    Attributes:
        state: tensors by name, on the CPU.
        architecture: of the model that was trained, where the file names one.
    """

    state: dict[str, Tensor]
    architecture: str | None


class StandIn(list[Any]):
    """Takes the place of every object in a file that is not a tensor: it keeps its state, and does nothing."""

    origin = ""  # the full name of the type that it stands for
    state: Any = None

    def __new__(cls, *_: object) -> StandIn:
        return super().__new__(cls)

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        self.state = state

    def __hash__(self) -> int:  # type: ignore[override]  # it can be a key, as an enum's member can
        return id(self)


class DictStandIn:
    """Takes the place of a dict of another type: PyTorch fills no others than its own."""

    def __new__(cls, *_: object) -> Any:
        return OrderedDict()


def read_weights(path: Path) -> Weights:
    """Read a safetensors file or what `torch.save` wrote, told apart by their content.

    Raises:
        UserError: no such file, no weights in it, or something that could be code.
    """
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise UserError(f"model.weights: file {path} cannot be read: {error.strerror}") from None
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 32:
        return _read_safetensors(path)
    _refuse_other_formats(path, head)
    content = _read_pickle(path)
    return Weights(_state_dict(content, path), _architecture(content))


def not_weights(path: Path, why: str) -> UserError:
    """Return the error of a file that holds no weights."""
    return UserError(f"model.weights: {path} is not a weights file: {why}")


def first_line(error: Exception) -> str:
    """Return what the error says, without its further lines."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _read_safetensors(path: Path) -> Weights:
    try:
        with safe_open(path, framework="pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
            metadata = file.metadata() or {}
    except Exception as error:  # safetensors has errors of its own
        raise not_weights(path, first_line(error)) from None
    return Weights(_state_dict(state, path), metadata.get("architecture") or metadata.get("arch"))


def _refuse_other_formats(path: Path, head: bytes) -> None:
    for place, signature, kind in SIGNATURES:
        if head[place:].startswith(signature):
            raise UserError(f"model.weights: {path} is {kind}")
    if path.suffix == ".onnx" or (head[:1] == b"\x08" and b"pytorch" in head[:16]):
        raise UserError(f"model.weights: {path} is an ONNX model. Use the PyTorch weights that it was exported from")
    names = _names_in_zip(path)
    if "constants.pkl" in names:
        raise UserError(f"model.weights: {path} is a TorchScript archive. {_SAVE_TENSORS}")
    if names and "data.pkl" not in names:
        raise UserError(f"model.weights: {path} is an archive or program without a state dict. {_SAVE_TENSORS}")


def _names_in_zip(path: Path) -> set[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            return {name.partition("/")[2] for name in archive.namelist()}
    except (zipfile.BadZipFile, OSError):
        return set()


def _read_pickle(path: Path) -> Any:
    """Load with PyTorch's restricted unpickler; every type that it does not know becomes a stand-in."""
    with path.open("rb") as file:
        named = list(dict.fromkeys(_named_globals(file)))
    for name in named:
        if _could_be_code(name):
            raise UserError(
                f"model.weights: {path} holds {name}, which could be code and is not loaded. {_SAVE_TENSORS}"
            )
    try:
        # The open file and not its path: PyTorch would go by the suffix.
        with torch.serialization.safe_globals([(_stand_in(name), name) for name in named]), path.open("rb") as file:
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise not_weights(path, f"{_reason(error)}. {_SAVE_TENSORS}") from None
    except Exception as error:  # zip and torch each have errors of their own
        raise not_weights(path, first_line(error)) from None


def _named_globals(file: IO[bytes]) -> Iterator[str]:
    """Yield the full names of the types and functions in a file of `torch.save`; nothing is loaded."""
    try:
        with zipfile.ZipFile(file) as archive:
            pickled = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
            streams: list[IO[bytes]] = [io.BytesIO(archive.read(pickled))]
    except Exception:  # as written before 2020: a magic number, a version, facts about the machine, the object
        file.seek(0)
        streams = [file] * 4
    for stream in streams:
        strings = ["", ""]
        try:
            for opcode, argument, _ in pickletools.genops(stream):
                if opcode.name == "GLOBAL":
                    yield _full_name(*str(argument).split(" ", 1))
                elif opcode.name == "STACK_GLOBAL":
                    yield _full_name(*strings)
                elif isinstance(argument, str):
                    strings = [strings[-1], argument]
        except Exception:  # no pickle, or half of one
            return


def _full_name(module: str, name: str) -> str:
    """Return the name of a type in Python 3; PyTorch's pickles use that of Python 2 where it was another."""
    module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
    return f"{module}.{name}"


def _could_be_code(name: str) -> bool:
    """Say whether a name is of the standard library and not one of its data types.

    It would not be called, but no ordinary checkpoint names such things.
    """
    root = name.partition(".")[0]
    return root in sys.stdlib_module_names and root != "__main__" and name not in HARMLESS


def _stand_in(name: str) -> Any:
    last = name.rpartition(".")[2]
    like_dict = last.lower().endswith("dict") or last in ("AttrDict", "Box", "CfgNode", "Munch")
    base = DictStandIn if like_dict else StandIn
    return type(last, (base,), {"origin": name})


def _reason(error: pickle.UnpicklingError) -> str:
    """Return the part of PyTorch's advice that says what it did not load."""
    lines = [line.strip() for line in str(error).splitlines()]
    said = next((line for line in lines if "WeightsUnpickler error:" in line), first_line(error))
    return said.partition("WeightsUnpickler error:")[2].strip().rstrip(".") or said


def _state_dict(content: Any, path: Path) -> dict[str, Tensor]:
    while isinstance(content, dict):  # {"model": {"state_dict": ...}}
        inner = [content[key] for key in STATE_KEYS if key in content]
        found = [one for one in inner if _has_tensors(one)] or [one for one in inner if isinstance(one, StandIn)]
        if not found:
            break
        content = found[0]
    if isinstance(content, StandIn):
        raise UserError(f"model.weights: {path} holds a whole {content.origin}, not its tensors. {_SAVE_TENSORS}")
    if not isinstance(content, dict):
        raise UserError(f"model.weights: {path} holds no state dict but a {type(content).__name__}. {_SAVE_TENSORS}")
    state = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if not state:
        keys = ", ".join(itertools.islice(map(str, content), 8)) or "none"
        raise UserError(f"model.weights: {path} holds no state dict; its keys: {keys}. {_SAVE_TENSORS}")
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
    """Return timm's name of the model that a checkpoint of timm, torchvision or Lightning says it is of."""
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
    # timm writes the lower-case class (resnet) into `arch` where it knows no better: that is not a model's name.
    return next((name for name in named if isinstance(name, str) and timm.is_model(name)), None)
