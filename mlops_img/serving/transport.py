"""Closing a connection in two steps: closing it at once would reset it, and with it the response that is under way."""

from __future__ import annotations

import asyncio
from typing import Any

# Seconds in which the client may read the response and close its side.
LINGER = 2.0


class LingeringTransport:
    """A transport that is closed in two steps (RFC 9112, section 9.6).

    If a socket is closed with received bytes unread, the kernel sends a reset, on which the client's system may
    discard the response. So only the sending side is closed at first. What is still received must be discarded by the
    protocol, which sees that `is_closing()` is true. Everything else is passed on to the wrapped transport.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._timer: asyncio.TimerHandle | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def is_closing(self) -> bool:
        """Return whether nothing more may be written."""
        return self._timer is not None or self._transport.is_closing()

    def write(self, data: bytes) -> None:
        """Write, unless the transport is closing."""
        if not self.is_closing():
            self._transport.write(data)

    def close(self) -> None:
        """Send what is buffered and the end of the stream; close when the client does, or after `LINGER` seconds."""
        if self.is_closing():
            return
        if not self._transport.can_write_eof():  # TLS
            self._transport.close()
            return
        self._transport.write_eof()
        self._transport.resume_reading()
        self._timer = self._loop.call_later(LINGER, self._transport.abort)

    def cancel_timer(self) -> None:
        """Cancel the timer: the connection is closed."""
        if self._timer is not None:
            self._timer.cancel()
