"""The listening socket, when it is about to be closed."""

from __future__ import annotations

import ctypes
import socket
import struct
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

# The most connections that the kernel queues for a socket.
MAX_QUEUED = 2048
# Linux's option, which Python's socket module lacks.
SO_ATTACH_FILTER = 26
# A classic BPF program on the TCP header. Byte 13 holds the flags: segments with SYN are dropped, others are kept.
DROP_SYN = ((0x30, 0, 0, 13), (0x45, 0, 1, 0x02), (0x06, 0, 0, 0), (0x06, 0, 0, 0xFFFF))


def drop_new_connections(listening: socket.socket) -> None:
    """Let the kernel ignore requests for further connections, where it can: on Linux.

    The socket can then be closed once its queue is empty. A client that connects in between retries after a second,
    and is refused or reaches the next service on the port. Holds for all processes that share the socket.
    """
    if sys.platform != "linux" or listening.family not in (socket.AF_INET, socket.AF_INET6):
        return
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in DROP_SYN))
    option: Any = struct.pack("HL", len(DROP_SYN), ctypes.addressof(program))
    with suppress(OSError):
        listening.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, option)


def accept_waiting(listening: socket.socket) -> Iterator[socket.socket]:
    """Yield the connections in the socket's queue, non-blocking; other processes may take some of them."""
    for _ in range(MAX_QUEUED):
        try:
            connection, _address = listening.accept()
        except OSError:  # the queue is empty, or too many files are open
            return
        connection.setblocking(False)
        yield connection
