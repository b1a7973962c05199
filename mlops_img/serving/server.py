"""uvicorn's server, shut down without resetting a connection: the kernel resets those that no process accepted."""

from __future__ import annotations

import asyncio
import socket

import uvicorn
from typing_extensions import override
from uvicorn.server import ServerState

from mlops_img.serving import supervisor
from mlops_img.serving.listening import accept_waiting, drop_new_connections

# Seconds for connections whose handshake is under way when new ones are no longer accepted: a round trip.
HANDSHAKE = 0.2
# Rounds of the event loop from an accepted connection to the first call of its protocol.
ROUNDS = 10


class _DrainingState(ServerState):
    draining = False


def is_draining(state: ServerState) -> bool:
    """Return whether a server is shutting down and answers its last requests."""
    return getattr(state, "draining", False)


class DrainingServer(uvicorn.Server):
    """uvicorn's server, which by itself closes its socket together with connections that wait to be accepted."""

    # Whether this process was started by it.
    in_use = False

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.server_state = _DrainingState()

    @override
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Load the application and listen; a signal that arrived earlier ends the server right after that."""
        DrainingServer.in_use = True
        supervisor.unblock_signals()
        await super().startup(sockets)

    @override
    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept the connections that wait, then close the socket and answer the last requests."""
        self.server_state.draining = True  # type: ignore[attr-defined]
        if supervisor.is_gone():
            for listening in sockets or ():
                drop_new_connections(listening)
        await asyncio.sleep(HANDSHAKE)
        loop = asyncio.get_running_loop()
        for listening in sockets or ():
            loop.remove_reader(listening)
        # Connections that the loop has accepted need the open server to reach their protocol.
        await _pass_rounds()
        # No await from here until the socket is closed.
        accepted = [connection for listening in sockets or () for connection in accept_waiting(listening)]
        for server in self.servers:
            server.close()
        serving = [asyncio.create_task(self._serve_connection(connection)) for connection in accepted]
        await _pass_rounds()
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


async def _pass_rounds() -> None:
    for _ in range(ROUNDS):
        await asyncio.sleep(0)
