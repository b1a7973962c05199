"""How a worker accepts connections, and how long it keeps them."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from typing import Any

import pytest
import uvicorn
import uvicorn.loops.auto
import uvicorn.protocols.http.auto

from mlops_img.serving import protocol as wire

CLIENTS = 30


@pytest.fixture(autouse=True)
def restored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other tests are to find the door as it was."""
    for name in ("patience", "keep_alive"):
        monkeypatch.setattr(wire.Wire, name, None, raising=False)
    for module, name in (
        (uvicorn.protocols.http.auto, "AutoHTTPProtocol"),
        (uvicorn.loops.auto, "auto_loop_factory"),
        (uvicorn, "Server"),
    ):
        monkeypatch.setattr(module, name, getattr(module, name))


def test_all_who_wait_at_the_door_are_accepted_at_once() -> None:
    wire.install(10.0, 75.0)
    factory = uvicorn.Config("no:application").get_loop_factory()
    assert factory is not None
    loop = factory()
    accepted: list[asyncio.BaseTransport] = []

    class Door(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            accepted.append(transport)

    async def open_up(listening: socket.socket) -> int:
        """Return how often the loop went round until all were in."""
        server = await asyncio.get_running_loop().create_server(Door, sock=listening)
        rounds = 0
        while len(accepted) < CLIENTS and rounds < 10 * CLIENTS:
            await asyncio.sleep(0)
            rounds += 1
        server.close()
        for transport in accepted:
            transport.abort()  # type: ignore[attr-defined]
        return rounds

    listening = socket.create_server(("127.0.0.1", 0), backlog=CLIENTS)
    clients = [socket.create_connection(listening.getsockname()) for _ in range(CLIENTS)]
    try:
        assert loop.run_until_complete(open_up(listening)) < 10
    finally:
        for client in clients:
            client.close()
        loop.close()


def test_idle_connection_is_kept_as_long_as_the_setting_says() -> None:
    wire.install(10.0, 1.2)

    async def application(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    server = uvicorn.Server(uvicorn.Config(application, lifespan="off", log_config=None))
    listening = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        with socket.create_connection(listening.getsockname(), timeout=60) as client:
            client.sendall(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n")
            assert client.recv(1000).startswith(b"HTTP/1.1 204")
            start = time.perf_counter()
            assert client.recv(1000) == b""
            # uvicorn's own would be 5 seconds.
            assert 1.0 < time.perf_counter() - start < 4.0
    finally:
        server.should_exit = True
        thread.join()
