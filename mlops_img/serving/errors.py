"""The error codes of the service, and the exception that carries one."""

from __future__ import annotations

from enum import StrEnum
from http import HTTPStatus


class Code(StrEnum):
    """An error code for programs; each belongs to one HTTP status."""

    BAD_REQUEST = "bad_request"
    BAD_IMAGE = "bad_image"
    UNAUTHORIZED = "unauthorized"
    NOT_FOUND = "not_found"
    METHOD_NOT_ALLOWED = "method_not_allowed"
    UPLOAD_TIMEOUT = "upload_timeout"
    TOO_LARGE = "too_large"
    NOT_AN_IMAGE = "not_an_image"
    UNSUPPORTED = "unsupported"
    EXPECTATION_FAILED = "expectation_failed"
    INVALID_PARAMETER = "invalid_parameter"
    OVERLOADED = "overloaded"
    INTERNAL = "internal"
    NOT_READY = "not_ready"
    TIMEOUT = "timeout"

    @property
    def status(self) -> int:
        """HTTP status."""
        return STATUS[self]


STATUS: dict[Code, int] = {
    Code.BAD_REQUEST: HTTPStatus.BAD_REQUEST,
    Code.BAD_IMAGE: HTTPStatus.BAD_REQUEST,
    Code.UNAUTHORIZED: HTTPStatus.UNAUTHORIZED,
    Code.NOT_FOUND: HTTPStatus.NOT_FOUND,
    Code.METHOD_NOT_ALLOWED: HTTPStatus.METHOD_NOT_ALLOWED,
    Code.UPLOAD_TIMEOUT: HTTPStatus.REQUEST_TIMEOUT,
    Code.TOO_LARGE: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    Code.NOT_AN_IMAGE: HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    Code.UNSUPPORTED: HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    Code.EXPECTATION_FAILED: HTTPStatus.EXPECTATION_FAILED,
    Code.INVALID_PARAMETER: HTTPStatus.UNPROCESSABLE_ENTITY,
    Code.OVERLOADED: HTTPStatus.TOO_MANY_REQUESTS,
    Code.INTERNAL: HTTPStatus.INTERNAL_SERVER_ERROR,
    Code.NOT_READY: HTTPStatus.SERVICE_UNAVAILABLE,
    Code.TIMEOUT: HTTPStatus.GATEWAY_TIMEOUT,
}
CODES: dict[int, Code] = {code.status: code for code in reversed(Code)}


class RequestError(Exception):
    """A request, or one image of a request, that is answered by an error.

    Attributes:
        code: error code.
        message: one sentence for people; it must not reveal anything about the server.
        retry_after: seconds after which a retry makes sense (header Retry-After).
        allow: methods that the path supports (header Allow).
    """

    def __init__(self, code: Code, message: str, *, retry_after: int | None = None, allow: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.retry_after = retry_after
        self.allow = allow
