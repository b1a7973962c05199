"""Error responses, which all have one JSON shape, and the security headers of every response."""

from __future__ import annotations

from collections.abc import Iterable
from http import HTTPStatus

from starlette.responses import Response

from mlops_img.serving.errors import CODES, Code, RequestError
from mlops_img.serving.schemas import ErrorAnswer, Problem

SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Permissions-Policy": "geolocation=(), microphone=()",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
# Messages of errors that are found in more than one place.
MESSAGES = {
    Code.NOT_FOUND: "There is no such path.",
    Code.METHOD_NOT_ALLOWED: "This path does not support that method.",
    Code.NOT_READY: "The service is not ready. Retry shortly.",
    Code.INTERNAL: "Internal server error.",
}


def error_of_status(status: int, message: str = "Bad request.", *, allow: str | None = None) -> RequestError:
    """Return the error for an HTTP status, with its usual message or, if it has none, `message`."""
    code = CODES.get(status, Code.INTERNAL if status >= HTTPStatus.INTERNAL_SERVER_ERROR else Code.BAD_REQUEST)
    return RequestError(code, MESSAGES.get(code, message), allow=allow)


def error_response(error: RequestError, request_id: str) -> Response:
    """Return the response to a request that failed."""
    headers = {**SECURITY_HEADERS, "X-Request-ID": request_id}
    if error.retry_after is not None:
        headers["Retry-After"] = str(error.retry_after)
    if error.allow is not None:
        headers["Allow"] = error.allow
    if error.code is Code.UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"
    if error.code is Code.UPLOAD_TIMEOUT:
        headers["Connection"] = "close"  # otherwise the server would wait for the rest of the body
    problem = Problem(code=error.code, message=error.message, request_id=request_id)
    return Response(
        ErrorAnswer(error=problem).model_dump_json(),
        status_code=error.code.status,
        headers=headers,
        media_type="application/json",
    )


def to_bytes(response: Response, further_headers: Iterable[tuple[bytes, bytes]] = ()) -> bytes:
    """Return a response as HTTP/1.1 that ends its connection, to be written where no application answers."""
    status = HTTPStatus(response.status_code)
    own = [(name, value) for name, value in response.raw_headers if name != b"connection"]
    headers = [*further_headers, *own, (b"connection", b"close")]
    head = [b"HTTP/1.1 %d %s\r\n" % (status, status.phrase.encode())]
    head += [b"%s: %s\r\n" % header for header in headers]
    return b"".join([*head, b"\r\n", bytes(response.body)])
