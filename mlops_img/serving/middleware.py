"""ASGI middleware around BentoML's application and ours, one concern a class; `MIDDLEWARE` is the order."""

from __future__ import annotations

import asyncio
import hmac
import logging
import re
import time
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mlops_img.serving import telemetry
from mlops_img.serving.errors import CODES, Code, RequestError
from mlops_img.serving.responses import MESSAGES, SECURITY_HEADERS, error_of_status, error_response
from mlops_img.serving.routes import HEALTH, RouteMatch, match_route
from mlops_img.serving.worker import Worker

REQUEST_ID = re.compile(r"[\w.-]{1,64}")
NOT_LOGGED = (*HEALTH, "/metrics")

log = logging.getLogger(__name__)


class HTTPMiddleware:
    """Middleware for HTTP requests. Lifespan events pass it, and WebSockets are refused: there are none."""

    def __init__(self, app: ASGIApp, worker: Worker) -> None:
        self.app = app
        self.worker = worker

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request (ASGI)."""
        if scope["type"] == "http":
            await self.handle(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1003})
        else:
            await self.app(scope, receive, send)

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one HTTP request."""
        raise NotImplementedError


class RequestContextMiddleware(HTTPMiddleware):
    """Set the request id, which the client may choose, and the route, both in `scope["state"]`."""

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Set them, and the id as a header of the response."""
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        state = scope.setdefault("state", {})
        state["request_id"] = request_id
        state["route"] = match_route(self.worker.app, scope["method"], scope["path"])

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["X-Request-ID"] = request_id
            await send(message)

        await self.app(scope, receive, send_with_id)


class AccessLogMiddleware(HTTPMiddleware):
    """Count every request in the metrics, and write a line of the access log."""

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and record it once it is answered or the client has gone."""
        status = 0
        start = time.perf_counter()

        async def send_and_note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, send_and_note)
        finally:
            self._record(scope, status, time.perf_counter() - start)

    def _record(self, scope: Scope, status: int, seconds: float) -> None:
        state = scope["state"]
        route: str = state["route"].label
        reason: str | None = state.get("reason") or (CODES.get(status, Code.BAD_REQUEST) if status >= 400 else None)
        telemetry.REQUESTS.labels(route, str(status)).inc()
        telemetry.REQUEST_SECONDS.labels(route).observe(seconds)
        if reason is not None:
            telemetry.REJECTED.labels(reason).inc()
        if route not in NOT_LOGGED:
            telemetry.log_request(route, scope["method"], status, seconds, state["request_id"], reason)


class SecurityHeadersMiddleware(HTTPMiddleware):
    """Add the security headers to every response."""

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Add them to the response where it does not set them itself."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await self.app(scope, receive, send_with_headers)


class ErrorMiddleware(HTTPMiddleware):
    """Answer every error in one shape: exceptions, and error responses that are not JSON, such as BentoML's."""

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on; once a response has begun, an exception can only be logged."""
        started = replaced = False
        state = scope["state"]

        async def respond(error: RequestError) -> None:
            state["reason"] = error.code
            await error_response(error, state["request_id"])(scope, receive, send)

        async def send_or_replace(message: Message) -> None:
            nonlocal started, replaced
            if message["type"] == "http.response.start":
                started = True
                headers = Headers(scope=message)
                if message["status"] >= 400 and not headers.get("content-type", "").startswith("application/json"):
                    replaced = True
                    await respond(error_of_status(message["status"], allow=headers.get("allow")))
            if not replaced:
                await send(message)

        try:
            await self.app(scope, receive, send_or_replace)
            return
        except RequestError as raised:
            error = raised
        except Exception:
            log.exception("request %s", state["request_id"])
            error = RequestError(Code.INTERNAL, MESSAGES[Code.INTERNAL])
        if not started:
            await respond(error)


class ConnectionBalancingMiddleware(HTTPMiddleware):
    """Close some connections of a busy worker, so that their clients reach another one."""

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Add `Connection: close` to the response if the worker asks for it."""

        async def send_and_close(message: Message) -> None:
            if message["type"] == "http.response.start" and self.worker.should_close_connection():
                MutableHeaders(scope=message)["Connection"] = "close"
            await send(message)

        await self.app(scope, receive, send_and_close)


class AuthenticationMiddleware(HTTPMiddleware):
    """Require one of the bearer tokens, if there are any, for every route that is not public."""

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on a request with a valid token."""
        if self.worker.tokens and not scope["state"]["route"].is_public:
            scheme, _, token = Headers(scope=scope).get("authorization", "").partition(" ")
            given = token.strip().encode()
            # Every token is compared, each in constant time: the time of the response must reveal nothing.
            valid = [hmac.compare_digest(given, each.encode()) for each in self.worker.tokens]
            if scheme.lower() != "bearer" or not any(valid):
                raise RequestError(
                    Code.UNAUTHORIZED, "Send one of the service's tokens: Authorization: Bearer <token>."
                )
        await self.app(scope, receive, send)


class BodySizeMiddleware(HTTPMiddleware):
    """Limit the bytes of a request body, announced or received."""

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse a Content-Length above the limit; count what is received, since there may be no Content-Length."""
        limit = self.worker.settings.max_bytes
        too_large = RequestError(Code.TOO_LARGE, f"The request has more than {limit / 1e6:g} million bytes.")
        length = Headers(scope=scope).get("content-length", "0")
        if not length.isascii() or not length.isdigit() or int(length) > limit:
            raise too_large
        received = 0
        started = False

        async def receive_and_count() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > limit:
                raise too_large
            return message

        # What reads the body may turn the exception into a response of its own, which is then discarded.
        async def send_unless_too_large(message: Message) -> None:
            nonlocal started
            if started or received <= limit:
                started = True
                await send(message)

        try:
            await self.app(scope, receive_and_count, send_unless_too_large)
        except Exception:
            if received <= limit:
                raise
        if received > limit:
            raise too_large


class HeadMiddleware(HTTPMiddleware):
    """Answer HEAD like GET. The server leaves out the body of the response."""

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on HEAD as GET."""
        await self.app({**scope, "method": "GET"} if scope["method"] == "HEAD" else scope, receive, send)


class AdmissionMiddleware(HTTPMiddleware):
    """Refuse work, before the body is read, that no route would do or that the worker has no capacity for."""

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on requests that only read, and those that are admitted, with `scope["state"]["reservation"]`."""
        route: RouteMatch = scope["state"]["route"]
        if not route.needs_admission:
            await self.app(scope, receive, send)
            return
        engine = self.worker.engine
        if self.worker.app is not None:
            _check_route(route)
            _check_content(route, Headers(scope=scope))
        if engine is None:
            raise RequestError(Code.NOT_READY, MESSAGES[Code.NOT_READY], retry_after=1)
        with engine.admission.reserve() as reservation:
            scope["state"]["reservation"] = reservation
            await self.app(scope, receive, send)


def _check_route(route: RouteMatch) -> None:
    if route.route is None:
        raise RequestError(Code.NOT_FOUND, MESSAGES[Code.NOT_FOUND])
    if not route.found:
        raise RequestError(Code.METHOD_NOT_ALLOWED, MESSAGES[Code.METHOD_NOT_ALLOWED], allow=route.allow)


def _check_content(route: RouteMatch, headers: Headers) -> None:
    encoding = headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        name = encoding[:20] if encoding[:20].isascii() and encoding[:20].isprintable() else "unknown"
        raise RequestError(
            Code.UNSUPPORTED, f"The content encoding {name!r} is not supported: send the body uncompressed."
        )
    content_type = headers.get("content-type", "").partition(";")[0].strip().lower()
    if route.takes_form and content_type != "multipart/form-data":
        raise RequestError(Code.NOT_AN_IMAGE, "Send the image as multipart/form-data.")


class TimeoutMiddleware(HTTPMiddleware):
    """Limit the seconds from a request's head to its response."""

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on; if it takes too long, say whether the client or the service was too slow."""
        waiting_for_body = complete = False

        async def receive_and_note() -> Message:
            nonlocal waiting_for_body, complete
            waiting_for_body = not complete
            message = await receive()
            waiting_for_body = False
            complete = not message.get("more_body", False)
            return message

        try:
            async with asyncio.timeout(self.worker.settings.timeout):
                await self.app(scope, receive_and_note, send)
        except TimeoutError:
            if waiting_for_body:
                raise RequestError(Code.UPLOAD_TIMEOUT, "The request did not arrive in time.") from None
            raise RequestError(Code.TIMEOUT, "The response took too long. Retry later.") from None


# The first is the outermost.
MIDDLEWARE: tuple[type[HTTPMiddleware], ...] = (
    RequestContextMiddleware,
    AccessLogMiddleware,
    SecurityHeadersMiddleware,
    ErrorMiddleware,
    ConnectionBalancingMiddleware,
    AuthenticationMiddleware,
    BodySizeMiddleware,
    HeadMiddleware,
    AdmissionMiddleware,
    TimeoutMiddleware,
)


def with_middleware(app: ASGIApp, worker: Worker) -> ASGIApp:
    """Return an application with all the middleware around it."""
    for middleware in reversed(MIDDLEWARE):
        app = middleware(app, worker)
    return app
