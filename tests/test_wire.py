"""How a worker accepts connections."""

from __future__ import annotations

import asyncio
import socket

import uvicorn

from mlops_img.serving import wire

CLIENTS = 30


def test_all_who_wait_at_the_door_are_accepted_at_once() -> None:
    wire.install(10.0)
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
