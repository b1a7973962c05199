"""Weights files of other programs: layouts, names and metadata."""

from __future__ import annotations

import argparse
import collections
import functools
import json
import logging
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

from mlops_img.errors import UserError
from tests.helpers.weights_files import HEAD, NAME, build, differing, error_message

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
