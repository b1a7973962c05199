"""Ending a server without resetting a connection: the kernel resets those that nobody has accepted."""

from __future__ import annotations

import asyncio
import selectors
import socket

import uvicorn
from uvicorn.server import ServerState

from mlops_img.serving import supervisor
from mlops_img.serving.listening import drop_new_connections

# Seconds for connections that are being made when new ones are no longer taken: a round trip.
HANDSHAKE = 0.2
# The most seconds that connections are still accepted; they come to an end unless others keep the socket open.
MOST_ACCEPTING = 2.0
# Rounds of the event loop from a connection in the queue to its protocol: the selector, accept, connection_made.
ROUNDS = 10


class _EndingState(ServerState):
    ending = False


def is_ending(state: ServerState) -> bool:
    """Return whether a server answers its last requests."""
    return getattr(state, "ending", False)


class DrainingServer(uvicorn.Server):
    """uvicorn's server, which closes its socket with all that the kernel has accepted and it has not."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.server_state = _EndingState()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept whatever waits to be accepted, then close the socket and answer the last requests."""
        self.server_state.ending = True  # type: ignore[attr-defined]
        if supervisor.is_gone():
            for listening in sockets or ():
                drop_new_connections(listening)
        await asyncio.sleep(HANDSHAKE)
        await _accept_waiting(sockets or [])
        await super().shutdown(sockets)


async def _accept_waiting(sockets: list[socket.socket]) -> None:
    """Let the event loop accept connections until none waits."""
    loop = asyncio.get_running_loop()
    end = loop.time() + MOST_ACCEPTING
    with selectors.DefaultSelector() as selector:
        for listening in sockets:
            selector.register(listening, selectors.EVENT_READ)
        while True:
            for _ in range(ROUNDS):
                await asyncio.sleep(0)
            if not sockets or not selector.select(0) or loop.time() > end:
                return
