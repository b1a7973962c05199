"""Below the guard: how connections are accepted and ended, and what never becomes a request.

That is what is not HTTP, a head that does not end or may not be answered, and framing without measure.
"""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import uvicorn
import uvicorn.loops.auto
import uvicorn.protocols.http.auto
from uvicorn.loops.asyncio import asyncio_loop_factory
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from mlops_img.serving import telemetry
from mlops_img.serving.errors import Code, RequestError
from mlops_img.serving.middleware import error_response
from mlops_img.serving.server import DrainingServer, is_ending
from mlops_img.serving.transport import LingeringTransport

# Bytes of a head; and of everything else between two bytes of a body: chunk extensions and trailers.
MAX_HEAD = 2**16
# Bytes of a body that are read and discarded after its request was refused, so that the connection can be kept.
MAX_DISCARDED = 2**20
# Seconds that a connection without a request is kept once the server is ending.
LAST_CALL = 1.0


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
        self._in_body = False
        self._head_bytes = 0  # of the target, the headers and the trailers of this request
        self._pieces_bytes = 0  # received since a request, a body or a part of it began
        self._progress = False
        self._discarded = 0
        self._fault: RequestError | None = None
        self._deaf = False  # answers that are under way are sent, nothing more is read
        self._alarm: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        """Wait for a request, but not for long."""
        super().connection_made(LingeringTransport(transport, self.loop))  # type: ignore[arg-type]
        self._set_alarm()
        if is_ending(self.server_state):
            self.shutdown()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._stop_alarm()
        self.transport.forget()  # type: ignore[attr-defined]
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read on, unless all that comes is to be discarded."""
        if self._deaf or self.transport.is_closing():
            return
        self._progress = False
        super().data_received(data)
        if self._in_head:
            self._set_alarm()
        # A piece in which something began or was got of a body is not counted, since that may take up most of it.
        if not self._progress and (self._in_head or self._in_body):
            self._pieces_bytes += len(data)
            if self._pieces_bytes > MAX_HEAD:
                self._refuse(self._too_much())

    def eof_received(self) -> bool:  # type: ignore[override]  # uvicorn lets the transport close at once
        """Answer a request that ended too early; keep the connection for answers that are under way."""
        if self.transport.is_closing():
            return False
        if self._in_head or (self._in_body and not self.cycle.response_complete):
            self._refuse(RequestError(Code.BAD_REQUEST, "The request ended early."))
        if self.transport.is_closing() or not self._is_answering():
            return False
        self.cycle.keep_alive = False
        return True

    def on_message_begin(self) -> None:
        """Note that a head begins."""
        super().on_message_begin()
        self._in_head, self._head_bytes = True, 0
        self._note_progress()

    def on_url(self, url: bytes) -> None:
        """Note a part of the target."""
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Note a header. Trailers, which come behind the body, are dropped: they must not pass for headers."""
        self._count(len(name) + len(value) + len(b": \r\n"))
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Begin to answer, if the head may be answered."""
        self._check_head()
        super().on_headers_complete()
        self._in_head, self._in_body, self._discarded = False, True, 0
        self._note_progress()
        self._stop_alarm()
        if is_ending(self.server_state):
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        """Note a part of a body. One whose request was refused is discarded, but not any amount of it."""
        self._note_progress()
        super().on_body(body)
        if self.cycle.response_complete:
            self._discarded += len(body)
            if self._discarded > MAX_DISCARDED:
                self.transport.close()

    def on_message_complete(self) -> None:
        """Note that a request is whole."""
        super().on_message_complete()
        self._in_body = False
        self._stop_alarm()

    def on_response_complete(self) -> None:
        """Go on to the next request."""
        super().on_response_complete()
        if self._deaf and not self.pipeline and self.cycle.response_complete:
            self.transport.close()
        elif self._in_body and self.cycle.response_complete:
            self._set_alarm()

    def shutdown(self) -> None:
        """End the connection when its request is answered, or after a while without one."""
        if self._is_answering():
            self.cycle.keep_alive = False
        elif not self._in_head:
            self.loop.call_later(LAST_CALL, self._close_if_quiet)

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP, or what a callback found fault with."""
        self._refuse(
            self._fault or RequestError(Code.BAD_REQUEST, "This is not an HTTP request that can be understood.")
        )

    def _check_head(self) -> None:
        hosts = sum(name == b"host" for name, _ in self.headers)
        new = self.parser.get_http_version() != "1.0"
        if hosts > 1 or (new and not hosts):
            self._raise(RequestError(Code.BAD_REQUEST, "Send one Host header."))
        expected = {value.strip().lower() for name, value in self.headers if name == b"expect"}
        if new and expected - {b"100-continue", b""}:
            self._raise(RequestError(Code.EXPECTATION_FAILED, "The only Expect that is supported is 100-continue."))

    def _count(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > MAX_HEAD:
            self._raise(self._too_much())

    def _raise(self, failure: RequestError) -> None:
        """Stop the parser, which answers any exception of a callback by an error of its own."""
        self._fault = failure
        raise failure

    def _too_much(self) -> RequestError:
        what = "chunk extensions or trailers" if self._in_body else "headers"
        return RequestError(Code.BAD_REQUEST, f"The {what} have more than {MAX_HEAD} bytes.")

    def _note_progress(self) -> None:
        self._progress, self._pieces_bytes = True, 0

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

    def _close_if_quiet(self) -> None:
        if not self._is_answering() and not self._in_head:
            self.transport.close()

    def _is_answering(self) -> bool:
        """Return whether an answer is under way or owed. The last of several requests is the last to be answered."""
        return self._deaf or bool(self.pipeline) or (self.cycle is not None and not self.cycle.response_complete)

    def _refuse(self, failure: RequestError) -> None:
        """Answer by an error and end the connection, but not before the requests that came first are answered."""
        if self.transport.is_closing():
            return
        if self._in_body and any(cycle is self.cycle for cycle, _ in self.pipeline):
            self.pipeline.popleft()  # the request that is refused: the newest is at the left
            self._deaf, self.cycle.response_complete = True, True
        elif self._is_answering() and not self._in_body:
            self._deaf, self.cycle.keep_alive = True, False
        if self._deaf:
            self._stop_alarm()
            return
        # What belongs to a request that has its answer, or a part of it, gets no other one.
        if self.cycle is None or not (self.cycle.response_started if self._in_body else self._is_answering()):
            self._write(failure)
        if self.cycle is not None:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.transport.close()

    def _write(self, failure: RequestError) -> None:
        telemetry.REQUESTS.labels("other", str(failure.code.status)).inc()
        telemetry.REJECTED.labels(failure.code).inc()
        answer = error_response(failure, uuid.uuid4().hex)
        headers = [*self.server_state.default_headers, *answer.raw_headers, (b"connection", b"close")]
        lines = [STATUS_LINE[answer.status_code], *(b"%s: %s\r\n" % header for header in headers), b"\r\n"]
        self.transport.write(b"".join(lines) + bytes(answer.body))


def install(patience: float, keep_alive: float) -> None:
    """Have uvicorn use it, on asyncio's own loop. BentoML, which starts uvicorn, has no option for any of this."""
    Wire.patience, Wire.keep_alive = patience, keep_alive
    uvicorn.protocols.http.auto.AutoHTTPProtocol = Wire
    uvicorn.Server = DrainingServer  # type: ignore[misc]
    # uvloop accepts one connection each time round: in a rush newcomers waited seconds for their refusal.
    uvicorn.loops.auto.auto_loop_factory = asyncio_loop_factory
