"""Predictions: the same classes for the library, the service and its client. Needs no PyTorch."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class ClassProbability(BaseModel):
    """A class and its probability, calibrated by the bundle's temperature."""

    model_config = ConfigDict(frozen=True)

    label: str
    index: int
    probability: float


class Prediction(ClassProbability):
    """The most probable class of an image, and the `top_k` most probable classes, most probable first."""

    top_k: list[ClassProbability]
