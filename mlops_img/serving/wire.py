"""Below the guard: how connections are accepted, and what never becomes a request.

That is what is not HTTP, or a head that does not end.
"""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import uvicorn.loops.auto
import uvicorn.protocols.http.auto
from uvicorn.loops.asyncio import asyncio_loop_factory
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from mlops_img.serving import telemetry
from mlops_img.serving.failures import Code, RequestError
from mlops_img.serving.guard import error_response

MAX_HEAD = 2**16


class Wire(HttpToolsProtocol):
    """uvicorn's protocol, which would wait for ever for the end of a head, and keep all that comes of it.

    Attributes:
        patience: seconds from a head's first byte, or from the connection, to the head's end.
        keep_alive: seconds from an answer to the next request's first byte.
    """

    patience: float
    keep_alive: float

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.timeout_keep_alive = self.keep_alive  # type: ignore[assignment]  # uvicorn's option takes whole seconds
        self._in_head = False
        self._head_bytes = 0
        self._alarm: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        """Wait for a request, but not for long."""
        super().connection_made(transport)
        self._set_alarm()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._stop_alarm()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read on; what began in this piece is not counted, since a body may take up most of it."""
        began_before = self._in_head
        super().data_received(data)
        if not self._in_head:
            return
        self._set_alarm()
        self._head_bytes += len(data) if began_before else 0
        if self._head_bytes > MAX_HEAD:
            self._refuse(RequestError(Code.BAD_REQUEST, f"The headers have more than {MAX_HEAD} bytes."))

    def on_message_begin(self) -> None:
        """Note that a head begins."""
        super().on_message_begin()
        self._in_head, self._head_bytes = True, 0

    def on_headers_complete(self) -> None:
        """Note that it has ended."""
        super().on_headers_complete()
        self._in_head = False
        self._stop_alarm()

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP."""
        self._refuse(RequestError(Code.BAD_REQUEST, "This is no HTTP request that can be understood."))

    def _should_upgrade_to_ws(self) -> bool:
        return False  # who asks for a WebSocket is answered as if they had not

    def _unsupported_upgrade_warning(self) -> None:
        pass

    def _set_alarm(self) -> None:
        if self._alarm is None:
            self._alarm = self.loop.call_later(self.patience, self._give_up)

    def _stop_alarm(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None

    def _give_up(self) -> None:
        self._alarm = None
        if self._in_head:
            self._refuse(RequestError(Code.UPLOAD_TIMEOUT, "The request did not arrive in time."))
        else:
            self.transport.close()

    def _refuse(self, failure: RequestError) -> None:
        if self.transport.is_closing():
            return
        # In the middle of another answer there is no place for this one.
        if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
            telemetry.REQUESTS.labels("other", str(failure.code.status)).inc()
            telemetry.REJECTED.labels(failure.code).inc()
            answer = error_response(failure, uuid.uuid4().hex)
            headers = [*self.server_state.default_headers, *answer.raw_headers, (b"connection", b"close")]
            lines = [STATUS_LINE[answer.status_code], *(b"%s: %s\r\n" % header for header in headers), b"\r\n"]
            self.transport.write(b"".join(lines) + bytes(answer.body))
        self.transport.close()


def install(patience: float, keep_alive: float) -> None:
    """Have uvicorn use it, on asyncio's own loop. BentoML, which starts uvicorn, has no option for any of this."""
    Wire.patience, Wire.keep_alive = patience, keep_alive
    uvicorn.protocols.http.auto.AutoHTTPProtocol = Wire
    # uvloop accepts one connection each time round: in a rush newcomers waited seconds for their refusal.
    uvicorn.loops.auto.auto_loop_factory = asyncio_loop_factory
