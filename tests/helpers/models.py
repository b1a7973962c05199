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


class TinyNet(nn.Module):
    """A user's model: batch norm over vectors, no attributes of timm."""

    def __init__(self, num_classes: int, in_chans: int, width: int = 4) -> None:
        super().__init__()
        self.stem = nn.Conv2d(in_chans, width, 3, stride=2)
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.norm = nn.BatchNorm1d(width)
        self.head = nn.Linear(width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.norm(self.pool(self.stem(images))))
        return logits
