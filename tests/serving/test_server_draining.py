"""Connections to a server that drains: all are answered, and none is waited for without end."""

from __future__ import annotations

import http.client
import socket
import threading
import time
from typing import Any

import pytest

from mlops_img.serving import protocol as protocol_module
from mlops_img.serving import server as server_module
from mlops_img.serving import transport
from mlops_img.serving.server import is_draining
from tests.helpers.framing_server import CLOSE, GET, running, statuses
from tests.helpers.service_process import until


def test_shutdown_resets_no_connection() -> None:
    """All established connections get a response, including those in the kernel's queue."""
    clients = 60
    answers: list[int] = []
    problems: list[BaseException] = []
    begun, stop = threading.Event(), threading.Event()

    def ask(address: Any) -> None:
        while not stop.is_set():
            try:
                connection = socket.create_connection(address, timeout=60)
            except OSError:
                return  # refused: the socket is closed
            begun.set()
            start = time.monotonic()
            try:
                with connection:
                    connection.sendall(CLOSE)
                    response = http.client.HTTPResponse(connection)
                    response.begin()
                    answers.append(response.status)
                    response.read()
            except http.client.RemoteDisconnected as problem:
                # Correct if the client was late: on a busy machine it may not have been scheduled in time.
                if time.monotonic() - start < protocol_module.IDLE_GRACE / 2:
                    problems.append(problem)
            except Exception as problem:
                problems.append(problem)

    with running() as (_, address):
        threads = [threading.Thread(target=ask, args=(address,)) for _ in range(clients)]
        for thread in threads:
            thread.start()
        assert begun.wait(60)
    stop.set()
    for thread in threads:
        thread.join()
    assert problems == []
    assert set(answers) == {200}


def test_connections_queued_during_shutdown_are_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even those that arrive after the loop has stopped accepting, so that they stay in the kernel's queue."""
    clients: list[socket.socket] = []

    async def late() -> None:
        if not clients:
            clients.extend(socket.create_connection(address, timeout=60) for _ in range(20))
            for client in clients:
                client.sendall(CLOSE)

    monkeypatch.setattr(server_module, "_pass_rounds", late)
    with running(drop=False) as (_, address):
        pass
    assert len(clients) == 20
    for client in clients:
        with client:
            assert statuses(client.recv(1000)) == [200]


def test_request_received_during_shutdown_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol_module, "IDLE_GRACE", 60.0)
    with running() as (server, address), socket.create_connection(address, timeout=60) as late:
        until(lambda: server.server_state.connections, within=60)
        server.should_exit = True
        until(lambda: is_draining(server.server_state), within=60)
        late.sendall(GET)
        received = late.recv(1000)
        assert statuses(received) == [200]
        assert b"connection: close" in received


def test_shutdown_does_not_wait_for_idle_connections() -> None:
    with running() as (server, address), socket.create_connection(address, timeout=60) as silent:
        until(lambda: server.server_state.connections, within=60)
        server.should_exit = True
        assert silent.recv(1000) == b""


def test_lingering_is_limited() -> None:
    """A client that does not close its side loses its connection."""
    with running() as (server, address), socket.create_connection(address, timeout=60) as stubborn:
        stubborn.sendall(b"no HTTP\r\n\r\n")
        while stubborn.recv(1000):
            pass
        until(lambda: not server.server_state.connections, within=60)
    assert transport.LINGER < 60
