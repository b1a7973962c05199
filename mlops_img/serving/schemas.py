"""JSON schemas of the responses, shared by the service and its client."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

from mlops_img.bundle.prediction import Prediction
from mlops_img.serving.errors import Code


class Answer(BaseModel):
    """Base of all parts of a response."""

    model_config = ConfigDict(frozen=True, protected_namespaces=())


class ModelVersion(Answer):
    """The bundle that made a prediction."""

    name: str
    version: str


class Timing(Answer):
    """Milliseconds for decoding, waiting for the model, the model, and the whole request."""

    decode_ms: float
    queue_ms: float
    model_ms: float
    total_ms: float


class Problem(Answer):
    """An error: its code for programs, a sentence for people, and the id of the request in the logs."""

    code: Code
    message: str
    request_id: str


class ErrorAnswer(Answer):
    """The body of every error response."""

    error: Problem


class PredictAnswer(Prediction):
    """The response to one image."""

    model: ModelVersion
    timing: Timing

    @classmethod
    def of(cls, prediction: Prediction, model: ModelVersion, timing: Timing) -> PredictAnswer:
        """Return a prediction together with its model and timing."""
        return cls(**dict(prediction), model=model, timing=timing)


class BatchItem(Answer):
    """The result for one of several images: a prediction or an error."""

    filename: str | None
    prediction: Prediction | None = None
    error: Problem | None = None


class BatchAnswer(Answer):
    """The response to several images, in their order."""

    results: list[BatchItem]
    model: ModelVersion
    timing: Timing


class Limits(Answer):
    """Limits of the requests that the service accepts."""

    max_bytes: int
    max_pixels: int
    max_images: int
    formats: list[str]


class SampleImage(Answer):
    """A sample image: its URL, relative to the service, and its true label."""

    url: str
    label: str


class ModelAnswer(Answer):
    """Description of the model."""

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
