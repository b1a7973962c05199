"""What the middleware has in common: a class for HTTP requests, and a `send` that acts on the response's head."""

from __future__ import annotations

from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mlops_img.serving.worker import Worker


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


def at_response_start(send: Send, act: Callable[[Message], None]) -> Send:
    """Return `send`, which first calls `act` with the message that carries the status and the headers."""

    async def send_after_acting(message: Message) -> None:
        if message["type"] == "http.response.start":
            act(message)
        await send(message)

    return send_after_acting
