"""Weights files of other programs: layouts, names, metadata, rejected files; code in a file is not executed."""

from __future__ import annotations

import argparse
import collections
import functools
import json
import logging
import os
import pickle
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import yaml
from huggingface_hub import constants
from omegaconf import OmegaConf
from safetensors.torch import save_file
from timm.utils import CheckpointSaver
from torch import Tensor, nn

from mlops_img.config.train import ModelConfig
from mlops_img.errors import UserError
from mlops_img.models.build import build_model
from mlops_img.models.weights_file import read_weights

SIDE = 32
NAME = "test_resnet"
HEAD = {"fc.weight", "fc.bias"}


def build(weights: str | Path, name: str = NAME, classes: int = 3, **options: Any) -> nn.Module:
    return build_model(ModelConfig(name=name, weights=str(weights), **options), classes, SIDE)


@pytest.fixture
def state() -> dict[str, Tensor]:
    """Return weights of five classes whose tensors all differ from those of a new model."""
    return {name: tensor + 1 for name, tensor in timm.create_model(NAME, num_classes=5).state_dict().items()}


def differing(loaded: nn.Module, wanted: dict[str, Tensor]) -> set[str]:
    return {name for name, tensor in loaded.state_dict().items() if not torch.equal(tensor, wanted[name])}


def error_message(path: Path, **options: Any) -> str:
    """Return the one-line error message for a file that is not loaded."""
    with pytest.raises(UserError) as caught:
        build(path, **options)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    return str(caught.value)


# --- layouts -----------------------------------------------------------------------------------------


class Recorded(dict[str, Any]):
    """A dict that is pickled as Lightning's AttributeDict, without Lightning."""


Recorded.__module__, Recorded.__qualname__ = "lightning.fabric.utilities.data", "AttributeDict"


class TrainConfig:
    """Settings of a user, pickled together with the weights."""

    def __init__(self) -> None:
        self.lr = 0.1


def prefixed(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


LAYOUTS: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "torchvision": lambda state: {
        "model": {name: tensor - 1 for name, tensor in state.items()},
        "optimizer": {"state": {}, "param_groups": [{"lr": 0.1, "params": [0]}]},
        "lr_scheduler": {"milestones": collections.Counter([1]), "_step_count": 1},
        "epoch": 3,
        "args": argparse.Namespace(model="resnet18", output_dir=Path("out")),
        "model_ema": {"n_averaged": torch.tensor(7), **prefixed("module.", state)},
        "scaler": {},
    },
    "lightning": lambda state: {
        "epoch": 1,
        "global_step": 10,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": {**prefixed("model.", state), "criterion.weight": torch.ones(5), "val_acc.total": torch.ones(1)},
        "loops": {"fit_loop": {"state_dict": {}}},
        "callbacks": {"ModelCheckpoint{'monitor': 'val/acc'}": {"best_model_score": torch.tensor(0.9), "dirpath": "x"}},
        "optimizer_states": [],
        "lr_schedulers": [],
        "hparams_name": "kwargs",
        "hyper_parameters": Recorded(lr=0.1, optimizer=functools.partial(torch.optim.AdamW, lr=1e-3)),
    },
    "lightning, net": lambda state: {"state_dict": prefixed("net.", state)},
    "lightning, compiled": lambda state: {"state_dict": prefixed("model._orig_mod.", state)},
    "lightning, own head": lambda state: {
        "state_dict": {
            **prefixed("backbone.", {name: tensor for name, tensor in state.items() if name not in HEAD}),
            "classifier.weight": torch.ones(5, 7),
        }
    },
    "omegaconf": lambda state: {"model_state_dict": state, "config": OmegaConf.create({"a": [1, {"b": "${a}"}]})},
    "own class": lambda state: {"weights": state, "config": TrainConfig()},
    "net": lambda state: {"net": state, "acc": np.float64(93.1), "rng": np.arange(3), "epoch": np.int64(3)},
    "settings of that name": lambda state: {"model": {"name": "resnet"}, "ema": {"decay": 0.9}, "params": state},
    "nested": lambda state: {"model": {"state_dict": state}},
    "default dict": lambda state: collections.defaultdict(list, state),
    "data parallel, compiled": lambda state: {"state_dict": prefixed("module._orig_mod.module.", state)},
    "part compiled": lambda state: {name.replace("layer1.", "layer1._orig_mod."): one for name, one in state.items()},
    "half": lambda state: {name: one.half() if one.is_floating_point() else one for name, one in state.items()},
    "bfloat16": lambda state: {name: one.bfloat16() if one.is_floating_point() else one for name, one in state.items()},
    "parameters": lambda state: {
        name: nn.Parameter(one) if one.is_floating_point() else one for name, one in state.items()
    },
    "simple": lambda state: {"state_dict": state, "args": types.SimpleNamespace(a=Path("b"), c={1, 2})},
}


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_checkpoints_of_other_programs_are_loaded(
    layout: str, legacy: bool, state: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        module = types.ModuleType("lightning.fabric.utilities.data")
        module.AttributeDict = Recorded  # type: ignore[attr-defined]
        for name in ("lightning", "lightning.fabric", "lightning.fabric.utilities"):
            patch.setitem(sys.modules, name, types.ModuleType(name))
        patch.setitem(sys.modules, module.__name__, module)
        torch.save(LAYOUTS[layout](state), tmp_path / "last.ckpt", _use_new_zipfile_serialization=not legacy)
    loaded = build(tmp_path / "last.ckpt")
    assert all(tensor.dtype != torch.float16 for tensor in loaded.state_dict().values())
    if layout in ("half", "bfloat16"):
        state = {name: tensor.to(torch.float32) for name, tensor in LAYOUTS[layout](state).items()}
    assert differing(loaded, state) == HEAD


def test_timm_checkpoints_load(tmp_path: Path) -> None:
    donor = timm.create_model(NAME, num_classes=3)
    arguments = argparse.Namespace(model=NAME, opt="sgd", mean=(0.5, 0.5, 0.5))
    saver = CheckpointSaver(
        donor,
        torch.optim.SGD(donor.parameters(), 0.1),
        args=arguments,
        checkpoint_dir=str(tmp_path),
        recovery_dir=str(tmp_path),
    )
    saver.save_checkpoint(0, metric=50.0)
    for path in (tmp_path / "last.pth.tar", tmp_path / "model_best.pth.tar", tmp_path):
        assert not differing(build(path), donor.state_dict())


def test_weights_without_prefix_are_loaded_into_a_model_with_prefix(state: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save(state, tmp_path / "weights.pt")
    loaded = build(tmp_path / "weights.pt", name="custom", _target_=f"{__name__}.Wrapped", classes=5)
    assert not differing(loaded, prefixed("backbone.", state))


class Wrapped(nn.Module):
    """A user's class that contains a model of timm."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.backbone = timm.create_model(NAME, num_classes=num_classes)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.backbone(images)
        return logits


def test_two_copies_of_a_model_in_one_file_are_rejected_unless_one_is_averaged(
    state: dict[str, Tensor], tmp_path: Path
) -> None:
    path = tmp_path / "last.ckpt"
    old = {name: tensor - 1 for name, tensor in state.items()}
    torch.save({"state_dict": {**prefixed("model.", old), **prefixed("teacher.", state)}}, path)
    assert "more than once, with prefixes model. and teacher." in error_message(path)
    torch.save({"state_dict": {**prefixed("model.", old), **prefixed("ema_model.", state)}}, path)
    assert differing(build(path), state) == HEAD


def test_file_format_is_recognized_by_content_and_not_by_suffix(
    state: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    save_file(state, tmp_path / "pytorch_model.bin")
    torch.save(state, tmp_path / "weights.safetensors")
    assert differing(build("~/pytorch_model.bin"), state) == HEAD
    assert differing(build("~/weights.safetensors"), state) == HEAD


def test_hugging_face_folders_are_loaded_with_and_without_shards(state: dict[str, Tensor], tmp_path: Path) -> None:
    whole, shards = tmp_path / "whole", tmp_path / "shards"
    whole.mkdir()
    shards.mkdir()
    torch.save(state, whole / "pytorch_model.bin")
    assert differing(build(whole), state) == HEAD
    save_file(state, whole / "model.safetensors")
    assert differing(build(whole), state) == HEAD
    names, half = list(state), len(state) // 2
    weight_map = {}
    for number, part in enumerate((names[:half], names[half:])):
        save_file({name: state[name] for name in part}, shards / f"part-{number}.safetensors")
        weight_map |= dict.fromkeys(part, f"part-{number}.safetensors")
    (shards / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert differing(build(shards), state) == HEAD
    (shards / "part-1.safetensors").unlink()
    with pytest.raises(UserError, match=r"part-1\.safetensors cannot be read"):
        build(shards)


def test_runs_and_bundles_are_loaded_without_warnings(
    run: Path, portable: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trained = torch.load(run / "checkpoints" / "best.pt", weights_only=True)["model"]
    for path in (run, portable, run / "checkpoints" / "best.pt", run / "checkpoints"):
        assert not differing(build(path), trained)
    assert not caplog.records


def test_hub_repository_can_be_named_by_weights_and_by_model_name(
    state: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"model\.weights=hf-hub:someone/net: it could not be downloaded"):
        build("hf-hub:someone/net")
    with pytest.raises(UserError, match=r"model\.name=hf-hub:someone/net: its config\.json could not be downloaded"):
        build("none", name="hf-hub:someone/net")
    snapshot = tmp_path / "models--someone--net" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (tmp_path / "models--someone--net" / "refs").mkdir()
    (tmp_path / "models--someone--net" / "refs" / "main").write_text("0" * 40)
    save_file(state, snapshot / "model.safetensors")
    described = {"input_size": [3, 160, 160], "first_conv": "conv1.0", "classifier": "fc", "num_classes": 5}
    (snapshot / "config.json").write_text(
        json.dumps({"architecture": NAME, "num_classes": 5, "pretrained_cfg": described})
    )
    for weights, name in (("hf-hub:someone/net", NAME), ("hf_hub:someone/net", NAME), ("hub", "hf-hub:someone/net")):
        assert differing(build(weights, name=name), state) == HEAD
    assert not differing(build("hub", name="hf_hub:someone/net", classes=5), state)
    assert "fc.weight" in build("none", name="hf-hub:someone/net").state_dict()
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


# --- code in a file is not executed ------------------------------------------------------------------


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


# --- the architecture --------------------------------------------------------------------------------


def test_error_shows_a_pair_of_names_if_all_shapes_are_equal(state: dict[str, Tensor], tmp_path: Path) -> None:
    renamed = {name.replace("conv1.0.weight", "stem.kernel"): tensor for name, tensor in state.items()}
    torch.save(renamed, tmp_path / "weights.pt")
    message = error_message(tmp_path / "weights.pt")
    assert (
        "same shapes as the model, but with other names, e.g. stem.kernel in the file and conv1.0.weight in" in message
    )


WRITERS: dict[str, Callable[[Path, dict[str, Tensor], str], Path]] = {}


def writer(write: Callable[[Path, dict[str, Tensor], str], Path]) -> Callable[..., Path]:
    WRITERS[write.__name__] = write
    return write


@writer
def metadata(folder: Path, state: dict[str, Tensor], name: str) -> Path:
    save_file(state, folder / "weights.safetensors", metadata={"architecture": name})
    return folder / "weights.safetensors"


@writer
def timm_arguments(folder: Path, state: dict[str, Tensor], name: str) -> Path:
    content = {"state_dict": state, "arch": "efficientnet", "args": argparse.Namespace(model=name)}
    torch.save(content, folder / "last.pth.tar")
    return folder / "last.pth.tar"


@writer
def hugging_face(folder: Path, state: dict[str, Tensor], name: str) -> Path:
    (folder / "config.json").write_text(json.dumps({"architecture": name}))
    save_file(state, folder / "model.safetensors")
    return folder


@writer
def run_folder(folder: Path, state: dict[str, Tensor], name: str) -> Path:
    (folder / "checkpoints").mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump({"model": {"name": name}}))
    torch.save({"model": state}, folder / "checkpoints" / "best.pt")
    return folder / "checkpoints" / "best.pt"


@writer
def bundle(folder: Path, state: dict[str, Tensor], name: str) -> Path:
    (folder / "manifest.json").write_text(json.dumps({"model": {"name": name}}))
    save_file(state, folder / "weights.safetensors")
    return folder


@writer
def file_name(folder: Path, state: dict[str, Tensor], name: str) -> Path:
    save_file(state, folder / f"{name}.in1k.safetensors")
    return folder / f"{name}.in1k.safetensors"


@pytest.mark.parametrize("kind", WRITERS)
def test_other_architecture_named_by_the_weights_is_logged(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = timm.create_model("tf_efficientnet_lite0", num_classes=3).state_dict()
    path = WRITERS[kind](tmp_path, state, "tf_efficientnet_lite0")
    build(path, name="tf_efficientnet_lite0")
    assert not caplog.records
    build(path, name="efficientnet_lite0")  # has the same shapes but other padding
    assert len(caplog.records) == 1
    assert "is of architecture tf_efficientnet_lite0, but the model is efficientnet_lite0" in caplog.text
    assert "holds the weights of another architecture (tf_efficientnet_lite0)" in error_message(path)
