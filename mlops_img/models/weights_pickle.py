"""Read a file of `torch.save` without executing code that it may contain."""

from __future__ import annotations

import io
import pickle
import pickletools
import sys
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import torch

from mlops_img.errors import UserError
from mlops_img.models.errors import SAVE_TENSORS, first_line, not_weights

# Data types of the standard library that checkpoints contain besides tensors. A file that names anything else from the
# standard library is rejected because it could execute code.
HARMLESS = {
    "_codecs.encode",  # used to pickle bytes
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


class StandIn(list[Any]):
    """Replace an object of any other type than a tensor: keep its state without executing its code."""

    origin = ""  # the full name of the replaced type
    state: Any = None

    def __new__(cls, *_: object) -> StandIn:
        return super().__new__(cls)

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        self.state = state

    def __hash__(self) -> int:  # type: ignore[override]  # it may replace an enum member that is a key
        return id(self)


class DictStandIn:
    """Replace a subclass of dict by an OrderedDict, because PyTorch restores the items of no other subclass."""

    def __new__(cls, *_: object) -> Any:
        return OrderedDict()


def read_pickle(path: Path) -> Any:
    """Load a file with PyTorch's restricted unpickler; objects of other types become `StandIn` objects.

    Args:
        path: a file of `torch.save`.

    Returns:
        The content, with tensors on the CPU.

    Raises:
        UserError: the file is damaged, or names a type or function that could execute code.
    """
    with path.open("rb") as file:
        named = list(dict.fromkeys(_named_globals(file)))
    for name in named:
        if _could_be_code(name):
            raise UserError(
                f"model.weights: {path} contains {name}, which could be code and is not loaded. {SAVE_TENSORS}"
            )
    try:
        # Pass the open file, because PyTorch checks the suffix of a path.
        with torch.serialization.safe_globals([(_stand_in(name), name) for name in named]), path.open("rb") as file:
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise not_weights(path, f"{_reason(error)}. {SAVE_TENSORS}") from None
    except Exception as error:  # zipfile and torch raise errors of several types
        raise not_weights(path, first_line(error)) from None


def _named_globals(file: IO[bytes]) -> Iterator[str]:
    """Yield the full names of the types and functions in a file of `torch.save` without loading it."""
    try:
        with zipfile.ZipFile(file) as archive:
            pickled = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
            streams: list[IO[bytes]] = [io.BytesIO(archive.read(pickled))]
    except Exception:  # format before PyTorch 1.6: pickles of a magic number, a version, system information, the object
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
        except Exception:  # not a pickle, or truncated
            return


def _full_name(module: str, name: str) -> str:
    """Return the Python 3 name of a type; PyTorch's pickles use the Python 2 name if it differs."""
    module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
    return f"{module}.{name}"


def _could_be_code(name: str) -> bool:
    """Return whether a name belongs to the standard library and is not one of its data types.

    It would not be called, but no ordinary checkpoint contains such names.
    """
    root = name.partition(".")[0]
    return root in sys.stdlib_module_names and root != "__main__" and name not in HARMLESS


def _stand_in(name: str) -> Any:
    last = name.rpartition(".")[2]
    like_dict = last.lower().endswith("dict") or last in ("AttrDict", "Box", "CfgNode", "Munch")
    base = DictStandIn if like_dict else StandIn
    return type(last, (base,), {"origin": name})


def _reason(error: pickle.UnpicklingError) -> str:
    """Return the part of PyTorch's error message that names what was not loaded."""
    lines = [line.strip() for line in str(error).splitlines()]
    message = next((line for line in lines if "WeightsUnpickler error:" in line), first_line(error))
    return message.partition("WeightsUnpickler error:")[2].strip().rstrip(".") or message
