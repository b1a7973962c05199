"""A server in a thread with a worker's protocol and a small application, and requests byte for byte."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from mlops_img.serving.listening import drop_new_connections
from mlops_img.serving.protocol import GuardedHttpProtocol
from mlops_img.serving.server import DrainingServer

HOST = b"Host: here\r\n"
GET = b"GET /model HTTP/1.1\r\n" + HOST + b"\r\n"
CHUNKED = b"POST /whole HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n"


async def application(scope: Any, receive: Any, send: Any) -> None:
    """Read the body, except for /early; respond with the path, the names of the headers and the size of the body."""
    body = b""
    while scope["path"] != "/early":
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    names = b",".join(name for name, _ in scope["headers"])
    text = scope["path"].encode() + b" " + names + b" " + str(len(body)).encode()
    headers = [(b"content-length", str(len(text)).encode())]
    await send({"type": "http.response.start", "status": 413 if scope["path"] == "/early" else 200, "headers": headers})
    await send({"type": "http.response.body", "body": text})


@contextmanager
def running(header_timeout: float = 30.0, *, drop: bool = True) -> Iterator[tuple[DrainingServer, Any]]:
    """Run a server in a thread; yields it and its address. With `drop`, new connections are dropped before it ends."""
    protocol = type("Protocol", (GuardedHttpProtocol,), {"header_timeout": header_timeout, "keep_alive": 75.0})
    config = uvicorn.Config(application, http=protocol, loop="asyncio", lifespan="off", log_config=None)
    server = DrainingServer(config)
    listening = socket.create_server(("127.0.0.1", 0), backlog=512)
    address = listening.getsockname()
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        yield server, address
    finally:
        if drop:
            drop_new_connections(listening)  # as the supervisor does
        server.should_exit = True
        thread.join()


def exchange(address: Any, *pieces: bytes, end: bool = False) -> bytes:
    """Send pieces, and with `end` the end of the stream; return everything received until the server closes."""
    with socket.create_connection(address, timeout=60) as connection:
        for piece in pieces:
            connection.sendall(piece)
        if end:
            connection.shutdown(socket.SHUT_WR)
        received = b""
        while more := connection.recv(2**16):
            received += more
        return received


def statuses(received: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d+)", received)]


CLOSE = b"GET /last HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n"
