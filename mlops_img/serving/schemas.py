"""What the service says, typed: the shapes of its JSON. The client reads them back."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

from mlops_img.bundle.prediction import Prediction
from mlops_img.serving.errors import Code


class Answer(BaseModel):
    """A part of an answer."""

    model_config = ConfigDict(frozen=True, protected_namespaces=())


class ModelVersion(Answer):
    """Which bundle answered."""

    name: str
    version: str


class Timing(Answer):
    """Where the time went, in milliseconds: decoding, waiting for the model, the model, and all of it."""

    decode_ms: float
    queue_ms: float
    model_ms: float
    total_ms: float


class Problem(Answer):
    """An error: what a program can act upon, a sentence for people, and the request's id in the logs."""

    code: Code
    message: str
    request_id: str


class ErrorAnswer(Answer):
    """The body of every answer that is an error."""

    error: Problem


class PredictAnswer(Prediction):
    """The answer to one image."""

    model: ModelVersion
    timing: Timing

    @classmethod
    def of(cls, prediction: Prediction, model: ModelVersion, timing: Timing) -> PredictAnswer:
        """Return a prediction with the model it is from and the time it took."""
        return cls(**dict(prediction), model=model, timing=timing)


class BatchItem(Answer):
    """What became of one image of several: a prediction or an error."""

    filename: str | None
    prediction: Prediction | None = None
    error: Problem | None = None


class BatchAnswer(Answer):
    """The answer to several images, in their order."""

    results: list[BatchItem]
    model: ModelVersion
    timing: Timing


class Limits(Answer):
    """What the service takes."""

    max_bytes: int
    max_pixels: int
    max_images: int
    formats: list[str]


class SampleImage(Answer):
    """An image to try, where it is found, and what it shows."""

    url: str
    label: str


class ModelAnswer(Answer):
    """Which model this is."""

    name: str
    version: str
    created: str
    architecture: str
    precision: str
    program: str
    device: str
    classes: list[str]
    image_size: int
    metrics: dict[str, Any]
    provenance: dict[str, Any]
    samples: list[SampleImage]
    limits: Limits
