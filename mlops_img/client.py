"""Client of the service. It needs httpx and pydantic, but neither PyTorch nor BentoML.

    with Client("http://localhost:3000", token="...") as client:
        answer = client.predict("photo.jpg", top_k=3)
    print(answer.label, answer.probability)

Threads may share one client. In an asyncio program: `await asyncio.to_thread(client.predict, "photo.jpg")`.
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
Answer = TypeVar("Answer", bound=BaseModel)

# Errors that may be temporary. Any other response would be the same again.
RETRIED_STATUSES = (429, 502, 503, 504)
RETRIED_ERRORS = (httpx.TimeoutException, httpx.NetworkError, httpx.RemoteProtocolError, httpx.ProxyError)
# Seconds. The wait before the n-th retry is drawn from 0 to FIRST_BACKOFF * 2^(n - 1), at most MAX_BACKOFF.
FIRST_BACKOFF = 0.25
MAX_BACKOFF = 8.0
# Seconds. A longer Retry-After raises the error at once.
MAX_RETRY_AFTER = 60.0


class ServiceError(Exception):
    """An error response, or a response that is not from the service but, for example, from a proxy.

    Attributes:
        status: HTTP status.
        code: error code; None if the response is not from the service.
        message: a sentence for people.
        request_id: id of the request in the service's log; None if the response has none.
        retry_after: seconds after which to retry, if the response says so.
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
    """There was no response: the service cannot be reached, is too slow, or the connection broke."""


class Client:
    """Sends requests to a running service; closed by `close()` or at the end of its `with` block.

    Args:
        url: URL of the service; it may include the path of a proxy.
        token: one of MLOPS_IMG_TOKENS, if the service requires one.
        timeout: seconds that each attempt may take.
        retries: further attempts if the service is overloaded (429), not ready or not running (502, 503), too slow
            (504), or cannot be reached. The waits between them grow and are random, so that many clients do not
            return at the same time, and are at least as long as Retry-After says.
        transport: carries the requests instead of the network.
        sleep: waits for a number of seconds.

    Raises:
        ValueError: the URL or the token is invalid.
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
                raise ValueError("token: it must be printable ASCII")  # the message must not show it
            headers["Authorization"] = f"Bearer {token}"
        self.url = url.rstrip("/")
        self.timeout = timeout
        self.retries = retries
        self._sleep = sleep
        self._http = httpx.Client(headers=headers, timeout=timeout, transport=transport)

    def predict(self, image: Image, top_k: int = 5) -> PredictAnswer:
        """Classify an image.

        Args:
            image: a path, the bytes of a file, or a file opened in binary mode.
            top_k: number of classes to list, most probable first.

        Raises:
            ServiceError: the response is an error.
            UnreachableError: there was no response.
            OSError: the file cannot be read.
        """
        return self._request(
            PredictAnswer, "POST", "/predict", files={"image": _read(image)}, data={"top_k": str(top_k)}
        )

    def predict_batch(self, images: Iterable[Image], top_k: int = 5) -> BatchAnswer:
        """Classify several images with one request; see `predict`.

        A bad image affects only its own result, whose `error` says why.

        Raises:
            ValueError: `images` is empty.
        """
        files = [("images", _read(image)) for image in images]
        if not files:
            raise ValueError("images: the list is empty")
        return self._request(BatchAnswer, "POST", "/predict_batch", files=files, data={"top_k": str(top_k)})

    def model(self) -> ModelAnswer:
        """Return the description of the model and the limits of requests; raises like `predict`."""
        return self._request(ModelAnswer, "GET", "/model")

    def ready(self) -> bool:
        """Return whether the service is running and its model is loaded; not retried."""
        try:
            return self._attempt("GET", "/readyz")[0].status_code == httpx.codes.OK
        except httpx.RequestError:
            return False

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _request(self, kind: type[Answer], method: str, path: str, **content: Any) -> Answer:
        for attempt in itertools.count():
            error: ServiceError | UnreachableError
            try:
                response, body = self._attempt(method, path, **content)
            except httpx.RequestError as cause:
                reason = str(cause) or type(cause).__name__
                error = UnreachableError(f"no response from {self.url}: {reason}. Is the service running there?")
                error.__cause__ = cause
                wait, final = 0.0, not isinstance(cause, RETRIED_ERRORS)
            else:
                if response.is_success:
                    try:
                        return kind.model_validate_json(body)
                    except ValidationError:
                        raise _foreign_response(response, body) from None
                error = _error_of(response, body)
                wait = error.retry_after or 0.0
                final = response.status_code not in RETRIED_STATUSES or wait > MAX_RETRY_AFTER
            if final or attempt >= self.retries:
                raise error
            self._sleep(wait + random.uniform(0, min(MAX_BACKOFF, FIRST_BACKOFF * 2**attempt)))
        raise AssertionError  # the loop is endless

    def _attempt(self, method: str, path: str, **content: Any) -> tuple[httpx.Response, bytes]:
        end = time.monotonic() + self.timeout
        body = bytearray()
        with self._http.stream(method, self.url + path, **content) as response:
            for part in response.iter_bytes():
                body += part
                # The timeout of httpx applies to each part: a slow response could take for ever.
                if time.monotonic() > end:
                    raise httpx.ReadTimeout("the response took too long")
        return response, bytes(body)


def _read(image: Image) -> tuple[str, bytes]:
    """Return a file name, which the response to several images repeats, and the bytes, which every attempt sends."""
    if isinstance(image, str | os.PathLike):
        return _name_of(image), Path(image).read_bytes()
    if isinstance(image, bytes | bytearray | memoryview):
        return "image", bytes(image)
    data = image.read()
    if not isinstance(data, bytes):
        raise TypeError("an image must be a path, bytes, or a file opened in binary mode")
    name = getattr(image, "name", None)
    return _name_of(name) if isinstance(name, str) else "image", data


def _name_of(path: str | os.PathLike[str]) -> str:
    # A file name that is not UTF-8 contains lone surrogates, which cannot be encoded.
    return Path(path).name.encode(errors="replace").decode()


def _error_of(response: httpx.Response, body: bytes) -> ServiceError:
    try:
        problem = ErrorAnswer.model_validate_json(body).error
    except ValidationError:
        return _foreign_response(response, body)
    return ServiceError(response.status_code, problem.code, problem.message, problem.request_id, _retry_after(response))


def _foreign_response(response: httpx.Response, body: bytes) -> ServiceError:
    """Describe a response that is not from the service: a page of a proxy, or another service."""
    target = response.headers.get("location")
    content = f"it redirects to {target}" if target else repr(body[:100].decode(errors="replace"))
    return ServiceError(
        response.status_code,
        None,
        f"This response is not from the service: {content}.",
        response.headers.get("x-request-id"),
        _retry_after(response),
    )


def _retry_after(response: httpx.Response) -> float | None:
    """Return the seconds of Retry-After, which is a number or a date (RFC 9110)."""
    given = response.headers.get("retry-after", "")
    if given.isascii() and given.isdigit():
        return float(given)
    try:
        date = parsedate_to_datetime(given)
    except ValueError:
        return None
    return max(0.0, (date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
