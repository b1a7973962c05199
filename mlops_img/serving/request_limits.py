"""Middleware that limits the bytes, the number and the duration of requests."""

from __future__ import annotations

import asyncio

from starlette.datastructures import Headers
from starlette.types import Message, Receive, Scope, Send

from mlops_img.serving.errors import Code, RequestError
from mlops_img.serving.http_middleware import HTTPMiddleware
from mlops_img.serving.responses import MESSAGES
from mlops_img.serving.routes import RouteMatch


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
