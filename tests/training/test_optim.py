"""Optimizers, what they leave undecayed and how fast each layer learns; the losses."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight  # type: ignore[import-untyped]
from torch import Tensor, nn
from torch.nn import functional

from mlops_img.config.train import LossConfig, ModelConfig, OptimConfig
from mlops_img.errors import UserError
from mlops_img.models.build import build_model
from mlops_img.training.losses import make_loss
from mlops_img.training.optim import make_optimizer, set_learning_rate

CLASSES = ["cat", "dog", "owl"]
LABELS = np.array([0] * 6 + [1] * 3 + [2])


def small_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)
    )


def vit() -> nn.Module:
    return build_model(ModelConfig(name="test_vit"), 3, 32)


def groups_by_name(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Any]]:
    """Find the group of every parameter that the optimizer has."""
    places = {id(parameter): group for group in optimizer.param_groups for parameter in group["params"]}
    return {name: places[id(parameter)] for name, parameter in model.named_parameters() if id(parameter) in places}


# --- optimizers --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "lr"), [("adamw", 0.01), ("sgd", 0.1), ("lamb", 0.02), ("muon", 0.02), ("lion", 0.003), ("adopt", 0.01)]
)
def test_optimizer_halves_the_loss_on_a_fixed_batch(name: str, lr: float) -> None:
    model = small_net()
    optimizer = make_optimizer(OptimConfig(name=name, lr=lr), model)
    labels = torch.arange(12) % 3
    images = torch.randn(12, 3, 6, 6) + labels.view(-1, 1, 1, 1)
    losses = []
    for _ in range(60):
        loss = functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2


@pytest.mark.parametrize("layer_decay", [None, 0.7])
def test_norms_biases_and_position_embeddings_are_not_decayed(layer_decay: float | None) -> None:
    model = vit()
    optimizer = make_optimizer(OptimConfig(weight_decay=0.3, layer_decay=layer_decay), model)
    groups = groups_by_name(model, optimizer)
    assert groups.keys() == dict(model.named_parameters()).keys()
    for name, parameter in model.named_parameters():
        spared = parameter.ndim <= 1 or name in ("cls_token", "pos_embed")
        assert groups[name]["weight_decay"] == (0 if spared else 0.3), name


@pytest.mark.parametrize("layer_decay", [None, 0.5])
def test_parts_of_the_model_learn_at_their_own_rate(layer_decay: float | None) -> None:
    model = vit()
    plain = groups_by_name(model, make_optimizer(OptimConfig(layer_decay=layer_decay), model))
    config = OptimConfig(
        layer_decay=layer_decay, lr_scales={"bias": 2.0, "norm": 3.0, "blocks.0.*": 0.25, "head": 10.0}
    )
    scaled = groups_by_name(model, make_optimizer(config, model))
    expected = {"head.bias": 10, "head.weight": 10, "blocks.0.norm1.weight": 0.25, "blocks.0.attn.qkv.bias": 0.25}
    expected |= {"norm.weight": 3, "blocks.1.norm1.bias": 3, "blocks.1.attn.qkv.bias": 2, "blocks.1.attn.qkv.weight": 1}
    for name, scale in expected.items():
        before = plain[name].get("lr_scale", 1.0)
        assert scaled[name].get("lr_scale", 1.0) == pytest.approx(scale * before), name
        assert scaled[name]["weight_decay"] == plain[name]["weight_decay"], name
    assert scaled.keys() == plain.keys()


@pytest.mark.parametrize(
    ("scales", "message"),
    [
        ({"heads": 2.0}, "optim.lr_scales.heads: it matches no trained parameter"),
        ({"blocks.9.*": 2.0}, "blocks.9.*: it matches no trained parameter"),
        ({"head": 0.0}, "optim.lr_scales.head=0.0: it must be a number above 0"),
    ],
)
def test_invalid_learning_rate_scales_are_user_errors(scales: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        make_optimizer(OptimConfig(lr_scales=scales), vit())


def test_frozen_parameters_are_left_out() -> None:
    model = build_model(ModelConfig(name="test_vit", freeze="backbone"), 3, 32)
    assert set(groups_by_name(model, make_optimizer(OptimConfig(), model))) == {"head.weight", "head.bias"}


def test_layer_decay_lowers_the_rate_of_deeper_layers() -> None:
    model = vit()
    optimizer = make_optimizer(OptimConfig(layer_decay=0.5), model)
    set_learning_rate(optimizer, 0.8)
    rates = {name: group["lr"] for name, group in groups_by_name(model, optimizer).items()}
    assert rates["head.weight"] == 0.8
    blocks = [rates[f"blocks.{number}.attn.qkv.weight"] for number in range(6)]
    assert [later / earlier for earlier, later in pairwise(blocks)] == pytest.approx([2] * 5)
    assert rates["patch_embed.proj.weight"] == pytest.approx(blocks[0] / 2)
    assert rates["norm.weight"] >= blocks[-1]


def test_learning_rate_is_the_same_everywhere_without_layer_decay() -> None:
    optimizer = make_optimizer(OptimConfig(lr=1.0), vit())
    set_learning_rate(optimizer, 0.25)
    assert {group["lr"] for group in optimizer.param_groups} == {0.25}


def test_momentum_and_further_arguments_reach_the_optimizer() -> None:
    sgd = make_optimizer(OptimConfig(name="sgd", momentum=0.8), small_net())
    assert sgd.param_groups[0]["momentum"] == 0.8
    assert sgd.param_groups[0]["nesterov"]
    adam = make_optimizer(OptimConfig(kwargs={"betas": [0.8, 0.95], "foreach": True}), small_net())
    assert tuple(adam.param_groups[0]["betas"]) == (0.8, 0.95)
    assert adam.param_groups[0]["foreach"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "adamm"}, r"no optimizer 'adamm'\. Did you mean 'adam"),
        ({"kwargs": {"beta": 0.9}}, r"optim\.name=adamw: .*beta.*optim\.kwargs"),
        ({"kwargs": {"lr": 0.1}}, "lr"),
        ({"kwargs": {"betas": [0.9, 1.5]}}, "1.5"),
        ({"name": "sgd", "kwargs": {"betas": [0.9, 0.99]}}, "sgd takes no betas"),
        ({"name": "sgd", "momentum": 0.0}, "omentum"),
        ({"name": "adahessian"}, "second derivatives"),
    ],
)
def test_invalid_optimizer_is_a_user_error(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_optimizer(OptimConfig(**options), small_net())


# --- losses ------------------------------------------------------------------------------------------


@pytest.fixture
def logits() -> Tensor:
    return torch.randn(10, 3, generator=torch.Generator().manual_seed(1)) * 3


@pytest.fixture
def mixed() -> Tensor:
    """Labels as mixup makes them, float32 (10, 3)."""
    return torch.rand(10, 3, generator=torch.Generator().manual_seed(2)).softmax(1)


def loss_of(logits: Tensor, target: Tensor, **options: Any) -> float:
    loss: Tensor = make_loss(LossConfig(**options), CLASSES, LABELS)(logits, target)
    assert loss.dtype == torch.float32
    assert loss.shape == ()
    return loss.item()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_is_that_of_pytorch_for_hard_and_mixed_labels(
    smoothing: float, logits: Tensor, mixed: Tensor
) -> None:
    for target in (torch.from_numpy(LABELS), mixed):
        wanted = functional.cross_entropy(logits, target, label_smoothing=smoothing).item()
        assert loss_of(logits, target, label_smoothing=smoothing) == pytest.approx(wanted)


def test_loss_of_half_precision_logits_is_computed_in_float32(logits: Tensor) -> None:
    target = torch.from_numpy(LABELS)
    half = logits.bfloat16()
    for name in ("cross_entropy", "bce"):
        assert loss_of(half, target, name=name) == loss_of(half.float(), target, name=name)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_bce_is_the_mean_binary_cross_entropy_over_classes(smoothing: float, logits: Tensor, mixed: Tensor) -> None:
    hard = functional.one_hot(torch.from_numpy(LABELS), 3).float()
    for target, shares in ((torch.from_numpy(LABELS), hard), (mixed, mixed)):
        chances = logits.sigmoid()
        aims = shares * (1 - smoothing) + smoothing / 3
        wanted = -(aims * chances.log() + (1 - aims) * (1 - chances).log()).mean().item()
        assert loss_of(logits, target, name="bce", label_smoothing=smoothing) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("name", ["cross_entropy", "bce"])
def test_hard_labels_and_the_same_as_shares_give_the_same_loss(name: str, logits: Tensor) -> None:
    labels = torch.from_numpy(LABELS)
    shares = functional.one_hot(labels, 3).float()
    options = {"name": name, "label_smoothing": 0.1}
    assert loss_of(logits, labels, **options) == pytest.approx(loss_of(logits, shares, **options))


def test_balanced_weights_are_those_of_scikit_learn(logits: Tensor) -> None:
    weights = torch.tensor(compute_class_weight("balanced", classes=np.arange(3), y=LABELS), dtype=torch.float32)
    labels = torch.from_numpy(LABELS)
    wanted = functional.cross_entropy(logits, labels, weight=weights).item()
    assert loss_of(logits, labels, class_weights="balanced") == pytest.approx(wanted)


def test_named_weights_leave_the_others_at_one(logits: Tensor) -> None:
    labels = torch.from_numpy(LABELS)
    wanted = functional.cross_entropy(logits, labels, weight=torch.tensor([1, 5.0, 1])).item()
    assert loss_of(logits, labels, class_weights={"dog": 5}) == pytest.approx(wanted)
    plain = functional.binary_cross_entropy_with_logits(logits, functional.one_hot(labels).float(), reduction="none")
    weighted = (plain * torch.tensor([1, 5.0, 1])[labels].unsqueeze(1)).mean().item()
    assert loss_of(logits, labels, name="bce", class_weights={"dog": 5}) == pytest.approx(weighted)


def test_class_named_by_a_number_gets_its_weight() -> None:
    loss = make_loss(LossConfig(class_weights={7: 2.0}), ["3", "7"], np.array([0, 1]))
    assert loss.get_buffer("weight").tolist() == [1, 2]


def test_balanced_weights_of_a_class_without_images_are_finite() -> None:
    loss = make_loss(LossConfig(class_weights="balanced"), [*CLASSES, "yak"], LABELS)
    assert loss.get_buffer("weight").isfinite().all()


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"dgo": 2}, r"no class 'dgo'\. Did you mean 'dog'"),
        ({"dog": 0}, "weight of 'dog' is 0"),
        ({"dog": -1.0}, "above 0"),
        ({"dog": float("nan")}, "above 0"),
        ({"dog": float("inf")}, "above 0"),
        ({"dog": "heavy"}, "heavy"),
        ("balance", "none, balanced or"),
        (None, "none, balanced or"),
        ([1, 2, 3], "none, balanced or"),
    ],
)
def test_invalid_class_weights_are_user_errors(weights: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_loss(LossConfig(class_weights=weights), CLASSES, LABELS)
