"""Closing a connection in order: a plain close would reset it, and with it the answer that is on its way."""

from __future__ import annotations

import asyncio
from typing import Any

# Seconds in which the client may read the answer and close its side.
LINGER = 2.0


class LingeringTransport:
    """A transport that is closed in two steps (RFC 9112, 9.6).

    If bytes of the client are unread when a socket is closed, the kernel sends a reset, on which the client's system
    may throw away the answer. So only the sending side is closed at first; what still comes must be discarded by the
    protocol, which sees that `is_closing()` is true. Everything else is passed on to the transport itself.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._lingering: asyncio.TimerHandle | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def is_closing(self) -> bool:
        """Return whether nothing more may be written."""
        return self._lingering is not None or self._transport.is_closing()

    def write(self, data: bytes) -> None:
        """Write, unless nothing more may be written."""
        if not self.is_closing():
            self._transport.write(data)

    def close(self) -> None:
        """Send what is written, then the end; close the connection when the client does, or after `LINGER`."""
        if self.is_closing():
            return
        if not self._transport.can_write_eof():  # TLS
            self._transport.close()
            return
        self._transport.write_eof()
        self._transport.resume_reading()
        self._lingering = self._loop.call_later(LINGER, self._transport.abort)

    def forget(self) -> None:
        """Cancel the timer: the connection is closed."""
        if self._lingering is not None:
            self._lingering.cancel()
