"""Ending a server without resetting a connection: the kernel resets those that nobody has accepted."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator

import uvicorn
from uvicorn.server import ServerState

from mlops_img.serving import supervisor
from mlops_img.serving.listening import drop_new_connections

# Seconds for connections that are being made when new ones are no longer taken: a round trip.
HANDSHAKE = 0.2
# Connections that are accepted at the end: as many as the kernel's queue holds.
MOST_ACCEPTED = 2048
# Rounds of the event loop from an accepted connection to its protocol's first call.
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
        loop = asyncio.get_running_loop()
        for listening in sockets or ():
            loop.remove_reader(listening)
        # What the loop has accepted needs its server to become a connection.
        await _rounds()
        # From here to the end of the listening, nothing is waited for.
        accepted = [connection for listening in sockets or () for connection in _accept_waiting(listening)]
        for server in self.servers:
            server.close()
        serving = [asyncio.create_task(self._serve_connection(connection)) for connection in accepted]
        await _rounds()
        await super().shutdown(sockets)
        await asyncio.gather(*serving, return_exceptions=True)

    async def _serve_connection(self, connection: socket.socket) -> None:
        loop = asyncio.get_running_loop()

        def protocol() -> asyncio.Protocol:
            made: asyncio.Protocol = self.config.http_protocol_class(  # type: ignore[call-arg]
                config=self.config, server_state=self.server_state, app_state=self.lifespan.state, _loop=loop
            )
            return made

        await loop.connect_accepted_socket(protocol, connection, ssl=self.config.ssl)


async def _rounds() -> None:
    for _ in range(ROUNDS):
        await asyncio.sleep(0)


def _accept_waiting(listening: socket.socket) -> Iterator[socket.socket]:
    """Yield the connections that the kernel holds; other processes may take some of them."""
    for _ in range(MOST_ACCEPTED):
        try:
            connection, _address = listening.accept()
        except OSError:  # none waits, or there are too many open files
            return
        connection.setblocking(False)
        yield connection
