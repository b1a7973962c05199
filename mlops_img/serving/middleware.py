"""The door, in front of every route: identity, size, load and time; headers, the log, and one shape for all errors."""

from __future__ import annotations

import asyncio
import hmac
import logging
import re
import time
import uuid
from contextlib import AbstractContextManager, nullcontext

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mlops_img.serving import telemetry
from mlops_img.serving.errors import CODES, Code, RequestError
from mlops_img.serving.routes import HEALTH, PAGE, allowed_methods, label, needs_admission
from mlops_img.serving.schemas import ErrorAnswer, Problem
from mlops_img.serving.state import State

REQUEST_ID = re.compile(r"[\w.-]{1,64}")
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

log = logging.getLogger(__name__)


class Guard:
    """ASGI middleware around the whole service, BentoML's own routes included."""

    def __init__(self, app: ASGIApp, state: State) -> None:
        self.app = app
        self.state = state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request (ASGI)."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1003})
        elif scope["type"] == "http":
            await _Visit(self.app, self.state, scope, receive, send).answer()
        else:
            await self.app(scope, receive, send)


class _Visit:
    """One request on its way through."""

    def __init__(self, app: ASGIApp, state: State, scope: Scope, receive: Receive, send: Send) -> None:
        self.app = app
        self.state = state
        self.scope = scope
        self._receive = receive
        self._send = send
        self.headers = Headers(scope=scope)
        self.route = label(state.app, scope["path"])
        given = self.headers.get("x-request-id", "")
        self.request_id = given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = self.request_id
        self.received = 0
        self.whole = False
        self.awaiting_body = False
        self.status = 0
        self.reason: str | None = None
        self.failure: RequestError | None = None
        self.replaced = False

    async def answer(self) -> None:
        start = time.perf_counter()
        try:
            await self._let_in()
        except RequestError as failure:
            await self._fail(failure)
        except TimeoutError:
            await self._fail(self._too_slow())
        except Exception:
            log.exception("request %s", self.request_id)
            await self._fail(RequestError(Code.INTERNAL, "Something went wrong on our side."))
        finally:
            seconds = time.perf_counter() - start
            telemetry.REQUESTS.labels(self.route, str(self.status)).inc()
            telemetry.REQUEST_SECONDS.labels(self.route).observe(seconds)
            if self.reason is not None:
                telemetry.REJECTED.labels(self.reason).inc()
            if self.route not in HEALTH and self.route != "/metrics":
                telemetry.log_request(
                    self.route, self.scope["method"], self.status, seconds, self.request_id, self.reason
                )

    async def _let_in(self) -> None:
        self._authorize()
        self._see_size()
        places: AbstractContextManager[None] = nullcontext()
        if needs_admission(self.state.app, self.scope):
            self._check_type()
            if self.state.engine is None:
                raise RequestError(Code.NOT_READY, "The model is not loaded yet: try again shortly.", retry_after=1)
            places = self.state.engine.admission.enter()
        # The server leaves out the body of the answer to a HEAD request.
        scope = {**self.scope, "method": "GET"} if self.scope["method"] == "HEAD" else self.scope
        with places:
            async with asyncio.timeout(self.state.settings.timeout):
                await self.app(scope, self._counted, self._headed)

    def _check_type(self) -> None:
        encoding = self.headers.get("content-encoding", "identity").strip().lower()
        if encoding not in ("", "identity"):
            name = encoding[:20] if encoding[:20].isascii() and encoding[:20].isprintable() else "unknown"
            raise RequestError(
                Code.UNSUPPORTED, f"The content encoding {name!r} is not supported: send the form uncompressed."
            )
        if self.headers.get("content-type", "").partition(";")[0].strip().lower() != "multipart/form-data":
            raise RequestError(Code.NOT_AN_IMAGE, "Send the image as multipart/form-data.")

    def _authorize(self) -> None:
        tokens = self.state.tokens
        if not tokens or self.route in HEALTH or self.route in PAGE:
            return
        scheme, _, token = self.headers.get("authorization", "").partition(" ")
        given = token.strip().encode()
        # Every token is compared, and each in constant time: how long it takes tells nothing.
        known = [hmac.compare_digest(given, each.encode()) for each in tokens]
        if scheme.lower() != "bearer" or not any(known):
            raise RequestError(Code.UNAUTHORIZED, "Send one of the service's tokens: Authorization: Bearer <token>.")

    def _see_size(self) -> None:
        length = self.headers.get("content-length", "0")
        if not length.isascii() or not length.isdigit() or int(length) > self.state.settings.max_bytes:
            raise self._too_large()

    async def _counted(self) -> Message:
        """Receive a part of the body, and see that it is not too much: there may be no Content-Length."""
        self.awaiting_body = not self.whole
        message = await self._receive()
        self.awaiting_body = False
        self.whole = not message.get("more_body", False)
        self.received += len(message.get("body", b""))
        if self.received > self.state.settings.max_bytes:
            # Whoever reads the body may turn this into an answer of its own, which `_headed` then replaces.
            self.failure = self._too_large()
            raise self.failure
        return message

    def _too_slow(self) -> RequestError:
        if self.awaiting_body:
            return RequestError(Code.UPLOAD_TIMEOUT, "The request did not arrive in time.")
        return RequestError(Code.TIMEOUT, "The answer took too long: try again later.")

    def _too_large(self) -> RequestError:
        return RequestError(
            Code.TOO_LARGE, f"The request has more than {self.state.settings.max_bytes / 1e6:g} million bytes."
        )

    async def _headed(self, message: Message) -> None:
        """Send on with our headers; an error that is not in our shape is replaced by one that is."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            if self.failure is None and self.status >= 400 and not _is_json(headers):
                code = CODES.get(self.status, Code.INTERNAL if self.status >= 500 else Code.BAD_REQUEST)
                self.failure = RequestError(code, SAID.get(code, "The request cannot be answered."))
            if self.failure is not None:
                self.replaced = True
                await self._send_failure(self.failure, headers.get("allow"))
                return
            for name, value in SECURITY_HEADERS.items():
                headers.setdefault(name, value)
            headers["X-Request-ID"] = self.request_id
            if self.state.turns_away():
                headers["Connection"] = "close"
            if self.status >= 400:
                self.reason = self.scope["state"].get("reason") or CODES.get(self.status, Code.BAD_REQUEST)
        if not self.replaced:
            await self._send(message)

    async def _fail(self, failure: RequestError) -> None:
        if self.status and not self.replaced:
            return  # an answer is under way already
        if not self.replaced:
            unknown_method = failure.code is Code.METHOD_NOT_ALLOWED
            await self._send_failure(
                failure, allowed_methods(self.state.app, self.scope["path"]) if unknown_method else None
            )

    async def _send_failure(self, failure: RequestError, allowed: str | None = None) -> None:
        self.reason = failure.code
        self.status = failure.code.status
        response = error_response(failure, self.request_id)
        if allowed is not None:
            response.headers["Allow"] = allowed
        if self.awaiting_body:
            response.headers["Connection"] = "close"  # what still comes of it would be waited for
        await response(self.scope, self._receive, self._send)


def _is_json(headers: MutableHeaders) -> bool:
    return headers.get("content-type", "").startswith("application/json")


SAID = {
    Code.NOT_FOUND: "There is nothing at this address.",
    Code.METHOD_NOT_ALLOWED: "This address does not take that method.",
    Code.NOT_READY: "The service is not ready: try again shortly.",
    Code.INTERNAL: "Something went wrong on our side.",
}


def error_response(failure: RequestError, request_id: str) -> Response:
    """Return the answer to a request that failed."""
    headers = {**SECURITY_HEADERS, "X-Request-ID": request_id}
    if failure.retry_after is not None:
        headers["Retry-After"] = str(failure.retry_after)
    if failure.code is Code.UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"
    problem = Problem(code=failure.code, message=failure.message, request_id=request_id)
    return Response(
        ErrorAnswer(error=problem).model_dump_json(),
        status_code=failure.code.status,
        headers=headers,
        media_type="application/json",
    )
