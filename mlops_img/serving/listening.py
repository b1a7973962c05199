"""The listening socket, when it is about to be closed."""

from __future__ import annotations

import ctypes
import socket
import struct
import sys
from contextlib import suppress
from typing import Any

# Of Linux, not in Python's socket module.
SO_ATTACH_FILTER = 26
# A classic BPF program on the TCP header: byte 13 holds the flags; a segment with SYN is dropped, others are kept.
DROP_SYN = ((0x30, 0, 0, 13), (0x45, 0, 1, 0x02), (0x06, 0, 0, 0), (0x06, 0, 0, 0xFFFF))


def drop_new_connections(listening: socket.socket) -> None:
    """Have the kernel ignore requests for further connections, where it can: on Linux.

    The socket can then be closed once its queue is empty: a client that connects in between tries again after a
    second, and is refused or reaches the service's successor. Holds for all processes that share the socket.
    """
    if sys.platform != "linux" or listening.family not in (socket.AF_INET, socket.AF_INET6):
        return
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in DROP_SYN))
    option: Any = struct.pack("HL", len(DROP_SYN), ctypes.addressof(program))
    with suppress(OSError):
        listening.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, option)
