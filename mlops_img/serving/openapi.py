"""Self-description of the service: the model for /model, and the routes for /docs.json."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from mlops_img.serving.engine import Engine
from mlops_img.serving.schemas import Limits, ModelAnswer, SampleImage
from mlops_img.serving.uploads import FORMATS

DESCRIPTION = "Image classification: uploads in, predictions with calibrated probabilities out."
# Of the data's provenance; the other keys are paths of the machine that trained the model.
DATA_KEYS = ("fingerprint", "dvc_md5")
HEALTH = {
    "/livez": "Whether the process is alive.",
    "/healthz": "The same as /livez.",
    "/readyz": "Whether the model is loaded and the service accepts requests.",
}


def describe_model(engine: Engine) -> ModelAnswer:
    """Describe the model. Its provenance is limited to what reveals nothing about the machine that made it."""
    manifest, settings = engine.predictor.manifest, engine.settings
    trained, exported = manifest.provenance["trained"], manifest.provenance["exported"]
    return ModelAnswer(
        name=manifest.name,
        version=manifest.version,
        created=manifest.created,
        architecture=manifest.model.name,
        precision=engine.predictor.program.precision,
        program=engine.predictor.program.file,
        device=engine.predictor.device.type,
        classes=manifest.classes,
        image_size=manifest.preprocessing.image_size,
        metrics={
            "before": manifest.before.model_dump(),
            "after": manifest.after.model_dump(),
            "test": manifest.test or None,
        },
        provenance={
            "run": manifest.provenance["run"],
            "commit": (trained.get("git") or {}).get("commit"),
            "data": {key: value for key, value in (trained.get("data") or {}).items() if key in DATA_KEYS},
            "mlops_img": exported["mlops_img"],
            "torch": exported["torch"],
        },
        samples=[SampleImage(url=f"samples/{place}", label=each.label) for place, each in enumerate(manifest.samples)],
        limits=Limits(
            max_bytes=settings.max_bytes,
            max_pixels=settings.max_pixels,
            max_images=settings.max_images,
            formats=list(FORMATS),
        ),
    )


def openapi(app: FastAPI, *, tokens: bool) -> dict[str, Any]:
    """Describe all routes, including those that BentoML answers, and the token if one is required."""
    if app.openapi_schema is None:
        schema = get_openapi(title=app.title, version=app.version, routes=app.routes, description=DESCRIPTION)
        plain = {"description": "OK", "content": {"text/plain": {"schema": {"type": "string"}}}}
        for path, summary in HEALTH.items():
            operation = {"summary": summary, "responses": {"200": plain, **_errors(schema)}, "security": []}
            schema["paths"][path] = {"get": operation}
        for name, component in schema["components"]["schemas"].items():
            if name.startswith("Body_"):
                component["additionalProperties"] = False  # unknown fields are rejected
        if tokens:
            schema["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
            schema["security"] = [{"token": []}]
        app.openapi_schema = schema
    return app.openapi_schema


def _errors(schema: dict[str, Any]) -> dict[str, Any]:
    responses: dict[str, Any] = schema["paths"]["/model"]["get"]["responses"]
    return {status: response for status, response in responses.items() if status != "200"}
