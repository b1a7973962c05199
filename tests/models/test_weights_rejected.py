"""Files that are not loaded as weights: code in a file is not executed, and errors say what a file is."""

from __future__ import annotations

import argparse
import collections
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

from mlops_img.models.weights_file import read_weights
from tests.helpers.weights_files import HEAD, NAME, build, differing, error_message


class Payload:
    """An object that calls a function when it is unpickled without restrictions."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("function", [os.system, eval, "subprocess", "numpy", "torch"])
@pytest.mark.parametrize("position", ["args", "deep", "state"])
@pytest.mark.parametrize("file_format", ["zip", "legacy", "pickle 2", "pickle 4"])
def test_functions_named_in_a_file_are_not_called(
    function: Any, position: str, file_format: str, state: dict[str, Tensor], tmp_path: Path
) -> None:
    sign = tmp_path / "it-ran"
    payload = {
        os.system: lambda: Payload(os.system, f"touch '{sign}'"),
        eval: lambda: Payload(eval, f"open({str(sign)!r}, 'w').close()"),
        "subprocess": lambda: Payload(__import__("subprocess").check_call, ["touch", str(sign)]),
        # Functions of other packages are replaced: the file is loaded, and they are not called.
        "numpy": lambda: Payload(np.save, f"{sign}.npy", np.zeros(1)),
        "torch": lambda: Payload(torch.save, [1], str(sign)),
    }[function]()
    namespace = argparse.Namespace(model=NAME, extra=payload)
    content: dict[str, Any] = {
        "args": {"state_dict": state, "args": namespace},
        "deep": {"state_dict": state, "optimizer": [{"a": (collections.defaultdict(list, {1: payload}),)}]},
        "state": {**state, "extra": payload},
    }[position]
    path = tmp_path / "weights.pt"
    if file_format.startswith("pickle"):
        path.write_bytes(pickle.dumps(content, protocol=int(file_format[-1])))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=file_format == "zip")
    if function in ("numpy", "torch") and not file_format.startswith("pickle"):
        assert differing(build(path), state) == HEAD
    else:
        error_message(path)
    assert not list(tmp_path.glob("it-ran*"))
    if not isinstance(function, str) and file_format == "zip":  # unrestricted loading executes the code
        torch.load(path, weights_only=False)
        assert sign.exists()


def test_error_names_the_rejected_function(state: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save({"state_dict": state, "hook": Payload(os.getpid)}, tmp_path / "weights.pt")
    assert f"contains {os.getpid.__module__}.getpid, which could be code" in error_message(tmp_path / "weights.pt")


def test_reading_does_not_change_the_safe_globals_of_pytorch(state: dict[str, Tensor], tmp_path: Path) -> None:
    before = set(torch.serialization.get_safe_globals())
    torch.save({"state_dict": state, "args": argparse.Namespace()}, tmp_path / "weights.pt")
    read_weights(tmp_path / "weights.pt")
    assert set(torch.serialization.get_safe_globals()) == before


# --- files that are not weights files ----------------------------------------------------------------


def as_script(path: Path) -> None:
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)), path)


def as_program(path: Path) -> None:
    torch.export.save(torch.export.export(nn.Linear(2, 2), (torch.zeros(1, 2),)), path)


def sparse(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return state | {"fc.weight": state["fc.weight"].to_sparse()}


OTHERS: dict[str, tuple[Callable[[Path, dict[str, Tensor]], object], str]] = {
    "empty.pt": (lambda path, _: torch.save({}, path), "contains no state dict; its keys: none"),
    "keys.pt": (lambda path, _: torch.save({"epoch": 3, "lr": 0.1}, path), "its keys: epoch, lr"),
    "list.pt": (lambda path, state: torch.save(list(state.values()), path), "contains a list, not a state dict"),
    "module.pt": (
        lambda path, _: torch.save(nn.Sequential(nn.Linear(2, 2)), path),
        "an object of torch.nn.modules.contain",
    ),
    "timm.pt": (
        lambda path, _: torch.save({"model": timm.create_model(NAME)}, path),
        "an object of timm.models.resnet.Res",
    ),
    "script.pt": (lambda path, _: as_script(path), "is a TorchScript archive"),
    "program.pt2": (lambda path, _: as_program(path), "is a zip archive without a state dict"),
    "model.onnx": (lambda path, _: path.write_bytes(b"\x08\x0a\x12\x07pytorch"), "is an ONNX model"),
    "onnx.bin": (lambda path, _: path.write_bytes(b"\x08\x0a\x12\x07pytorch"), "is an ONNX model"),
    "model.h5": (lambda path, _: path.write_bytes(b"\x89HDF\r\n\x1a\n" * 20), "HDF5"),
    "lfs.safetensors": (
        lambda path, _: path.write_text("version https://git-lfs.github.com/spec/v1\n"),
        "git lfs pull",
    ),
    "page.pth": (lambda path, _: path.write_text("<!DOCTYPE html><html></html>"), "is a web page"),
    "meta.pt": (lambda path, s: torch.save({n: t.to("meta") for n, t in s.items()}, path), "on the meta device"),
    "sparse.pt": (lambda path, s: torch.save(sparse(s), path), "tensor fc.weight is sparse"),
    "complex.pt": (lambda path, s: torch.save(s | {"fc.bias": torch.zeros(5, dtype=torch.cfloat)}, path), "is complex"),
    "int8.pt": (
        lambda path, s: torch.save({n: t.to(torch.int8) for n, t in s.items()}, path),
        "torch.int8 in the",
    ),
    "nan.pt": (
        lambda path, s: torch.save(s | {"conv1.0.weight": s["conv1.0.weight"] * torch.nan}, path),
        "contains NaN",
    ),
    "quantized.pt": (
        lambda path, _: torch.save({"a": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)}, path),
        "tensor a is quantized",
    ),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("name", OTHERS)
def test_error_describes_a_file_without_usable_weights(name: str, state: dict[str, Tensor], tmp_path: Path) -> None:
    write, message = OTHERS[name]
    write(tmp_path / name, state)
    assert message in error_message(tmp_path / name)


def test_error_for_a_folder_without_weights_lists_the_file_names(tmp_path: Path) -> None:
    assert "has none of weights.safetensors, checkpoints/best.pt" in error_message(tmp_path)
