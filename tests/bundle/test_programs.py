"""Exported programs compute what their models compute, for every model of conf/model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from mlops_img.bundle.manifest import CompiledFor, Program
from mlops_img.bundle.programs import load_program, this_machine, unsupported_reason
from mlops_img.compression.capture import ExportableModel, capture, example_images, save_portable
from mlops_img.compression.measure import by_sensitivity, count_macs
from mlops_img.config.train import ModelConfig
from mlops_img.models.build import build_model, normalization
from mlops_img.preprocessing.transforms import Preprocessing
from tests.helpers.paths import CONF

MODELS = sorted(path.stem for path in (CONF / "model").glob("*.yaml") if path.stem not in ("timm", "custom"))
CPU = torch.device("cpu")


def servable_of(name: str, side: int = 32, classes: int = 4) -> ExportableModel:
    import yaml

    settings = yaml.safe_load((CONF / "model" / f"{name}.yaml").read_text())
    torch.manual_seed(0)
    model = build_model(ModelConfig(**settings), classes, side).eval()
    return ExportableModel(model, Preprocessing(side, 1.0, *normalization(model)))


@pytest.mark.parametrize("name", MODELS)
def test_program_computes_what_the_model_computes(name: str, tmp_path: Path) -> None:
    side = 224 if name == "vit_tiny" else 64
    exportable = servable_of(name, side)
    assert exportable.has_features
    save_portable(capture(exportable, example_images(exportable.preprocessing), max_batch=8), tmp_path / "fp32.pt2")
    run = load_program(tmp_path, Program(precision="fp32", file="fp32.pt2", compiled_for=None, max_batch=8), CPU, side)
    for count in (1, 5):
        images = example_images(exportable.preprocessing, count)
        with torch.no_grad():
            expected = exportable.model(exportable.preprocessing.normalize(images))
        logits, features = run(images)
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
        assert features.shape[0] == count


class Plain(nn.Module):
    """A model of a user's own."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


def plain() -> ExportableModel:
    torch.manual_seed(0)
    return ExportableModel(Plain(), Preprocessing(10, 1.0, (0.5,) * 3, (0.25,) * 3))


def test_features_of_a_custom_model_are_its_logits() -> None:
    logits, features = plain()(example_images(plain().preprocessing))
    assert not plain().has_features
    assert torch.equal(logits, features)


def test_multiply_accumulates_are_counted_with_their_share_in_linear_layers() -> None:
    macs, share = count_macs(plain())
    convolution, linear = 8 * 8 * 8 * 3 * 9, 8 * 5
    assert macs == convolution + linear
    assert share == pytest.approx(linear / (convolution + linear))


def test_most_sensitive_layer_comes_first() -> None:
    exportable = plain()
    last = exportable.model.layers[3]
    with torch.no_grad():  # one huge input makes the step between two int8 values coarse for all others
        exportable.model.layers[0].bias[0] = 1000.0
        last.weight[:, 0] = 0.0
    before = [value.clone() for value in exportable.state_dict().values()]
    assert by_sensitivity(exportable, example_images(exportable.preprocessing, 8))[0] == "model.layers.3"
    after = exportable.state_dict().values()
    assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True)), "it leaves the model as it was"


def test_compiled_programs_are_bound_to_torch_and_processor() -> None:
    here = this_machine(CPU)
    assert unsupported_reason(here, CPU) is None
    assert "torch 1.0" in str(unsupported_reason(here.model_copy(update={"torch": "1.0"}), CPU))
    lacking = here.model_copy(update={"capability": [*here.capability, "avx4096"]})
    assert "lacks avx4096" in str(unsupported_reason(lacking, CPU))
    assert "cuda" in str(unsupported_reason(CompiledFor(device="cuda", capability=["sm_90"], torch="x"), CPU))
    older = here.model_copy(update={"capability": here.capability[:1]})
    assert unsupported_reason(older, CPU) is None, "a newer processor runs what an older one does"
