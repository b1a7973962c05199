"""Labels, methods, admission and content types follow from the routes that the application declares."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import pytest
from fastapi import FastAPI, File, Form, UploadFile
from pydantic import BaseModel
from starlette.testclient import TestClient

from mlops_img.bundle.predictor import Predictor
from mlops_img.registry.load import load
from mlops_img.serving import routes, telemetry
from mlops_img.serving.admission import Admission
from mlops_img.serving.app import RequestReservation, build_app
from mlops_img.serving.engine import Engine
from mlops_img.serving.middleware import with_middleware
from mlops_img.serving.routes import OTHER, PAGE, extension, match_route
from mlops_img.serving.settings import Settings
from mlops_img.serving.worker import Worker
from tests.helpers.raw_http import FORM, form, part


class Body(BaseModel):
    name: str


def add_routes(app: FastAPI, engine: Engine) -> None:
    """Add routes as a plugin does."""

    @app.get("/items/{number}")
    async def item(number: int) -> int:
        return number

    @app.post("/added/{name}")
    async def added(name: str, file: Annotated[UploadFile, File()], verbose: bool = False) -> int:
        return len(await file.read())

    @app.post("/several")
    async def several(
        reservation: RequestReservation, files: list[UploadFile], tag: Annotated[str, Form()] = ""
    ) -> int:
        reservation.resize(len(files))
        return engine.admission.admitted

    @app.put("/feedback")
    async def feedback(body: Body) -> str:
        return body.name


@pytest.fixture(scope="module")
def predictor(trained: Path) -> Predictor:
    return load(trained / "bundles" / "test_resnet-1")


def engine_of(predictor: Predictor, queue: int = 8) -> Any:
    return SimpleNamespace(predictor=predictor, settings=Settings(), admission=Admission(queue, 10.0))


@pytest.fixture
def app(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> FastAPI:
    """The application of the service, with routes of a plugin."""
    monkeypatch.setattr(routes, "_extensions", [])
    extension(add_routes)
    return build_app(engine_of(predictor))


@contextmanager
def serving(app: FastAPI, engine: Any) -> Iterator[TestClient]:
    worker = Worker(Settings(max_bytes=10_000), engine=engine, app=app)
    with TestClient(with_middleware(app, worker), raise_server_exceptions=False) as client:
        yield client


def label(app: Any, path: str) -> str:
    return match_route(app, "GET", path).label


def test_label_is_the_path_as_declared(app: FastAPI) -> None:
    assert label(app, "/items/7") == "/items/{number}"
    assert label(app, "/added/a") == "/added/{name}"
    assert label(app, "/livez") == "/livez"
    assert label(app, "/items") == label(app, "/items/7/8") == label(None, "/items/7") == OTHER


def test_every_route_of_the_service_has_a_label(app: FastAPI) -> None:
    known = {label(app, getattr(route, "path", "")) for route in app.routes}
    assert {"/predict", "/predict_batch", "/model", "/metrics", "/docs.json", "/samples/{number}", *PAGE} < known
    assert OTHER not in known


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "PROPFIND"])
def test_without_an_application_only_reading_needs_no_admission(method: str) -> None:
    assert match_route(None, method, "/anything").needs_admission
    assert not match_route(None, "GET", "/anything").needs_admission


def test_only_reading_needs_no_admission(app: FastAPI) -> None:
    assert match_route(app, "POST", "/added/a").needs_admission
    for method in ("GET", "HEAD", "OPTIONS"):
        for path in ("/added/a", "/items/7", "/nothing"):
            assert not match_route(app, method, path).needs_admission


def test_routes_without_a_token_are_the_page_and_health(app: FastAPI) -> None:
    public = {path for route in app.routes if match_route(app, "GET", path := getattr(route, "path", "")).is_public}
    assert public == {*PAGE, *routes.HEALTH}


def test_added_route_is_refused_and_counted_until_the_model_is_loaded(app: FastAPI) -> None:
    def count() -> float:
        return telemetry.REQUESTS.labels("/added/{name}", "503")._value.get()

    before = count()
    with serving(app, None) as client:
        answer = client.post("/added/a", content=form(part(b"12345", b"file")), headers={"Content-Type": FORM})
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "not_ready")
    assert answer.headers["retry-after"] == "1"
    assert count() == before + 1


def test_added_form_route_is_checked_like_the_others(app: FastAPI, predictor: Predictor) -> None:
    body, headers = form(part(b"12345", b"file")), {"Content-Type": FORM}
    with serving(app, engine_of(predictor)) as client:
        answer = client.post("/added/a", content=body, headers=headers)
        assert (answer.status_code, answer.json()) == (200, 5)
        assert client.post("/added/a?verbose=true", content=body, headers=headers).status_code == 200
        assert client.post("/added/a?loud=true", content=body, headers=headers).status_code == 422
        assert client.post("/added/a", json={}).status_code == 415
        assert client.post("/added/a", content=bytes(20_000), headers=headers).status_code == 413
        two = form(part(b"1", b"file"), part(b"2", b"file"))
        assert client.post("/added/a", content=two, headers=headers).status_code == 422
        unknown = form(part(b"1", b"file"), part(b"2", b"other"))
        refused = client.post("/added/a", content=unknown, headers=headers)
        assert refused.json()["error"]["message"] == "Unknown form field 'other': the fields are file."


def test_added_route_without_a_form_takes_other_content(app: FastAPI, predictor: Predictor) -> None:
    with serving(app, engine_of(predictor)) as client:
        answer = client.put("/feedback", json={"name": "good"})
        assert (answer.status_code, answer.json()) == (200, "good")
        assert client.put("/feedback", json={}).json()["error"]["code"] == "invalid_parameter"
        assert client.put("/feedback", content=b"{").status_code == 422


def test_unknown_path_and_method_are_refused_before_admission(app: FastAPI, predictor: Predictor) -> None:
    full = engine_of(predictor, queue=1)
    with serving(app, full) as client, full.admission.reserve():
        assert client.post("/nothing", json={}).status_code == 404
        refused = client.put("/items/7", json={})
        assert (refused.status_code, refused.headers["allow"]) == (405, "GET")
        assert refused.json()["error"]["code"] == "method_not_allowed"


def test_added_routes_are_refused_under_load_like_the_others(app: FastAPI, predictor: Predictor) -> None:
    full = engine_of(predictor, queue=1)
    with serving(app, full) as client, full.admission.reserve():
        statuses = {
            path: client.post(path, content=form(part(b"1", field)), headers={"Content-Type": FORM}).status_code
            for path, field in (("/added/a", b"file"), ("/several", b"files"), ("/predict", b"image"))
        }
        assert statuses == dict.fromkeys(statuses, 429)
        assert client.put("/feedback", json={"name": "x"}).status_code == 429
        assert client.get("/items/7").status_code == 200
    assert full.admission.admitted == 0


def test_added_route_reserves_all_its_images(app: FastAPI, predictor: Predictor) -> None:
    monitored = engine_of(predictor, queue=4)
    app = build_app(monitored)
    with serving(app, monitored) as client:
        for images, status in ((3, 200), (4, 200)):
            body = form(*[part(b"1", b"files")] * images)
            answer = client.post("/several", content=body, headers={"Content-Type": FORM})
            assert (answer.status_code, answer.json()) == (status, images)
        with monitored.admission.reserve():
            answer = client.post("/several", content=form(*[part(b"1", b"files")] * 4), headers={"Content-Type": FORM})
            assert answer.status_code == 429
    assert monitored.admission.admitted == 0


def test_added_routes_are_described(app: FastAPI) -> None:
    described = app.openapi()["paths"]
    assert {"/items/{number}", "/added/{name}", "/several", "/feedback", "/predict"} <= described.keys()
    assert "429" in described["/added/{name}"]["post"]["responses"]


@pytest.mark.parametrize("encoding", ["gzip", "br", "deflate", "x, y", "gzip, identity", "\xe9"])
def test_compressed_upload_is_refused_by_the_name_of_its_encoding(
    app: FastAPI, predictor: Predictor, encoding: str
) -> None:
    with serving(app, engine_of(predictor)) as client:
        headers = {"Content-Type": FORM, "Content-Encoding": encoding.encode("latin-1")}
        answer = client.post("/added/a", content=form(part(b"1", b"file")), headers=headers)  # type: ignore[arg-type]
        assert (answer.status_code, answer.json()["error"]["code"]) == (415, "unsupported")
        if encoding.isascii():
            assert encoding in answer.json()["error"]["message"]
        headers["Content-Encoding"] = b"identity"
        answer = client.post("/added/a", content=form(part(b"1", b"file")), headers=headers)  # type: ignore[arg-type]
        assert answer.status_code == 200
