"""Models by name and by class: options and stem strides."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from mlops_img.config.train import ModelConfig
from mlops_img.errors import UserError
from mlops_img.models.build import build_model, normalization
from mlops_img.models.weights import classifier_names
from tests.helpers.models import SIDE, TinyNet, build
from tests.helpers.paths import ROOT

CONF = ROOT / "conf" / "model"
# The options that name a model; `timm` and `custom` leave the name to the user.
NAMED = sorted(path.stem for path in CONF.glob("*.yaml") if path.stem not in ("timm", "custom"))


class Headless(TinyNet):
    """A model without a classifier."""

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.stem(images)
        return features


# --- names and options -------------------------------------------------------------------------------


@pytest.mark.parametrize("option", NAMED)
def test_every_option_of_the_model_group_gives_logits(option: str) -> None:
    config: Any = OmegaConf.to_container(OmegaConf.load(CONF / f"{option}.yaml"))
    model = build_model(ModelConfig(**config), 3, 64)
    assert model.training
    with torch.no_grad():
        assert model(torch.randn(2, 3, 64, 64)).shape == (2, 3)


def test_the_required_models_are_options() -> None:
    wanted = {"resnet18", "resnet50", "rexnet_100", "efficientnet_b0", "convnext_tiny", "mobilenetv4_conv_small"}
    assert wanted | {"vit_tiny"} <= set(NAMED)


def test_vit_is_built_for_the_image_size() -> None:
    model = build("test_vit", side=48)
    tokens = model.get_parameter("pos_embed").shape[1]
    assert tokens == 1 + (48 // 16) ** 2


def test_model_for_gray_images_has_one_input_channel() -> None:
    model = build("test_resnet", in_chans=1)
    assert model(torch.randn(2, 1, SIDE, SIDE)).shape == (2, 3)
    with pytest.raises(UserError, match="in_chans=4"):
        build("test_resnet", in_chans=4)


def test_unknown_model_suggests_the_nearest() -> None:
    with pytest.raises(UserError, match=r"no model 'resnet118'.*'resnet18'"):
        build("resnet118")


def test_unknown_tag_lists_the_available_weights() -> None:
    with pytest.raises(UserError, match=r"resnet18\.nonexistent_tag.*resnet18\.a1_in1k") as caught:
        build("resnet18.nonexistent_tag")
    assert "\n" not in str(caught.value)


def test_kwargs_are_passed_to_the_model() -> None:
    model = build("test_resnet", kwargs={"act_layer": "silu"})
    assert any(isinstance(module, nn.SiLU) for module in model.modules())


def test_wrong_keyword_argument_is_named() -> None:
    with pytest.raises(UserError, match=r"no_such_option.*model\.kwargs"):
        build("test_resnet", kwargs={"no_such_option": 1})


def test_unsupported_image_size_is_rejected() -> None:
    with pytest.raises(UserError, match=r"data\.image_size=50: model maxvit_pico_rw_256 cannot"):
        build("maxvit_pico_rw_256", side=50)


def test_stochastic_depth_drops_paths_in_training_only() -> None:
    model = build("test_vit", drop_path_rate=0.9)
    images = torch.randn(4, 3, SIDE, SIDE)
    with torch.no_grad():
        assert not torch.equal(model(images), model(images))
        model.eval()
        assert torch.equal(model(images), model(images))


def test_dropout_rate_is_passed_to_the_model() -> None:
    model = build("test_resnet", drop_rate=0.5)
    images = torch.randn(4, 3, SIDE, SIDE)
    model.eval()
    without = model(images)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.0
    model.get_submodule("fc").train()
    model.training = True  # timm's ResNet uses this flag for its dropout
    assert not torch.equal(model(images), without)


@pytest.mark.parametrize("name", [name for name in ("ghostnet_050", "lcnetv2_small") if timm.is_model(name)])
def test_model_without_stochastic_depth_rejects_only_a_positive_rate(name: str) -> None:
    assert build(name)(torch.randn(2, 3, SIDE, SIDE)).shape == (2, 3)
    with pytest.raises(UserError, match="drop_path_rate"):
        build(name, drop_path_rate=0.1)


def test_unsupported_option_in_kwargs_is_rejected() -> None:
    for option in ({"zero_init_last": False}, {"drop_path_rate": 0.0}):
        with pytest.raises(UserError, match=next(iter(option))):
            build("ghostnet_050", kwargs=option)


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_convnext", "test_vit", "test_byobnet"])
def test_zero_init_residual_can_be_disabled(name: str) -> None:
    zero_norms = [norm for norm in norms(build(name)) if not norm.any()]
    assert bool(zero_norms) == (name in ("test_resnet", "test_byobnet"))
    assert all(norm.any() for norm in norms(build(name, zero_init_residual=False)))


def norms(model: nn.Module) -> list[Tensor]:
    return [tensor for name, tensor in model.named_parameters() if name.endswith("weight") and tensor.ndim == 1]


def test_normalization_is_that_of_the_weights() -> None:
    assert normalization(build("test_vit"))[0] == (0.5, 0.5, 0.5)
    assert normalization(TinyNet(3, 3))[0] == (0.485, 0.456, 0.406)


# --- user classes ------------------------------------------------------------------------------------


def test_user_class_is_called_with_classes_channels_and_kwargs() -> None:
    config = ModelConfig(name="custom", _target_=f"{__name__}.TinyNet", in_chans=1, kwargs={"width": 6})
    model = build_model(config, 5, SIDE)
    assert isinstance(model, TinyNet)
    assert model.stem.weight.shape == (6, 1, 3, 3)
    assert model(torch.randn(2, 1, SIDE, SIDE)).shape == (2, 5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"_target_": f"{__name__}.NoSuchNet"}, "NoSuchNet"),
        ({"_target_": "no_such_package.Net"}, "no_such_package"),
        ({"_target_": f"{__name__}.TinyNet", "kwargs": {"depth": 3}}, "depth"),
        ({"_target_": f"{__name__}.TinyNet", "weights": "hub"}, "hub has no weights"),
        ({"_target_": "torchvision.models.resnet18", "kwargs": {"no_such_option": 1}}, "no_such_option"),
        (
            {"_target_": "torchvision.models.resnet18", "in_chans": 1},
            r"model\.in_chans=1: .*resnet18 takes no in_chans",
        ),
        ({"_target_": f"{__name__}.Headless"}, r"logits of shape \(1, 3\)"),
    ],
)
def test_unusable_user_class_is_a_user_error(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build("custom", **options)


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1", "mobilenet_v3_small"])
def test_torchvision_models_can_be_targets(name: str) -> None:
    model = build("custom", _target_=f"torchvision.models.{name}", side=64)
    assert model(torch.randn(2, 3, 64, 64)).shape == (2, 3)
    assert classifier_names(model)[0] in ("fc", "classifier.1", "classifier.3")


def forwarding(**options: Any) -> nn.Module:
    """Create a model with the same options."""
    return TinyNet(**options)


def color_only(num_classes: int) -> nn.Module:
    return TinyNet(num_classes, in_chans=3)


def faulty(**options: Any) -> nn.Module:
    raise TypeError("a fault in this function")


def test_function_that_takes_any_options_gets_in_chans() -> None:
    model = build("custom", _target_=f"{__name__}.forwarding", in_chans=1)
    assert model.get_parameter("stem.weight").shape[1] == 1


def test_target_without_in_chans_supports_only_color_images() -> None:
    assert build("custom", _target_=f"{__name__}.color_only")(torch.randn(2, 3, SIDE, SIDE)).shape == (2, 3)
    with pytest.raises(UserError, match=r"model\.in_chans=1: .*color_only takes no in_chans"):
        build("custom", _target_=f"{__name__}.color_only", in_chans=1)


def test_type_error_inside_a_user_class_keeps_its_traceback() -> None:
    with pytest.raises(TypeError, match="a fault in this function"):
        build("custom", _target_=f"{__name__}.faulty")


# --- stems -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "stride", "side"),
    [
        ("resnet18", None, 2),
        ("resnet18", 4, 2),
        ("resnet18", 2, 4),
        ("resnet18", 1, 8),
        ("test_resnet", 1, 8),
        ("test_efficientnet", 2, 2),
        ("test_efficientnet", 1, 4),
    ],
)
def test_stem_stride_decides_the_size_of_the_feature_map(name: str, stride: int | None, side: int) -> None:
    model = build(name, side=64, stem_stride=stride)
    with torch.no_grad():
        features: Any = model.forward_features
        assert features(torch.zeros(1, 3, 64, 64)).shape[2:] == (side, side)


@pytest.mark.parametrize(
    ("name", "stride", "message"),
    [
        ("test_vit", 2, "not a convolution of stride 2"),
        ("test_convnext", 2, "not a convolution of stride 2"),
        ("test_resnet", 3, "can be 4, 2, 1"),
        ("test_efficientnet", 4, "can be 2, 1"),
        ("test_resnet", 0, "can be 4, 2, 1"),
    ],
)
def test_impossible_stem_stride_is_rejected(name: str, stride: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(name, stem_stride=stride)


def test_bn_momentum_weighs_a_new_batch_in_the_running_statistics() -> None:
    model = build("test_resnet", bn_momentum=0.4)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms
    images = torch.randn(4, 3, SIDE, SIDE)
    first = norms[0]
    given: list[Tensor] = []
    first.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    model(images)
    assert torch.allclose(first.running_mean, 0.4 * given[0].mean((0, 2, 3)), atol=1e-5)  # type: ignore[arg-type]


def test_bn_momentum_of_a_model_without_batch_norm_is_rejected() -> None:
    with pytest.raises(UserError, match=r"model\.bn_momentum=0\.4: the model has no batch norm"):
        build("test_vit", bn_momentum=0.4)
