"""The application: prediction routes, the model, sample images, metrics, and the web page."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, FastAPI, File, Form, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, Response

from mlops_img import __version__
from mlops_img.serving import telemetry
from mlops_img.serving.admission import Reservation
from mlops_img.serving.engine import Engine, TimedPrediction
from mlops_img.serving.errors import STATUS, Code, RequestError
from mlops_img.serving.forms import FormRoute
from mlops_img.serving.openapi import describe_model, openapi
from mlops_img.serving.responses import MESSAGES, error_of_status, error_response
from mlops_img.serving.routes import HEALTH, PAGE, PublicRoute, add_extensions
from mlops_img.serving.schemas import (
    BatchAnswer,
    BatchItem,
    ErrorAnswer,
    ModelAnswer,
    ModelVersion,
    PredictAnswer,
    Problem,
    Timing,
)


async def _reservation(request: Request) -> Reservation:
    reservation: Reservation = request.state.reservation
    return reservation


TopK = Annotated[int, Form(ge=1, le=1000, description="How many of the most probable classes to list.")]
RequestReservation = Annotated[Reservation, Depends(_reservation)]
POSSIBLE_ERRORS: dict[int | str, dict[str, Any]] = {status: {"model": ErrorAnswer} for status in set(STATUS.values())}


def build_app(engine: Engine) -> FastAPI:
    """Return the application that serves an engine, with the routes of all plugins."""
    app = FastAPI(
        title=f"mlops_img: {engine.predictor.manifest.name}",
        version=__version__,
        openapi_url="/docs.json",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        responses=POSSIBLE_ERRORS,
    )
    tokens = bool(engine.settings.tokens or engine.settings.tokens_file)
    app.router.route_class = FormRoute
    app.openapi = lambda: openapi(app, tokens=tokens)  # type: ignore[method-assign]
    app.add_exception_handler(RequestError, _answer_error)  # type: ignore[arg-type]
    app.add_exception_handler(RequestValidationError, _answer_invalid)  # type: ignore[arg-type]
    app.add_exception_handler(HTTPException, _answer_http)  # type: ignore[arg-type]
    _add_prediction(app, engine)
    _add_information(app, engine)
    # Not a mounted folder: that would also answer a wrong method for the path of another route.
    for path, file in PAGE.items():
        app.router.routes.append(PublicRoute(path, partial(_page, file), methods=["GET"]))
    # BentoML answers GET here, and passes on the other methods.
    for path in HEALTH:
        app.router.routes.append(PublicRoute(path, Response, methods=["GET"]))
    add_extensions(app, engine)
    return app


def _add_prediction(app: FastAPI, engine: Engine) -> None:
    version = ModelVersion(name=engine.predictor.manifest.name, version=engine.predictor.manifest.version)
    max_images = engine.settings.max_images

    @app.post("/predict", response_model=PredictAnswer)
    async def predict(image: Annotated[UploadFile, File()], top_k: TopK = 5) -> Response:
        """Classify one image: JPEG, PNG, WebP, GIF, BMP or TIFF."""
        start = time.perf_counter()
        timed = await engine.predict(await image.read(), top_k)
        return _json(PredictAnswer.of(timed.prediction, version, _timing([timed], start)))

    @app.post("/predict_batch", response_model=BatchAnswer)
    async def predict_batch(
        request: Request, reservation: RequestReservation, images: Annotated[list[UploadFile], File()], top_k: TopK = 5
    ) -> Response:
        """Classify several images; each has its own prediction or error."""
        start = time.perf_counter()
        if len(images) > max_images:
            raise RequestError(Code.TOO_LARGE, f"A request may have at most {max_images} images.")
        reservation.resize(len(images))
        outcomes = await asyncio.gather(*(_outcome(engine, image, top_k) for image in images))
        results = [
            BatchItem(filename=image.filename, prediction=outcome.prediction)
            if isinstance(outcome, TimedPrediction)
            else BatchItem(filename=image.filename, error=_problem(request, outcome))
            for image, outcome in zip(images, outcomes, strict=True)
        ]
        predicted = [outcome for outcome in outcomes if isinstance(outcome, TimedPrediction)]
        return _json(BatchAnswer(results=results, model=version, timing=_timing(predicted, start)))


def _add_information(app: FastAPI, engine: Engine) -> None:
    manifest = engine.predictor.manifest
    description = describe_model(engine)

    @app.get("/model", response_model=ModelAnswer)
    async def model() -> Response:
        """Describe the model: how accurate it is, where it comes from, and which requests it accepts."""
        return _json(description)

    @app.get("/samples/{number}", response_class=Response)
    async def sample(number: int) -> FileResponse:
        """Return a sample image: `number` is its index in the samples of /model, from 0."""
        if not 0 <= number < len(manifest.samples):
            raise RequestError(Code.NOT_FOUND, MESSAGES[Code.NOT_FOUND])
        return FileResponse(engine.predictor.folder / manifest.samples[number].file)

    @app.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """Return the metrics of all workers for Prometheus."""
        return Response(await asyncio.to_thread(telemetry.scrape), media_type=telemetry.CONTENT_TYPE)


async def _page(file: Path, request: Request) -> FileResponse:
    return FileResponse(file)


async def _outcome(engine: Engine, image: UploadFile, top_k: int) -> TimedPrediction | RequestError:
    try:
        return await engine.predict(await image.read(), top_k)
    except RequestError as error:
        telemetry.REJECTED.labels(error.code).inc()
        return error


def _timing(predicted: list[TimedPrediction], start: float) -> Timing:
    """Return the longest time of each stage: the images of a request are processed concurrently."""
    stages = [(each.decode, each.queue, each.model) for each in predicted] or [(0.0, 0.0, 0.0)]
    decode, queue, model = (round(1e3 * max(seconds), 3) for seconds in zip(*stages, strict=True))
    total = round(1e3 * (time.perf_counter() - start), 3)
    return Timing(decode_ms=decode, queue_ms=queue, model_ms=model, total_ms=total)


def _json(answer: PredictAnswer | BatchAnswer | ModelAnswer) -> Response:
    return Response(answer.model_dump_json(), media_type="application/json")


def _problem(request: Request, error: RequestError) -> Problem:
    return Problem(code=error.code, message=error.message, request_id=request.state.request_id)


def _answer_error(request: Request, error: RequestError) -> Response:
    request.state.reason = error.code
    return error_response(error, request.state.request_id)


def _answer_invalid(request: Request, error: RequestValidationError) -> Response:
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"][1:])
    # A value error comes from FastAPI's own types: a text was sent instead of a file.
    reason = "Input should be a file" if first["type"] == "value_error" else first["msg"]
    message = f"{field}: {reason}." if field else f"{reason}."
    return _answer_error(request, RequestError(Code.INVALID_PARAMETER, message[:200]))


def _answer_http(request: Request, error: HTTPException) -> Response:
    message = f"{str(error.detail).rstrip('.')}."
    allow = (error.headers or {}).get("Allow")
    return _answer_error(request, error_of_status(error.status_code, message, allow=allow))
