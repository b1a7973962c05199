"""The service's client; it needs httpx and pydantic, and neither PyTorch nor BentoML.

    with Client("http://localhost:3000", token="...") as client:
        answer = client.predict("photo.jpg", top_k=3)
    print(answer.label, answer.probability)

Threads may share one client. In an asyncio program, `await asyncio.to_thread(client.predict, "photo.jpg")`.
"""

from __future__ import annotations

import itertools
import os
import random
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self, TypeVar

import httpx
from pydantic import BaseModel, ValidationError

from mlops_img import __version__
from mlops_img.serving.errors import Code
from mlops_img.serving.schemas import BatchAnswer, ErrorAnswer, ModelAnswer, PredictAnswer

Image = str | os.PathLike[str] | bytes | BinaryIO
A = TypeVar("A", bound=BaseModel)

# What may have gone by a moment later; every other answer stays the same however often one asks.
RETRIED_STATUSES = (429, 502, 503, 504)
RETRIED_ERRORS = (httpx.TimeoutException, httpx.NetworkError, httpx.RemoteProtocolError, httpx.ProxyError)
# Seconds: the wait before the n-th retry is drawn from 0 to FIRST_BACKOFF * 2^(n - 1), at most LONGEST_BACKOFF.
FIRST_BACKOFF = 0.25
LONGEST_BACKOFF = 8.0
# Who is told to come again later than that gets the error at once instead.
LONGEST_RETRY_AFTER = 60.0


class ServiceError(Exception):
    """An answer that is an error, or that is none of the service's, as when a proxy in between speaks up.

    Attributes:
        status: of HTTP.
        code: what went wrong; None if the answer is none of the service's.
        message: a sentence for people.
        request_id: under which it is found in the service's log; None if the answer names none.
        retry_after: seconds after which the service said to come again, if it did.
    """

    def __init__(
        self, status: int, code: Code | None, message: str, request_id: str | None, retry_after: float | None
    ) -> None:
        named = f", request {request_id}" if request_id else ""
        super().__init__(f"{message} (HTTP {status}{f', {code}' if code else ''}{named})")
        self.status = status
        self.code = code
        self.message = message
        self.request_id = request_id
        self.retry_after = retry_after


class UnreachableError(ConnectionError):
    """No answer came: the service is not there, or too slow, or the connection broke."""


class Client:
    """Asks a running service; closed by `close()` or the end of its `with` block.

    Args:
        url: of the service; a proxy's path may follow.
        token: one of MLOPS_IMG_TOKENS, where the service asks for one.
        timeout: seconds that each try may take.
        retries: further tries where the service has too much to do (429), is not ready or not there (502, 503), is
            too slow (504), or cannot be reached. They wait longer each time, at random, so that many clients do not
            come back at once, and at least as long as the service says in Retry-After.
        transport: what carries the requests, instead of the network.
        sleep: waits so many seconds.

    Raises:
        ValueError: no URL, or a token that cannot be one.
    """

    def __init__(
        self,
        url: str = "http://localhost:3000",
        token: str | None = None,
        timeout: float = 30.0,
        retries: int = 4,
        *,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"url={url!r}: it must begin with http:// or https://")
        headers = {"User-Agent": f"mlops_img/{__version__}"}
        if token is not None:
            token = token.strip()
            if not (token and token.isascii() and token.isprintable()):
                raise ValueError("token: it must be printable ASCII")  # and is told to nobody
            headers["Authorization"] = f"Bearer {token}"
        self.url = url.rstrip("/")
        self.timeout = timeout
        self.retries = retries
        self._sleep = sleep
        self._http = httpx.Client(headers=headers, timeout=timeout, transport=transport)

    def predict(self, image: Image, top_k: int = 5) -> PredictAnswer:
        """Ask what is on an image.

        Args:
            image: a path, the bytes of a file, or a file that was opened in binary mode.
            top_k: how many of the most probable classes are listed.

        Raises:
            ServiceError: the answer is an error.
            UnreachableError: no answer came.
            OSError: the file cannot be read.
        """
        return self._ask(PredictAnswer, "POST", "/predict", files={"image": _read(image)}, data={"top_k": str(top_k)})

    def predict_batch(self, images: Iterable[Image], top_k: int = 5) -> BatchAnswer:
        """Ask what is on each of several images, with one request; see `predict`.

        A bad image spoils only its own result, whose `error` then says why.

        Raises:
            ValueError: there are no images.
        """
        files = [("images", _read(image)) for image in images]
        if not files:
            raise ValueError("images: there are none")
        return self._ask(BatchAnswer, "POST", "/predict_batch", files=files, data={"top_k": str(top_k)})

    def model(self) -> ModelAnswer:
        """Ask which model it is, how good it is, and what may be sent; raises as `predict` does."""
        return self._ask(ModelAnswer, "GET", "/model")

    def ready(self) -> bool:
        """Return whether the service is there and its model loaded; asks once."""
        try:
            return self._try("GET", "/readyz")[0].status_code == httpx.codes.OK
        except httpx.RequestError:
            return False

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _ask(self, kind: type[A], method: str, path: str, **content: Any) -> A:
        for attempt in itertools.count():
            failure: ServiceError | UnreachableError
            try:
                response, body = self._try(method, path, **content)
            except httpx.RequestError as error:
                reason = str(error) or type(error).__name__
                failure = UnreachableError(f"no answer from {self.url}: {reason}. Is the service running there?")
                failure.__cause__ = error
                wait, hopeless = 0.0, not isinstance(error, RETRIED_ERRORS)
            else:
                if response.is_success:
                    try:
                        return kind.model_validate_json(body)
                    except ValidationError:
                        raise _strange(response, body) from None
                failure = _failure(response, body)
                wait = failure.retry_after or 0.0
                hopeless = response.status_code not in RETRIED_STATUSES or wait > LONGEST_RETRY_AFTER
            if hopeless or attempt >= self.retries:
                raise failure
            self._sleep(wait + random.uniform(0, min(LONGEST_BACKOFF, FIRST_BACKOFF * 2**attempt)))
        raise AssertionError  # the count has no end

    def _try(self, method: str, path: str, **content: Any) -> tuple[httpx.Response, bytes]:
        end = time.monotonic() + self.timeout
        body = bytearray()
        with self._http.stream(method, self.url + path, **content) as response:
            for part in response.iter_bytes():
                body += part
                # httpx' own timeout is for each part: an answer that trickles in would never end.
                if time.monotonic() > end:
                    raise httpx.ReadTimeout("the answer took too long")
        return response, bytes(body)


def _read(image: Image) -> tuple[str, bytes]:
    """Return a file name, which the answer to several images repeats, and the bytes: each try sends them anew."""
    if isinstance(image, str | os.PathLike):
        return _name_of(image), Path(image).read_bytes()
    if isinstance(image, bytes | bytearray | memoryview):
        return "image", bytes(image)
    data = image.read()
    if not isinstance(data, bytes):
        raise TypeError("an image must be a path, bytes, or a file that was opened in binary mode")
    name = getattr(image, "name", None)
    return _name_of(name) if isinstance(name, str) else "image", data


def _name_of(path: str | os.PathLike[str]) -> str:
    # A file name that is no UTF-8 reaches us as lone surrogates, which cannot be sent.
    return Path(path).name.encode(errors="replace").decode()


def _failure(response: httpx.Response, body: bytes) -> ServiceError:
    try:
        problem = ErrorAnswer.model_validate_json(body).error
    except ValidationError:
        return _strange(response, body)
    return ServiceError(response.status_code, problem.code, problem.message, problem.request_id, _retry_after(response))


def _strange(response: httpx.Response, body: bytes) -> ServiceError:
    """Describe an answer that is none of the service's: a proxy's page, or another service's."""
    target = response.headers.get("location")
    said = f"It leads to {target}" if target else repr(body[:100].decode(errors="replace"))
    return ServiceError(
        response.status_code,
        None,
        f"This is no answer of the service: {said}.",
        response.headers.get("x-request-id"),
        _retry_after(response),
    )


def _retry_after(response: httpx.Response) -> float | None:
    """Return the seconds that Retry-After asks for, as a number or a date (RFC 9110)."""
    given = response.headers.get("retry-after", "")
    if given.isascii() and given.isdigit():
        return float(given)
    try:
        date = parsedate_to_datetime(given)
    except ValueError:
        return None
    return max(0.0, (date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
