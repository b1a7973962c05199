"""The small convolutional net: shapes, whitening, initialization, errors."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mlops_img.config.train import ModelConfig
from mlops_img.errors import UserError
from mlops_img.models.build import build_model, normalization
from mlops_img.models.small_cnn import PATCH, SmallCNN, WhitenedSmallCNN
from mlops_img.models.weights import classifier_names
from mlops_img.training.data_init import InitializedFromImages


def build(side: int = 32, **kwargs: object) -> SmallCNN:
    model = build_model(ModelConfig(name="small_cnn", kwargs=dict(kwargs)), 10, side)
    assert isinstance(model, SmallCNN)
    return model


def correlated_images(n: int = 64, side: int = 16) -> Tensor:
    """Return images whose neighboring pixels and channels resemble one another."""
    noise = torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(0))
    smooth = torch.nn.functional.avg_pool2d(noise, 3, stride=1, padding=1)
    return 4 * (smooth + 0.5 * smooth.mean(1, keepdim=True) + 0.1)


@pytest.mark.parametrize("side", [28, 32, 33])
def test_logits_of_small_images_of_any_side(side: int) -> None:
    model = build(side, widths=[8, 16])
    assert model(torch.randn(3, 3, side, side)).shape == (3, 10)
    assert classifier_names(model) == ["head"]
    assert normalization(model) == ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


def test_whitened_stem_gives_uncorrelated_outputs_of_equal_variance() -> None:
    model, images = build(), correlated_images()
    assert isinstance(model, WhitenedSmallCNN)
    model.init_from_images(images)
    bias = model.stem.bias
    assert bias is not None
    outputs = (model.stem(images) - bias.view(1, -1, 1, 1)).transpose(0, 1).flatten(1)
    half = len(outputs) // 2
    assert torch.allclose(outputs[:half], -outputs[half:], atol=1e-5)
    second_moments = outputs[:half] @ outputs[:half].T / outputs.shape[1]
    assert torch.allclose(second_moments, torch.eye(half), atol=0.02)


def test_whitened_filters_are_not_trained_and_their_bias_is() -> None:
    model = build()
    assert not model.stem.weight.requires_grad
    assert model.stem.bias is not None
    assert model.stem.bias.requires_grad


def test_without_whitening_the_stem_is_trained_and_wants_no_images() -> None:
    model = build(whiten=False)
    assert model.stem.weight.requires_grad
    assert not isinstance(model, InitializedFromImages)


def test_logits_are_scaled_and_features_are_not() -> None:
    model, images = build(widths=[8, 16], logit_scale=0.25).eval(), torch.randn(2, 3, 32, 32)
    features = model.forward_head(model.forward_features(images), pre_logits=True)
    assert torch.allclose(model(images), 0.25 * model.head(features))


def test_dirac_convolutions_pass_their_input_on() -> None:
    stage = build(widths=[32, 40]).stages[1]
    images = torch.randn(2, 32, 8, 8)
    assert torch.allclose(stage.conv1(images)[:, :32], images, atol=1e-6)
    assert not torch.allclose(build(widths=[32, 40], dirac=False).stages[1].conv1(images)[:, :32], images, atol=0.1)


def test_gray_images() -> None:
    model = build_model(ModelConfig(name="small_cnn", in_chans=1), 10, 28)
    assert isinstance(model, SmallCNN)
    assert model.stem.weight.shape == (2 * PATCH**2, 1, PATCH, PATCH)
    assert model(torch.randn(2, 1, 28, 28)).shape == (2, 10)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kwargs": {"widths": []}}, "widths"),
        ({"kwargs": {"width": 8}}, "width"),
        ({"weights": "hub"}, "weights"),
        ({"drop_path_rate": 0.1}, "drop_path_rate"),
    ],
)
def test_wrong_option_is_one_line(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_model(ModelConfig(name="small_cnn", **options), 10, 32)  # type: ignore[arg-type]


def test_images_that_are_too_small_are_refused() -> None:
    with pytest.raises(UserError, match=r"data\.image_size=8: model small_cnn cannot take such images"):
        build(8)
