"""The client: how it copes with answers that a service, a proxy or a broken line may give, written for the test."""

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
        "of a later version": "passed over",
    }
)  # fmt: skip
OVERLOADED = json.dumps({"error": {"code": "overloaded", "message": "Come again.", "request_id": "abc"}})


class Script:
    """Answers one request after the other as told, the last for ever, and notes the requests and the waits."""

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
def highest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chance waits as long as it may."""
    monkeypatch.setattr(client_module.random, "uniform", lambda low, high: high)


@pytest.mark.parametrize("status", [429, 502, 503, 504])
@pytest.mark.usefixtures("highest")
def test_passing_trouble_is_tried_again_with_the_whole_image(status: int) -> None:
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
def test_a_broken_connection_is_tried_again(error: Exception) -> None:
    script = Script(error, error, httpx.Response(200, text=PREDICTED))
    assert script.client().predict(b"x").label == "cat"
    assert len(script.waits) == 2


@pytest.mark.parametrize("status", [400, 401, 404, 405, 413, 415, 422, 500])
def test_other_errors_are_not_tried_again(status: int) -> None:
    script = Script(httpx.Response(status, text=OVERLOADED))
    with pytest.raises(ServiceError):
        script.client().predict(b"x")
    assert len(script.requests) == 1
    assert script.waits == []


@pytest.mark.parametrize("retries", [0, 1, 4])
def test_it_gives_up_after_so_many_retries_with_the_last_error(retries: int) -> None:
    script = Script(httpx.Response(429, text=OVERLOADED))
    with pytest.raises(ServiceError) as raised:
        script.client(retries=retries).predict(b"x")
    assert len(script.requests) == 1 + retries
    assert len(script.waits) == retries
    error = raised.value
    assert (error.status, error.code, error.message, error.request_id) == (429, Code.OVERLOADED, "Come again.", "abc")
    assert str(error) == "Come again. (HTTP 429, overloaded, request abc)"


@pytest.mark.usefixtures("highest")
def test_waits_double_up_to_a_limit() -> None:
    script = Script(httpx.Response(503))
    with pytest.raises(ServiceError):
        script.client(retries=8).model()
    assert script.waits == [0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 8.0, 8.0]


def test_waits_are_drawn_from_nothing_to_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
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


@pytest.mark.usefixtures("highest")
def test_it_waits_at_least_as_long_as_the_service_says() -> None:
    script = Script(httpx.Response(429, headers={"Retry-After": "3"}), httpx.Response(200, text=PREDICTED))
    script.client().predict(b"x")
    assert script.waits == [3.25], "and a random time on top, so that not all come at once"


@pytest.mark.parametrize(("seconds", "low", "high"), [(30, 28, 30.5), (-30, 0, 0.25)])
def test_retry_after_may_be_a_date(seconds: float, low: float, high: float) -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=seconds), usegmt=True)
    script = Script(httpx.Response(503, headers={"Retry-After": date}), httpx.Response(200, text=PREDICTED))
    script.client().predict(b"x")
    assert low <= script.waits[0] <= high


def test_retry_after_that_says_nothing_is_passed_over() -> None:
    script = Script(httpx.Response(503, headers={"Retry-After": "soon"}), httpx.Response(200, text=PREDICTED))
    script.client().predict(b"x")
    assert script.waits[0] <= 0.25


def test_who_is_told_to_come_again_in_an_hour_gets_the_error_at_once() -> None:
    script = Script(httpx.Response(503, headers={"Retry-After": "3600"}))
    with pytest.raises(ServiceError) as raised:
        script.client().predict(b"x")
    assert raised.value.retry_after == 3600
    assert script.waits == []


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (httpx.Response(502, text="<html>Bad Gateway</html>"), "'<html>Bad Gateway</html>'"),
        (httpx.Response(200, text="<html>Please log in</html>"), "log in"),
        (httpx.Response(200, json={"label": "cat"}), "cat"),
        (httpx.Response(413, json={"error": "too large"}), "too large"),
        (httpx.Response(500, content=b"\xff\x00"), "This is no answer of the service"),
        (httpx.Response(301, headers={"Location": "https://service/predict"}), "It leads to https://service/predict"),
    ],
)
def test_an_answer_that_is_none_of_the_service_s_is_an_error_that_shows_it(answer: httpx.Response, said: str) -> None:
    answer.headers["X-Request-ID"] = "of the proxy"
    with pytest.raises(ServiceError) as raised:
        Script(answer).client(retries=1).predict(b"x")
    assert (raised.value.status, raised.value.code) == (answer.status_code, None)
    assert raised.value.request_id == "of the proxy"
    assert said in str(raised.value)


def test_garbage_in_place_of_compressed_data_is_one_clear_error() -> None:
    broken = httpx.DecodingError("not gzip")
    with pytest.raises(UnreachableError, match="not gzip"):
        Script(broken).client().predict(b"x")


def test_token_and_top_k_are_sent_and_the_path_of_a_proxy_is_kept() -> None:
    script = Script(httpx.Response(200, text=PREDICTED))
    transport = httpx.MockTransport(script._answer)
    Client("https://host/classifier/", token="secret", transport=transport).predict(b"x", top_k=3)
    (request,) = script.requests
    assert str(request.url) == "https://host/classifier/predict"
    assert request.headers["Authorization"] == "Bearer secret"
    assert b'name="top_k"\r\n\r\n3\r\n' in request.content


@pytest.mark.parametrize("answer", [httpx.Response(503), httpx.ConnectError("refused")])
def test_not_ready_is_told_without_waiting(answer: httpx.Response | Exception) -> None:
    script = Script(answer)
    assert not script.client().ready()
    assert (len(script.requests), script.waits) == (1, [])


# What the caller gets wrong


@pytest.mark.parametrize("url", ["localhost:3000", "", "ftp://service"])
def test_an_address_that_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="it must begin with http:// or https://"):
        Client(url)


@pytest.mark.parametrize("token", ["", "pässword", "two\nlines"])
def test_a_token_that_cannot_be_sent_is_refused_and_not_shown(token: str) -> None:
    with pytest.raises(ValueError, match="token: it must be printable ASCII") as raised:
        Client(token=token)
    assert not token or token not in str(raised.value)


def test_a_missing_file_and_a_text_file_are_the_caller_s_own_errors(tmp_path: Path) -> None:
    client = Script(httpx.Response(200, text=PREDICTED)).client()
    with pytest.raises(FileNotFoundError):
        client.predict(tmp_path / "missing.jpg")
    with pytest.raises(TypeError, match="opened in binary mode"):
        client.predict(io.StringIO("text"))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="there are none"):
        client.predict_batch([])


def test_a_file_name_that_is_no_utf_8_is_sent_with_a_question_mark(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9.jpg")
    path.write_bytes(b"x")
    script = Script(httpx.Response(200, text=PREDICTED))
    script.client().predict(path)
    assert b'filename="caf?.jpg"' in script.requests[0].content
