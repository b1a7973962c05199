"""Unusual and invalid HTTP framing, byte for byte, with a worker's protocol and a small application."""

from __future__ import annotations

import http.client
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import uvicorn

from mlops_img.serving import protocol as protocol_module
from mlops_img.serving import server as server_module
from mlops_img.serving import transport
from mlops_img.serving.listening import drop_new_connections
from mlops_img.serving.protocol import GuardedHttpProtocol
from mlops_img.serving.server import DrainingServer, is_draining
from tests.helpers.service_process import until

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


@pytest.fixture(scope="module")
def address() -> Iterator[Any]:
    with running() as (_, where):
        yield where


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


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET / HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET http://here/ HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost : a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX Y: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: b\r\n folded\r\n\r\n",
        b"GET / HTTP/1.1\r\n Host: a\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nabc",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +5\r\n\r\nhello",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\nabc",
        b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 70_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 20_000 + b"\r\n",
    ],
)
def test_invalid_head_is_refused(address: Any, head: bytes) -> None:
    received = exchange(address, head)
    assert statuses(received) == [400]
    assert b'"code":"bad_request"' in received


@pytest.mark.parametrize(
    ("head", "path"),
    [
        (b"GET /old HTTP/1.0\r\n\r\n", b"/old"),
        (b"GET /empty-host HTTP/1.1\r\nHost:\r\nConnection: close\r\n\r\n", b"/empty-host"),
        (b"GET http://other/absolute HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n", b"/absolute"),
        (b"OPTIONS * HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n", b"*"),
        (b"GET /" + b"a" * 60_000 + b" HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n", b"/aaa"),
    ],
)
def test_unusual_but_valid_head_is_answered(address: Any, head: bytes, path: bytes) -> None:
    received = exchange(address, head)
    assert statuses(received) == [200]
    assert received.split(b"\r\n\r\n", 1)[1].startswith(path)


@pytest.mark.parametrize("expected", [b"200-ok", b"100-continue, other"])
def test_unsupported_expectation_is_refused(address: Any, expected: bytes) -> None:
    received = exchange(address, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: %s\r\n\r\n" % expected)
    assert statuses(received) == [417]
    assert b'"code":"expectation_failed"' in received


def test_expectation_of_an_http_1_0_client_is_ignored(address: Any) -> None:
    assert statuses(exchange(address, b"POST / HTTP/1.0\r\nContent-Length: 2\r\nExpect: a\r\n\r\nab")) == [200]


def test_continue_is_sent_if_expected(address: Any) -> None:
    head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nConnection: close\r\nExpect: 100-Continue\r\n\r\n"
    with socket.create_connection(address, timeout=60) as connection:
        connection.sendall(head)
        assert connection.recv(1000).startswith(b"HTTP/1.1 100 ")
        connection.sendall(b"ab")
        assert connection.recv(1000).startswith(b"HTTP/1.1 200 ")


def test_trailers_do_not_become_headers(address: Any) -> None:
    body = b"2\r\nab\r\n0\r\nAuthorization: Bearer x\r\nContent-Type: y\r\n\r\n"
    received = exchange(address, CHUNKED + body + CLOSE)
    assert statuses(received) == [200, 200]
    assert b"/whole host,transfer-encoding 2" in received


@pytest.mark.parametrize(
    "excess",
    [b"2;" + b"a" * 2**20, b"2\r\nab\r\n0\r\nX: " + b"a" * 2**20, b"2\r\nab\r\n0\r\n" + b"X: y\r\n" * 200_000],
    ids=["extension", "trailer", "trailers"],
)
def test_excessive_framing_is_refused(address: Any, excess: bytes) -> None:
    pieces = [CHUNKED, *(excess[place : place + 50_000] for place in range(0, len(excess), 50_000))]
    assert statuses(exchange(address, *pieces)) == [400]


def test_many_small_chunks_are_accepted(address: Any) -> None:
    body = b"1;a=b\r\nx\r\n" * 50_000 + b"0\r\n\r\n"
    assert b"/whole host,transfer-encoding 50000" in exchange(address, CHUNKED + body + CLOSE)


def test_pipelined_requests_are_answered_in_order(address: Any) -> None:
    received = exchange(address, GET * 50 + CLOSE)
    assert statuses(received) == [200] * 51
    assert received.endswith(b"/last host,connection 0")


@pytest.mark.parametrize("bad", [b"no HTTP\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n", b"GET /" + b"a" * 200_000])
def test_invalid_head_after_a_request_does_not_affect_its_response(address: Any, bad: bytes) -> None:
    received = exchange(address, GET + GET + bad)
    assert statuses(received) == [200, 200]


def test_invalid_body_after_a_request_does_not_affect_its_response(address: Any) -> None:
    assert statuses(exchange(address, GET + CHUNKED + b"zz\r\n")) == [200]
    assert statuses(exchange(address, CHUNKED + b"zz\r\n")) == [400]


def test_connection_is_kept_after_a_refused_body(address: Any) -> None:
    refused = b"POST /early HTTP/1.1\r\nHost: here\r\nContent-Length: 100000\r\n\r\n"
    with socket.create_connection(address, timeout=60) as connection:
        connection.sendall(refused + b"x" * 10)
        received = b""
        while b"/early" not in received:
            received += connection.recv(1000)
        connection.sendall(b"x" * 99_990 + CLOSE)
        while more := connection.recv(1000):
            received += more
    assert statuses(received) == [413, 200]


def send_endlessly(connection: socket.socket) -> None:
    while True:
        connection.sendall(bytes(2**20))


def test_refused_body_is_not_read_endlessly(address: Any) -> None:
    with socket.create_connection(address, timeout=60) as connection:
        connection.sendall(b"POST /early HTTP/1.1\r\nHost: here\r\nContent-Length: 1000000000000000\r\n\r\n")
        while b"/early" not in connection.recv(1000):
            pass
        with pytest.raises(OSError, match=r"Broken pipe|reset by peer"):
            send_endlessly(connection)


def test_refused_body_that_does_not_arrive_ends_the_connection() -> None:
    with running(header_timeout=0.5) as (_, address):
        received = exchange(address, b"POST /early HTTP/1.1\r\nHost: here\r\nContent-Length: 1000\r\n\r\n" + b"x")
        assert statuses(received) == [413]


def test_response_to_a_refused_upload_is_not_lost_by_a_reset(address: Any) -> None:
    """A client that reads only after it has sent everything receives the response."""
    head = b"POST / HTTP/1.1\r\nContent-Length: 3000000\r\n\r\n"  # without Host
    for _ in range(5):
        assert statuses(exchange(address, head + bytes(3_000_000))) == [400]


@pytest.mark.parametrize("cut", [b"GET /mod", GET[:-2], CHUNKED, CHUNKED + b"5\r\nab"])
def test_truncated_request_is_refused(address: Any, cut: bytes) -> None:
    received = exchange(address, cut, end=True)
    assert statuses(received) == [400]
    assert b"ended early" in received


def test_half_closed_client_gets_its_response(address: Any) -> None:
    assert statuses(exchange(address, GET, end=True)) == [200]


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
