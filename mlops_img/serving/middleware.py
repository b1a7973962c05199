"""ASGI middleware around BentoML's application and ours, one concern a class; `MIDDLEWARE` is the order."""

from __future__ import annotations

import hmac
import logging
import re
import time
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mlops_img.serving import telemetry
from mlops_img.serving.errors import CODES, Code, RequestError
from mlops_img.serving.http_middleware import HTTPMiddleware, at_response_start
from mlops_img.serving.request_limits import AdmissionMiddleware, BodySizeMiddleware, TimeoutMiddleware
from mlops_img.serving.responses import MESSAGES, SECURITY_HEADERS, error_of_status, error_response
from mlops_img.serving.routes import HEALTH, match_route
from mlops_img.serving.worker import Worker

REQUEST_ID = re.compile(r"[\w.-]{1,64}")
NOT_LOGGED = (*HEALTH, "/metrics")

log = logging.getLogger(__name__)


class RequestContextMiddleware(HTTPMiddleware):
    """Set the request id, which the client may choose, and the route, both in `scope["state"]`."""

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Set them, and the id as a header of the response."""
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        state = scope.setdefault("state", {})
        state["request_id"] = request_id
        state["route"] = match_route(self.worker.app, scope["method"], scope["path"])

        def add_id(head: Message) -> None:
            MutableHeaders(scope=head)["X-Request-ID"] = request_id

        await self.app(scope, receive, at_response_start(send, add_id))


class AccessLogMiddleware(HTTPMiddleware):
    """Count every request in the metrics, and write a line of the access log."""

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and record it once it is answered or the client has gone."""
        status = 0
        start = time.perf_counter()

        def note_status(head: Message) -> None:
            nonlocal status
            status = head["status"]

        try:
            await self.app(scope, receive, at_response_start(send, note_status))
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

        def add_headers(head: Message) -> None:
            headers = MutableHeaders(scope=head)
            for name, value in SECURITY_HEADERS.items():
                headers.setdefault(name, value)

        await self.app(scope, receive, at_response_start(send, add_headers))


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

        def close_if_busy(head: Message) -> None:
            if self.worker.should_close_connection():
                MutableHeaders(scope=head)["Connection"] = "close"

        await self.app(scope, receive, at_response_start(send, close_if_busy))


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


class HeadMiddleware(HTTPMiddleware):
    """Answer HEAD like GET. The server leaves out the body of the response."""

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on HEAD as GET."""
        await self.app({**scope, "method": "GET"} if scope["method"] == "HEAD" else scope, receive, send)


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
