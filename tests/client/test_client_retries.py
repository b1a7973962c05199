"""Retries and errors of the client, with scripted responses of a service, a proxy or a broken connection."""

from __future__ import annotations

import io
import itertools
import json
import os
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import httpx
import pytest

from mlops_img import client as client_module
from mlops_img.client import Client, ServiceError, UnreachableError
from mlops_img.serving.errors import Code

PREDICTED = json.dumps(
    {
        "label": "cat", "index": 0, "probability": 0.9, "top_k": [],
        "model": {"name": "n", "version": "1"},
        "timing": {"decode_ms": 1, "queue_ms": 1, "model_ms": 1, "total_ms": 3},
        "of a later version": "ignored",
    }
)  # fmt: skip
OVERLOADED = json.dumps({"error": {"code": "overloaded", "message": "Retry later.", "request_id": "abc"}})


class Script:
    """Returns scripted responses in order, the last one repeatedly, and records the requests and waits."""

    def __init__(self, *answers: httpx.Response | Exception) -> None:
        self.answers = itertools.chain(answers[:-1], itertools.repeat(answers[-1]))
        self.requests: list[httpx.Request] = []
        self.waits: list[float] = []

    def client(self, **options: object) -> Client:
        transport = httpx.MockTransport(self._answer)
        return Client("http://service/", transport=transport, sleep=self.waits.append, **options)  # type: ignore[arg-type]

    def _answer(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        answer = next(self.answers)
        if isinstance(answer, Exception):
            raise answer
        return httpx.Response(answer.status_code, headers=answer.headers, content=answer.content)


@pytest.fixture
def longest_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every random wait as long as possible."""
    monkeypatch.setattr(client_module.random, "uniform", lambda low, high: high)


@pytest.mark.parametrize("status", [429, 502, 503, 504])
@pytest.mark.usefixtures("longest_waits")
def test_temporary_error_is_retried_with_the_whole_image(status: int) -> None:
    script = Script(
        httpx.Response(status, text=OVERLOADED), httpx.Response(status), httpx.Response(200, text=PREDICTED)
    )
    assert script.client().predict(io.BytesIO(b"the image")).label == "cat"
    assert script.waits == [0.25, 0.5]
    assert all(b"the image" in request.content for request in script.requests)
    assert [request.url.path for request in script.requests] == ["/predict"] * 3


@pytest.mark.parametrize(
    "error",
    [
        httpx.ConnectError("refused"),
        httpx.ConnectTimeout("slow"),
        httpx.ReadTimeout("slow"),
        httpx.ReadError("reset"),
        httpx.RemoteProtocolError("gone without an answer"),
    ],
)
def test_broken_connection_is_retried(error: Exception) -> None:
    script = Script(error, error, httpx.Response(200, text=PREDICTED))
    assert script.client().predict(b"x").label == "cat"
    assert len(script.waits) == 2


@pytest.mark.parametrize("status", [400, 401, 404, 405, 413, 415, 422, 500])
def test_other_errors_are_not_retried(status: int) -> None:
    script = Script(httpx.Response(status, text=OVERLOADED))
    with pytest.raises(ServiceError):
        script.client().predict(b"x")
    assert len(script.requests) == 1
    assert script.waits == []


@pytest.mark.parametrize("retries", [0, 1, 4])
def test_last_error_is_raised_after_all_retries(retries: int) -> None:
    script = Script(httpx.Response(429, text=OVERLOADED))
    with pytest.raises(ServiceError) as raised:
        script.client(retries=retries).predict(b"x")
    assert len(script.requests) == 1 + retries
    assert len(script.waits) == retries
    error = raised.value
    assert (error.status, error.code, error.message, error.request_id) == (429, Code.OVERLOADED, "Retry later.", "abc")
    assert str(error) == "Retry later. (HTTP 429, overloaded, request abc)"


@pytest.mark.usefixtures("longest_waits")
def test_waits_double_up_to_a_limit() -> None:
    script = Script(httpx.Response(503))
    with pytest.raises(ServiceError):
        script.client(retries=8).model()
    assert script.waits == [0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 8.0, 8.0]


def test_waits_are_drawn_from_zero_to_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[float, float]] = []

    def uniform(low: float, high: float) -> float:
        drawn.append((low, high))
        return 0.125

    monkeypatch.setattr(client_module.random, "uniform", uniform)
    script = Script(httpx.Response(503))
    with pytest.raises(ServiceError):
        script.client(retries=2).model()
    assert drawn == [(0, 0.25), (0, 0.5)]
    assert script.waits == [0.125, 0.125]


@pytest.mark.usefixtures("longest_waits")
def test_client_waits_at_least_retry_after() -> None:
    script = Script(httpx.Response(429, headers={"Retry-After": "3"}), httpx.Response(200, text=PREDICTED))
    script.client().predict(b"x")
    assert script.waits == [3.25], "plus a random time, so that clients do not return at once"


@pytest.mark.parametrize(("seconds", "low", "high"), [(30, 28, 30.5), (-30, 0, 0.25)])
def test_retry_after_may_be_a_date(seconds: float, low: float, high: float) -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=seconds), usegmt=True)
    script = Script(httpx.Response(503, headers={"Retry-After": date}), httpx.Response(200, text=PREDICTED))
    script.client().predict(b"x")
    assert low <= script.waits[0] <= high


def test_invalid_retry_after_is_ignored() -> None:
    script = Script(httpx.Response(503, headers={"Retry-After": "soon"}), httpx.Response(200, text=PREDICTED))
    script.client().predict(b"x")
    assert script.waits[0] <= 0.25


def test_long_retry_after_raises_the_error_at_once() -> None:
    script = Script(httpx.Response(503, headers={"Retry-After": "3600"}))
    with pytest.raises(ServiceError) as raised:
        script.client().predict(b"x")
    assert raised.value.retry_after == 3600
    assert script.waits == []


@pytest.mark.parametrize(
    ("answer", "shown"),
    [
        (httpx.Response(502, text="<html>Bad Gateway</html>"), "'<html>Bad Gateway</html>'"),
        (httpx.Response(200, text="<html>Please log in</html>"), "log in"),
        (httpx.Response(200, json={"label": "cat"}), "cat"),
        (httpx.Response(413, json={"error": "too large"}), "too large"),
        (httpx.Response(500, content=b"\xff\x00"), "This response is not from the service"),
        (
            httpx.Response(301, headers={"Location": "https://service/predict"}),
            "it redirects to https://service/predict",
        ),
    ],
)
def test_foreign_response_is_an_error_that_shows_it(answer: httpx.Response, shown: str) -> None:
    answer.headers["X-Request-ID"] = "from-the-proxy"
    with pytest.raises(ServiceError) as raised:
        Script(answer).client(retries=1).predict(b"x")
    assert (raised.value.status, raised.value.code) == (answer.status_code, None)
    assert raised.value.request_id == "from-the-proxy"
    assert shown in str(raised.value)


def test_invalid_compression_is_an_unreachable_error() -> None:
    broken = httpx.DecodingError("not gzip")
    with pytest.raises(UnreachableError, match="not gzip"):
        Script(broken).client().predict(b"x")


def test_token_top_k_and_path_of_the_url_are_sent() -> None:
    script = Script(httpx.Response(200, text=PREDICTED))
    transport = httpx.MockTransport(script._answer)
    Client("https://host/classifier/", token="secret", transport=transport).predict(b"x", top_k=3)
    (request,) = script.requests
    assert str(request.url) == "https://host/classifier/predict"
    assert request.headers["Authorization"] == "Bearer secret"
    assert b'name="top_k"\r\n\r\n3\r\n' in request.content


@pytest.mark.parametrize("answer", [httpx.Response(503), httpx.ConnectError("refused")])
def test_ready_does_not_retry(answer: httpx.Response | Exception) -> None:
    script = Script(answer)
    assert not script.client().ready()
    assert (len(script.requests), script.waits) == (1, [])


# Errors of the caller


@pytest.mark.parametrize("url", ["localhost:3000", "", "ftp://service"])
def test_invalid_url_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="it must begin with http:// or https://"):
        Client(url)


@pytest.mark.parametrize("token", ["", "pässword", "two\nlines"])
def test_token_that_cannot_be_sent_is_refused_and_not_shown(token: str) -> None:
    with pytest.raises(ValueError, match="token: it must be printable ASCII") as raised:
        Client(token=token)
    assert not token or token not in str(raised.value)


def test_missing_file_text_file_and_empty_batch_are_errors(tmp_path: Path) -> None:
    client = Script(httpx.Response(200, text=PREDICTED)).client()
    with pytest.raises(FileNotFoundError):
        client.predict(tmp_path / "missing.jpg")
    with pytest.raises(TypeError, match="opened in binary mode"):
        client.predict(io.StringIO("text"))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="the list is empty"):
        client.predict_batch([])


def test_file_name_that_is_not_utf_8_is_sent_with_a_question_mark(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9.jpg")
    path.write_bytes(b"x")
    script = Script(httpx.Response(200, text=PREDICTED))
    script.client().predict(path)
    assert b'filename="caf?.jpg"' in script.requests[0].content
