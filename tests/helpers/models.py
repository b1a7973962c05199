"""Models by name, and how their weights differ."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mlops_img.config.train import ModelConfig
from mlops_img.models.build import build_model

SIDE = 32


def build(name: str, classes: int = 3, side: int = SIDE, **options: Any) -> nn.Module:
    return build_model(ModelConfig(name=name, **options), classes, side)


def differing(state: dict[str, Tensor], wanted: dict[str, Tensor]) -> set[str]:
    return {name for name in state if not torch.equal(state[name], wanted[name])}
