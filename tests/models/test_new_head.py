"""A new classifier on a pretrained backbone has small initial weights, for every model option."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from huggingface_hub import constants
from omegaconf import OmegaConf
from safetensors.torch import save_file
from torch import Tensor, nn

from mlops_img.config.train import ModelConfig
from mlops_img.models.build import build_model
from mlops_img.models.weights import classifier_names
from tests.helpers.paths import ROOT
from tests.helpers.shapes import SHAPES, draw_shape

CONF = ROOT / "conf" / "model"
# The options that name a model; `timm` and `custom` leave the name to the user.
NAMED: dict[str, Any] = {
    path.stem: OmegaConf.to_container(OmegaConf.load(path))
    for path in sorted(CONF.glob("*.yaml"))
    if path.stem not in ("timm", "custom")
}
PUBLISHED = [option for option, config in NAMED.items() if timm.is_model_pretrained(config["name"])]
SIDE = 32
CLASSES = 2


def photos(side: int = SIDE, count: int = 8) -> Tensor:
    """Return drawn shapes as a batch (count, 3, side, side), normalized as the loader does."""
    drawn = [draw_shape(SHAPES[number % len(SHAPES)], number, side).crop((0, 0, side, side)) for number in range(count)]
    pixels = torch.stack(
        [torch.frombuffer(bytearray(one.tobytes()), dtype=torch.uint8).view(side, side, 3) for one in drawn]
    )
    return (pixels.permute(0, 3, 1, 2) / 255 - 0.45) / 0.225


def donor_of(name: str, images: Tensor, classes: int = 5) -> nn.Module:
    """Return a model whose batch norms have the statistics of the images, like a trained model."""
    torch.manual_seed(1)
    donor = timm.create_model(name, num_classes=classes, **({"img_size": SIDE} if "vit" in name else {}))
    for module in donor.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = None  # a plain average
    with torch.no_grad():
        donor.train()(images)
    return donor


def fill_hub(cache: Path, name: str, state: dict[str, Tensor]) -> None:
    """Write weights to the cache of the Hugging Face client."""
    published = timm.get_pretrained_cfg(name)
    assert published is not None
    assert published.hf_hub_id is not None
    folder = cache / f"models--{published.hf_hub_id.replace('/', '--')}"
    revision = "0123456789abcdef0123456789abcdef01234567"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(revision)
    (folder / "snapshots" / revision).mkdir(parents=True)
    save_file(state, folder / "snapshots" / revision / "model.safetensors")


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


@pytest.mark.parametrize(
    ("option", "source"), [*((option, "file") for option in NAMED), *((option, "hub") for option in PUBLISHED)]
)
def test_initial_loss_of_a_new_head_is_the_log_of_the_number_of_classes(
    option: str, source: str, tmp_path: Path, hub_cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = NAMED[option]
    images = photos()
    donor = donor_of(options["name"], images)
    if source == "hub":
        fill_hub(hub_cache, options["name"], donor.state_dict())
    else:
        save_file(donor.state_dict(), tmp_path / "weights.safetensors")
    weights = "hub" if source == "hub" else str(tmp_path / "weights.safetensors")

    caplog.set_level(logging.INFO, "mlops_img")
    torch.manual_seed(0)
    model = build_model(ModelConfig(**options, weights=weights), CLASSES, SIDE)

    head = [f"{name}.{kind}" for name in classifier_names(model) for kind in ("weight", "bias")]
    assert f"new tensors, not in the {source}" in caplog.text
    assert caplog.messages[-1].endswith(f": {', '.join(head)}")
    assert {name for name, tensor in model.state_dict().items() if not same(tensor, donor.state_dict()[name])} == {
        *head
    }
    labels = torch.arange(len(images)) % CLASSES
    with torch.no_grad():
        for training in (False, True):  # training mode last, because it changes the running statistics
            loss = nn.functional.cross_entropy(model.train(training)(images), labels).item()
            assert loss == pytest.approx(math.log(CLASSES), rel=0.05), "training" if training else "evaluation"


def same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one, other)


def test_new_head_is_determined_by_the_seed(tmp_path: Path) -> None:
    torch.save(donor_of("test_efficientnet", photos()).state_dict(), tmp_path / "weights.pt")
    config = ModelConfig(name="test_efficientnet", weights=str(tmp_path / "weights.pt"))
    heads = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        heads.append(build_model(config, 3, SIDE).get_parameter("classifier.weight"))
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])
    assert float(heads[0].detach().std()) == pytest.approx(0.001, rel=0.15)


def test_head_of_a_weights_file_with_equal_classes_is_loaded(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    donor = donor_of("test_efficientnet", photos(), classes=3)
    torch.save(donor.state_dict(), tmp_path / "weights.pt")
    caplog.set_level(logging.INFO, "mlops_img")
    model = build_model(ModelConfig(name="test_efficientnet", weights=str(tmp_path / "weights.pt")), 3, SIDE)
    assert all(same(tensor, donor.state_dict()[name]) for name, tensor in model.state_dict().items())
    assert "new tensors" not in caplog.text


def test_head_of_hub_weights_with_equal_classes_is_loaded(hub_cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    donor = donor_of("test_efficientnet", photos(), classes=1000)
    fill_hub(hub_cache, "test_efficientnet", donor.state_dict())
    caplog.set_level(logging.INFO, "mlops_img")
    model = build_model(ModelConfig(name="test_efficientnet", weights="hub"), 1000, SIDE)
    assert all(same(tensor, donor.state_dict()[name]) for name, tensor in model.state_dict().items())
    assert "new tensors" not in caplog.text


def test_random_weights_equal_those_of_timm() -> None:
    torch.manual_seed(3)
    ours = build_model(ModelConfig(name="test_efficientnet"), 3, SIDE).state_dict()
    torch.manual_seed(3)
    theirs = timm.create_model("test_efficientnet", num_classes=3, drop_rate=0.0, drop_path_rate=0.0).state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_only_the_last_layer_of_a_new_classifier_has_small_weights(tmp_path: Path) -> None:
    config = ModelConfig(
        name="custom", _target_=f"{__name__}.TwoLayers", weights=str(tmp_path / "own.pt"), kwargs={"width": 64}
    )
    torch.save(TwoLayers(5, 3, 64).state_dict(), tmp_path / "own.pt")
    head = build_model(config, 3, SIDE).get_submodule("head")
    first, last = head.get_submodule("0").get_parameter("weight"), head.get_submodule("1").get_parameter("weight")
    assert float(last.detach().std()) < 0.002 < 0.02 < float(first.detach().std())


class TwoLayers(nn.Module):
    """A model that names its classifier in `pretrained_cfg`, like timm's models."""

    def __init__(self, num_classes: int, in_chans: int, width: int) -> None:
        super().__init__()
        self.pretrained_cfg = {"classifier": "head"}
        self.stem = nn.Conv2d(in_chans, width, 3)
        self.head = nn.Sequential(nn.Linear(width, 8 * num_classes), nn.Linear(8 * num_classes, num_classes))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.stem(images).mean((2, 3)))
        return logits
