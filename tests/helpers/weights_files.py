"""Models for the tests of weights files, and the errors of files that are not loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mlops_img.config.train import ModelConfig
from mlops_img.errors import UserError
from mlops_img.models.build import build_model

SIDE = 32
NAME = "test_resnet"
HEAD = {"fc.weight", "fc.bias"}


def build(weights: str | Path, name: str = NAME, classes: int = 3, **options: Any) -> nn.Module:
    return build_model(ModelConfig(name=name, weights=str(weights), **options), classes, SIDE)


def differing(loaded: nn.Module, wanted: dict[str, Tensor]) -> set[str]:
    return {name for name, tensor in loaded.state_dict().items() if not torch.equal(tensor, wanted[name])}


def error_message(path: Path, **options: Any) -> str:
    """Return the one-line error message for a file that is not loaded."""
    with pytest.raises(UserError) as caught:
        build(path, **options)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    return str(caught.value)
