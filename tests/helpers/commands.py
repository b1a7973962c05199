"""How a command ended, and settings under which a training takes seconds."""

from __future__ import annotations

from dataclasses import dataclass

TINY = (
    "data=folder",
    "data.image_size=32",
    "data.crop_pct=1.0",
    "model=timm",
    "model.name=test_resnet",
    "train.batch_size=8",
    "train.epochs=2",
    "augment=none",
    "tracking=none",
)


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    code: int
    out: str
    err: str
