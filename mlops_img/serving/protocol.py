"""HTTP below ASGI: limits on request heads and chunk framing, timeouts of heads and idle connections, orderly closing.

It handles what never becomes a request of the application: bytes that are not HTTP, heads that do not end or are
invalid, and framing of unlimited size.
"""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

from typing_extensions import override
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from mlops_img.serving import telemetry
from mlops_img.serving.errors import Code, RequestError
from mlops_img.serving.responses import error_response, to_bytes
from mlops_img.serving.routes import OTHER
from mlops_img.serving.server import is_draining
from mlops_img.serving.transport import LingeringTransport

# Bytes of a request head; and of the chunk extensions or trailers between two bytes of a body.
MAX_HEAD = 2**16
# Bytes of a body that are read and discarded after its request was refused, so that the connection can be kept.
MAX_DISCARDED = 2**20
# Seconds that a connection without a request is kept while the server shuts down.
IDLE_GRACE = 1.0


class GuardedHttpProtocol(HttpToolsProtocol):
    """uvicorn's protocol, which by itself waits for the end of a request head for ever, and keeps all of it.

    Attributes:
        header_timeout: seconds from the first byte of a head, or from the connection, to the end of the head.
        keep_alive: seconds from a response to the first byte of the next request.
    """

    header_timeout: float
    keep_alive: float

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.timeout_keep_alive = self.keep_alive  # type: ignore[assignment]  # uvicorn's option is in whole seconds
        self._in_head = False
        self._in_body = False
        self._head_bytes = 0  # of the target, headers and trailers of this request
        self._framing_bytes = 0  # received since a request, a body or a part of a body began
        self._progress = False
        self._discarded = 0
        self._error: RequestError | None = None
        self._stopped_reading = False  # responses under way are sent, but nothing more is read
        self._header_timer: asyncio.TimerHandle | None = None

    @override
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        """Start the timer for the first head."""
        super().connection_made(LingeringTransport(transport, self.loop))  # type: ignore[arg-type]
        self._start_timer()
        if is_draining(self.server_state):
            self.shutdown()

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        """Stop all timers."""
        self._stop_timer()
        self.transport.cancel_timer()  # type: ignore[attr-defined]
        super().connection_lost(exc)

    @override
    def data_received(self, data: bytes) -> None:
        """Parse what was received, unless it is to be discarded."""
        if self._stopped_reading or self.transport.is_closing():
            return
        self._progress = False
        super().data_received(data)
        if self._in_head:
            self._start_timer()
        # Data in which a request or a part of a body began is not counted: the body may be most of it.
        if not self._progress and (self._in_head or self._in_body):
            self._framing_bytes += len(data)
            if self._framing_bytes > MAX_HEAD:
                self._refuse(self._too_large())

    @override
    def eof_received(self) -> bool:  # type: ignore[override]  # uvicorn lets the transport close at once
        """Refuse a request that ended early; keep the connection open for responses under way."""
        if self.transport.is_closing():
            return False
        if self._in_head or (self._in_body and not self.cycle.response_complete):
            self._refuse(RequestError(Code.BAD_REQUEST, "The request ended early."))
        if self.transport.is_closing() or not self._is_responding():
            return False
        self.cycle.keep_alive = False
        return True

    @override
    def on_message_begin(self) -> None:
        """Begin a head."""
        super().on_message_begin()
        self._in_head, self._head_bytes = True, 0
        self._note_progress()

    @override
    def on_url(self, url: bytes) -> None:
        """Count and pass on a part of the target."""
        self._count_head(len(url))
        super().on_url(url)

    @override
    def on_header(self, name: bytes, value: bytes) -> None:
        """Count and pass on a header. Trailers, which follow the body, are dropped: they must not become headers."""
        self._count_head(len(name) + len(value) + len(b": \r\n"))
        if self._in_head:
            super().on_header(name, value)

    @override
    def on_headers_complete(self) -> None:
        """Start the request, if its head is valid."""
        self._check_head()
        super().on_headers_complete()
        self._in_head, self._in_body, self._discarded = False, True, 0
        self._note_progress()
        self._stop_timer()
        if is_draining(self.server_state):
            self.cycle.keep_alive = False

    @override
    def on_body(self, body: bytes) -> None:
        """Pass on a part of a body. If its request was refused, discard it, up to a limit."""
        self._note_progress()
        super().on_body(body)
        if self.cycle.response_complete:
            self._discarded += len(body)
            if self._discarded > MAX_DISCARDED:
                self.transport.close()

    @override
    def on_message_complete(self) -> None:
        """End the request."""
        super().on_message_complete()
        self._in_body = False
        self._stop_timer()

    @override
    def on_response_complete(self) -> None:
        """Continue with the next request."""
        super().on_response_complete()
        if self._stopped_reading and not self.pipeline and self.cycle.response_complete:
            self.transport.close()
        elif self._in_body and self.cycle.response_complete:
            self._start_timer()

    @override
    def shutdown(self) -> None:
        """Close the connection after its response, or after a grace period if there is no request."""
        if self._is_responding():
            self.cycle.keep_alive = False
        elif not self._in_head:
            self.loop.call_later(IDLE_GRACE, self._close_if_idle)

    @override
    def send_400_response(self, msg: str) -> None:
        """Refuse what the parser, or one of the callbacks above, rejected."""
        self._refuse(self._error or RequestError(Code.BAD_REQUEST, "This is not a valid HTTP request."))

    @override
    def _should_upgrade_to_ws(self) -> bool:
        return False  # a request for a WebSocket is answered as an ordinary one

    @override
    def _unsupported_upgrade_warning(self) -> None:
        pass

    def _check_head(self) -> None:
        hosts = sum(name == b"host" for name, _ in self.headers)
        new = self.parser.get_http_version() != "1.0"
        if hosts > 1 or (new and not hosts):
            self._raise(RequestError(Code.BAD_REQUEST, "Send exactly one Host header."))
        expected = {value.strip().lower() for name, value in self.headers if name == b"expect"}
        if new and expected - {b"100-continue", b""}:
            self._raise(RequestError(Code.EXPECTATION_FAILED, "The only supported Expect header is 100-continue."))

    def _count_head(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > MAX_HEAD:
            self._raise(self._too_large())

    def _raise(self, error: RequestError) -> None:
        """Stop the parser, which turns any exception of a callback into one of its own."""
        self._error = error
        raise error

    def _too_large(self) -> RequestError:
        what = "chunk extensions or trailers" if self._in_body else "headers"
        return RequestError(Code.BAD_REQUEST, f"The {what} have more than {MAX_HEAD} bytes.")

    def _note_progress(self) -> None:
        self._progress, self._framing_bytes = True, 0

    def _start_timer(self) -> None:
        if self._header_timer is None:
            self._header_timer = self.loop.call_later(self.header_timeout, self._on_timeout)

    def _stop_timer(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _on_timeout(self) -> None:
        self._header_timer = None
        if self._in_head:
            self._refuse(RequestError(Code.UPLOAD_TIMEOUT, "The request did not arrive in time."))
        else:
            self.transport.close()

    def _close_if_idle(self) -> None:
        if not self._is_responding() and not self._in_head:
            self.transport.close()

    def _is_responding(self) -> bool:
        """Return whether a response is under way or pending. The last of several requests is answered last."""
        return (
            self._stopped_reading
            or bool(self.pipeline)
            or (self.cycle is not None and not self.cycle.response_complete)
        )

    def _refuse(self, error: RequestError) -> None:
        """Respond with an error and close the connection, but only after the responses to earlier requests."""
        if self.transport.is_closing():
            return
        if self._in_body and any(cycle is self.cycle for cycle, _ in self.pipeline):
            self.pipeline.popleft()  # the refused request: the newest is at the left
            self._stopped_reading, self.cycle.response_complete = True, True
        elif self._is_responding() and not self._in_body:
            self._stopped_reading, self.cycle.keep_alive = True, False
        if self._stopped_reading:
            self._stop_timer()
            return
        # A request whose response is complete or has begun gets no second one.
        if self.cycle is None or not (self.cycle.response_started if self._in_body else self._is_responding()):
            self._respond(error)
        if self.cycle is not None:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.transport.close()

    def _respond(self, error: RequestError) -> None:
        telemetry.REQUESTS.labels(OTHER, str(error.code.status)).inc()
        telemetry.REJECTED.labels(error.code).inc()
        self.transport.write(to_bytes(error_response(error, uuid.uuid4().hex), self.server_state.default_headers))
