"""The guard learns the routes from the application: none that does more than read can be forgotten."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import FastAPI, UploadFile
from starlette.testclient import TestClient

from mlops_img.serving import telemetry
from mlops_img.serving.admission import Admission
from mlops_img.serving.app import build_app
from mlops_img.serving.errors import Code, RequestError
from mlops_img.serving.middleware import Guard
from mlops_img.serving.routes import OTHER, PAGE, label, needs_admission
from mlops_img.serving.settings import Settings
from mlops_img.serving.state import State
from tests.helpers.raw_http import FORM, form, part


def scope(method: str, path: str) -> dict[str, Any]:
    return {"type": "http", "method": method, "path": path}


@pytest.fixture
def app() -> FastAPI:
    """An application, to which a route was added from outside."""
    made = FastAPI(openapi_url=None)

    @made.get("/items/{number}")
    async def item(number: int) -> int:
        return number

    @made.post("/added/{name}")
    async def added(name: str, file: UploadFile) -> int:
        return len(await file.read())

    return made


def test_label_is_the_route_as_it_was_declared(app: FastAPI) -> None:
    assert label(app, "/items/7") == "/items/{number}"
    assert label(app, "/added/a") == "/added/{name}"
    assert label(app, "/livez") == "/livez"
    assert label(app, "/items") == label(app, "/items/7/8") == label(None, "/items/7") == OTHER


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "PROPFIND"])
def test_before_there_is_an_application_everything_but_reading_needs_admission(method: str) -> None:
    assert needs_admission(None, scope(method, "/anything"))


def test_only_what_reads_needs_no_admission(app: FastAPI) -> None:
    assert needs_admission(app, scope("POST", "/added/a"))
    for method in ("GET", "HEAD", "OPTIONS"):
        for path in ("/added/a", "/items/7", "/nothing"):
            assert not needs_admission(app, scope(method, path))
    for method, path, code in (
        ("POST", "/nothing", Code.NOT_FOUND),
        ("POST", "/items/7", Code.METHOD_NOT_ALLOWED),
        ("PUT", "/added/a", Code.METHOD_NOT_ALLOWED),
    ):
        with pytest.raises(RequestError) as raised:
            needs_admission(app, scope(method, path))
        assert raised.value.code is code


@contextmanager
def guarded(app: Any, engine: Any) -> Iterator[TestClient]:
    state = State(Settings(max_bytes=10_000), engine=engine, app=app)
    with TestClient(Guard(app, state), raise_server_exceptions=False) as client:
        yield client


def engine(queue: int = 8) -> Any:
    return SimpleNamespace(admission=Admission(queue, 10.0))


def test_added_route_is_guarded_and_labelled(app: FastAPI) -> None:
    body, headers = form(part(b"12345", b"file")), {"Content-Type": FORM}

    def count(status: int) -> float:
        return telemetry.REQUESTS.labels("/added/{name}", str(status))._value.get()

    with guarded(app, None) as client:
        before = count(503)
        answer = client.post("/added/a", content=body, headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "not_ready")
        assert count(503) == before + 1
    with guarded(app, engine()) as client:
        answer = client.post("/added/a", content=body, headers=headers)
        assert (answer.status_code, answer.json()) == (200, 5)
        assert client.post("/added/a", json={}).status_code == 415
        assert client.post("/nothing", json={}).status_code == 404
        refused = client.put("/items/7", content=body, headers=headers)
        assert (refused.status_code, refused.headers["allow"]) == (405, "GET")
    full = engine(queue=1)
    with guarded(app, full) as client, full.admission.enter():
        assert client.post("/added/a", content=body, headers=headers).status_code == 429
        assert client.get("/items/7").status_code == 200


@pytest.mark.parametrize("encoding", ["gzip", "br", "deflate", "x, y", "gzip, identity", "\xe9"])
def test_compressed_upload_is_refused_by_the_name_of_its_encoding(app: FastAPI, encoding: str) -> None:
    with guarded(app, engine()) as client:
        headers = {"Content-Type": FORM, "Content-Encoding": encoding.encode("latin-1")}
        answer = client.post("/added/a", content=form(part(b"1", b"file")), headers=headers)  # type: ignore[arg-type]
        assert (answer.status_code, answer.json()["error"]["code"]) == (415, "unsupported")
        if encoding.isascii():
            assert encoding in answer.json()["error"]["message"]
        headers["Content-Encoding"] = b"identity"
        answer = client.post("/added/a", content=form(part(b"1", b"file")), headers=headers)  # type: ignore[arg-type]
        assert answer.status_code == 200


def test_every_route_of_the_service_is_known(portable: Path) -> None:
    from mlops_img.bundle.predictor import load

    stand_in: Any = SimpleNamespace(predictor=load(portable), settings=Settings(), admission=Admission(8, 10.0))
    app = build_app(stand_in)
    known = {label(app, getattr(route, "path", "")) for route in app.routes}
    assert {"/predict", "/predict_batch", "/model", "/metrics", "/docs.json", "/samples/{number}", *PAGE} < known
    assert OTHER not in known
