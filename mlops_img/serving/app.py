"""The routes: predict, predict_batch, model, the samples, the metrics and the page."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, File, Form, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from mlops_img import __version__
from mlops_img.serving import telemetry
from mlops_img.serving.engine import Answered, Engine
from mlops_img.serving.errors import CODES, STATUS, Code, RequestError
from mlops_img.serving.forms import FormRoute
from mlops_img.serving.middleware import SAID, error_response
from mlops_img.serving.openapi import describe_model, openapi
from mlops_img.serving.routes import HEALTH, PAGE
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

TopK = Annotated[int, Form(ge=1, le=1000, description="How many of the most probable classes to list.")]
POSSIBLE_ERRORS: dict[int | str, dict[str, Any]] = {status: {"model": ErrorAnswer} for status in set(STATUS.values())}


def build_app(engine: Engine) -> FastAPI:
    """Return the application that serves this engine."""
    manifest, settings = engine.predictor.manifest, engine.settings
    version = ModelVersion(name=manifest.name, version=manifest.version)
    model = describe_model(engine)
    app = FastAPI(
        title=f"mlops_img: {manifest.name}",
        version=__version__,
        openapi_url="/docs.json",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    tokens = bool(settings.tokens or settings.tokens_file)
    app.router.route_class = FormRoute
    app.openapi = lambda: openapi(app, tokens=tokens)  # type: ignore[method-assign]
    app.add_exception_handler(RequestError, _answer_failure)  # type: ignore[arg-type]
    app.add_exception_handler(RequestValidationError, _answer_invalid)  # type: ignore[arg-type]
    app.add_exception_handler(HTTPException, _answer_http)  # type: ignore[arg-type]

    @app.post("/predict", response_model=PredictAnswer, responses=POSSIBLE_ERRORS)
    async def predict(request: Request, image: Annotated[UploadFile, File()], top_k: TopK = 5) -> Response:
        """Say what is on one image: JPEG, PNG, WebP, GIF, BMP or TIFF."""
        start = time.perf_counter()
        await _refuse_unheard(request, once=("image", "top_k"))
        answered = await engine.predict(await image.read(), top_k)
        return _json(PredictAnswer.of(answered.prediction, version, _timing([answered], start)))

    @app.post("/predict_batch", response_model=BatchAnswer, responses=POSSIBLE_ERRORS)
    async def predict_batch(request: Request, images: Annotated[list[UploadFile], File()], top_k: TopK = 5) -> Response:
        """Say what is on each of several images; each has its own prediction or error."""
        start = time.perf_counter()
        await _refuse_unheard(request, once=("top_k",), often=("images",))
        if len(images) > settings.max_images:
            raise RequestError(Code.TOO_LARGE, f"A request takes up to {settings.max_images} images.")
        # One place is taken at the door.
        with engine.admission.enter(len(images) - 1, held=1) if len(images) > 1 else nullcontext():
            outcomes = await asyncio.gather(*(_outcome(engine, image, top_k) for image in images))
        items = [
            BatchItem(filename=image.filename, prediction=outcome.prediction)
            if isinstance(outcome, Answered)
            else BatchItem(filename=image.filename, error=_problem(request, outcome))
            for image, outcome in zip(images, outcomes, strict=True)
        ]
        answered = [outcome for outcome in outcomes if isinstance(outcome, Answered)]
        return _json(BatchAnswer(results=items, model=version, timing=_timing(answered, start)))

    @app.get("/model", response_model=ModelAnswer, responses=POSSIBLE_ERRORS)
    async def about_model() -> Response:
        """Say which model this is, how good it is, where it came from, and what may be sent."""
        return _json(model)

    @app.get("/samples/{number}", response_class=Response, responses=POSSIBLE_ERRORS)
    async def sample(number: int) -> FileResponse:
        """Return an image to try: `number` counts the samples of /model from 0."""
        if not 0 <= number < len(manifest.samples):
            raise RequestError(Code.NOT_FOUND, SAID[Code.NOT_FOUND])
        return FileResponse(engine.predictor.folder / manifest.samples[number].file)

    @app.get("/metrics", response_class=Response, responses=POSSIBLE_ERRORS)
    async def metrics() -> Response:
        """Return the metrics of all workers for Prometheus."""
        return Response(await asyncio.to_thread(telemetry.scrape), media_type=telemetry.CONTENT_TYPE)

    # Not a mounted folder: that would also answer for every address of another route with a wrong method.
    for path, file in PAGE.items():
        app.router.routes.append(Route(path, partial(_page, file), methods=["GET"]))
    # BentoML answers GET here itself, and hands on what it does not know.
    for path in HEALTH:
        app.router.routes.append(Route(path, Response, methods=["GET"]))
    return app


async def _page(file: Path, request: Request) -> FileResponse:
    return FileResponse(file)


async def _outcome(engine: Engine, image: UploadFile, top_k: int) -> Answered | RequestError:
    try:
        return await engine.predict(await image.read(), top_k)
    except RequestError as failure:
        telemetry.REJECTED.labels(failure.code).inc()
        return failure


def _timing(answered: list[Answered], start: float) -> Timing:
    """Return the longest of each stage: images of one request go through them side by side."""
    stages = [(each.decoded, each.queued, each.computed) for each in answered] or [(0.0, 0.0, 0.0)]
    decoded, queued, computed = (round(1e3 * max(seconds), 3) for seconds in zip(*stages, strict=True))
    total = round(1e3 * (time.perf_counter() - start), 3)
    return Timing(decode_ms=decoded, queue_ms=queued, model_ms=computed, total_ms=total)


def _json(answer: PredictAnswer | BatchAnswer | ModelAnswer) -> Response:
    return Response(answer.model_dump_json(), media_type="application/json")


async def _refuse_unheard(request: Request, *, once: tuple[str, ...], often: tuple[str, ...] = ()) -> None:
    """See that nothing is said that would not be heard: in the address, or in the form for want of a place."""
    for name in request.query_params:
        raise _invalid(f"Send {name[:40]!r} as a field of the form: the address takes no parameters.")
    fields = (await request.form()).multi_items()
    sent = Counter(name for name, _ in fields)
    for name, value in fields:
        if name not in (*once, *often):
            raise _invalid(f"There is no field {name[:40]!r}: there are {' and '.join((*often, *once))}.")
        if name in once and sent[name] > 1:
            raise _invalid(f"Send {name} once.")
        if value == "":
            raise _invalid(f"{name} is empty.")


def _invalid(message: str) -> RequestError:
    return RequestError(Code.INVALID_PARAMETER, message)


def _problem(request: Request, failure: RequestError) -> Problem:
    return Problem(code=failure.code, message=failure.message, request_id=request.state.request_id)


def _answer_failure(request: Request, failure: RequestError) -> Response:
    request.scope["state"]["reason"] = failure.code
    return error_response(failure, request.state.request_id)


def _answer_invalid(request: Request, error: RequestValidationError) -> Response:
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"][1:])
    # A value error is about the types of FastAPI's own: a text came where a file should.
    said = "Input should be a file" if first["type"] == "value_error" else first["msg"]
    message = f"{place}: {said}." if place else f"{said}."
    return _answer_failure(request, _invalid(message[:200]))


def _answer_http(request: Request, error: HTTPException) -> Response:
    code = CODES.get(error.status_code, Code.BAD_REQUEST)
    said = "The form cannot be read: send multipart/form-data with a boundary."
    response = _answer_failure(request, RequestError(code, SAID.get(code, said)))
    with contextlib.suppress(KeyError, TypeError):
        response.headers["Allow"] = (error.headers or {})["Allow"]
    return response
