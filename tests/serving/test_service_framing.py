"""Unusual and invalid HTTP framing, byte for byte, with a worker's protocol and a small application."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest

from tests.helpers.framing_server import CHUNKED, CLOSE, GET, exchange, running, statuses


@pytest.fixture(scope="module")
def address() -> Iterator[Any]:
    with running() as (_, where):
        yield where


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
