"""How a worker accepts connections, and how long it keeps idle ones."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from typing import Any

import pytest
import uvicorn

from mlops_img.serving.compatibility import replace_uvicorn
from tests.helpers.service_process import restore_uvicorn

CLIENTS = 30


@pytest.fixture(autouse=True)
def restored(monkeypatch: pytest.MonkeyPatch) -> None:
    restore_uvicorn(monkeypatch)


def test_queued_connections_are_accepted_in_one_round_of_the_loop() -> None:
    replace_uvicorn(10.0, 75.0)
    factory = uvicorn.Config("no:application").get_loop_factory()
    assert factory is not None
    loop = factory()
    accepted: list[asyncio.BaseTransport] = []

    class Accepting(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            accepted.append(transport)

    async def accept_all(listening: socket.socket) -> int:
        """Return the rounds of the loop until all clients are accepted."""
        server = await asyncio.get_running_loop().create_server(Accepting, sock=listening)
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
        assert loop.run_until_complete(accept_all(listening)) < 10
    finally:
        for client in clients:
            client.close()
        loop.close()


def test_idle_connection_is_kept_for_the_configured_time() -> None:
    replace_uvicorn(10.0, 1.2)

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
            (connection,) = server.server_state.connections
            assert getattr(connection, "timeout_keep_alive") == 1.2  # noqa: B009  # of uvicorn's HTTP protocols only
            start = time.perf_counter()
            assert client.recv(1000) == b""
            assert time.perf_counter() - start > 1.0
    finally:
        server.should_exit = True
        thread.join()
