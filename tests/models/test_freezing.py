"""Frozen stages: what is trained, and statistics that do not change."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from mlops_img.config.train import OptimConfig
from mlops_img.errors import UserError
from mlops_img.models.weights import classifier_names
from mlops_img.training.optim import make_optimizer
from tests.helpers.models import SIDE, TinyNet, build


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


def train_one_step(model: nn.Module, side: int = SIDE) -> None:
    optimizer = make_optimizer(OptimConfig(lr=0.01), model)
    model.train()
    images = torch.randn(8, 3, side, side)
    nn.functional.cross_entropy(model(images), torch.arange(8) % 3).backward()
    optimizer.step()


# Models with different kinds of layers: batch norm fused with its activation, layer scales, class tokens.
KINDS = ["test_resnet", "test_efficientnet", "test_convnext", "test_vit", "test_byobnet"]


@pytest.mark.parametrize("name", KINDS)
def test_only_the_classifier_is_trained_if_the_backbone_is_frozen(name: str) -> None:
    model = build(name, freeze="backbone")
    head = tuple(f"{part}." for part in classifier_names(model))
    before = snapshot(model)
    train_one_step(model)
    moved = changed(before, model.state_dict())
    assert moved == {tensor for tensor in before if tensor.startswith(head)}


def test_freezing_up_to_a_stage_trains_only_later_stages() -> None:
    # Residual branches initialized with zero would have no gradient in the first step.
    model = build("test_resnet", freeze="layer2", zero_init_residual=False)
    before = snapshot(model)
    train_one_step(model)
    moved = changed(before, model.state_dict())
    frozen = ("conv1.", "bn1.", "layer1.", "layer2.")
    assert moved == {tensor for tensor in before if not tensor.startswith(frozen)}
    assert any("layer1" in tensor and "running_mean" in tensor for tensor in before)


def test_freezing_blocks_of_a_vit_freezes_its_embeddings_too() -> None:
    model = build("test_vit", freeze="blocks.2")
    before = snapshot(model)
    train_one_step(model)
    moved = changed(before, model.state_dict())
    frozen = ("cls_token", "pos_embed", "patch_embed.", "norm_pre.", "blocks.0.", "blocks.1.", "blocks.2.")
    assert moved == {tensor for tensor in before if not tensor.startswith(frozen)}


def test_freezing_a_stage_does_not_freeze_the_next_stage() -> None:
    model = build("test_resnet", freeze="layer1")
    assert not any(parameter.requires_grad for parameter in model.get_submodule("layer1").parameters())
    assert all(parameter.requires_grad for parameter in model.get_submodule("layer2").parameters())


def test_freezing_a_user_class_keeps_batch_norm_statistics() -> None:
    model = build("custom", _target_=f"{TinyNet.__module__}.TinyNet", freeze="backbone")
    before = snapshot(model)
    train_one_step(model)
    assert changed(before, model.state_dict()) == {"head.weight", "head.bias"}


def test_frozen_statistics_do_not_change_after_evaluation_or_in_a_copy() -> None:
    model = build("test_resnet", freeze="layer4")
    model.eval()
    averaged = copy.deepcopy(model)  # as for a moving average of the weights
    for one in (model, averaged):
        before = snapshot(one)
        one.train()
        one(torch.randn(8, 3, SIDE, SIDE))
        assert not changed(before, one.state_dict())
    assert averaged.get_submodule("bn1").train() is averaged.get_submodule("bn1")


def test_frozen_and_trainable_models_have_interchangeable_state_dicts() -> None:
    frozen, free = build("test_efficientnet", freeze="backbone"), build("test_efficientnet")
    free.load_state_dict(frozen.state_dict())
    frozen.load_state_dict(free.state_dict())


def test_unknown_stage_is_rejected_with_a_list_of_the_stages() -> None:
    with pytest.raises(UserError, match=r"no module 'layer5'; its stages are conv1, .*layer4.*'layer"):
        build("test_resnet", freeze="layer5")
