"""HTTP requests byte for byte, which no HTTP library would send."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from mlops_img.serving.errors import Code
from mlops_img.serving.responses import SECURITY_HEADERS

BOUNDARY = "edge"
FORM = f"multipart/form-data; boundary={BOUNDARY}"


@dataclass(frozen=True)
class Answer:
    """A response.

    Attributes:
        headers: names in lower case.
    """

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        """Return the parsed body."""
        return json.loads(self.body)


def send(url: str, parts: bytes | Iterable[bytes], timeout: float = 30.0) -> Answer | None:
    """Send bytes and wait for the response.

    Args:
        url: URL of the service; only its host and port are used.
        parts: the request, whole or in parts; the response may arrive before the last part is sent.
        timeout: seconds for each operation on the socket.

    Returns:
        The first final response; None if the connection was closed without one.
    """
    where = urlsplit(url)
    with socket.create_connection((where.hostname, where.port), timeout) as connection:
        # The server may close the connection of a refused request early; the response can be read nevertheless.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for part in [parts] if isinstance(parts, bytes) else parts:
                connection.sendall(part)
        response = http.client.HTTPResponse(connection)
        try:
            response.begin()
            headers = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, headers, response.read())
        except (ConnectionResetError, http.client.RemoteDisconnected):
            return None


def request(
    body: bytes = b"", *, line: str = "POST /predict HTTP/1.1", length: str | None = "", **headers: str
) -> bytes:
    """Return a request.

    Args:
        body: body of the request.
        line: request line.
        length: value of Content-Length; "" is the size of the body, None omits the header.
        headers: further headers; `_` in a name stands for `-`.
    """
    fields = {"Host": "127.0.0.1", "Content-Type": FORM}
    if length is not None:
        fields["Content-Length"] = length or str(len(body))
    fields |= {name.replace("_", "-"): value for name, value in headers.items()}
    head = "\r\n".join([line, *(f"{name}: {value}" for name, value in fields.items())])
    return f"{head}\r\n\r\n".encode("latin-1") + body


def form(*parts: bytes) -> bytes:
    """Return a multipart form with parts."""
    return b"".join(b"--edge\r\n" + part + b"\r\n" for part in parts) + b"--edge--\r\n"


def part(content: bytes, name: bytes = b"image", filename: bytes | None = b"a.png") -> bytes:
    """Return one part of a form: a file, or a text field without a file name."""
    file = b"" if filename is None else b'; filename="' + filename + b'"'
    return b'Content-Disposition: form-data; name="' + name + b'"' + file + b"\r\n\r\n" + content


# What reveals how the service is built: paths, tracebacks, libraries.
REVEALING = re.compile(
    r"PIL|pillow|traceback|exception|errno|site-packages|\.py\b|(?<![\w.])/\w|<class|0x[0-9a-f]{4}", re.I
)


def problem(answer: Answer) -> Code:
    """Return the code of an error response, and check its shape and headers."""
    assert answer.headers["content-type"] == "application/json", answer
    body = answer.json()
    assert set(body) == {"error"}, answer
    error = body["error"]
    assert set(error) == {"code", "message", "request_id"}, answer
    assert answer.status == Code(error["code"]).status, answer
    assert error["request_id"] == answer.headers["x-request-id"], answer
    assert error["message"].endswith("."), answer
    assert not REVEALING.search(error["message"]), answer
    assert {name.lower() for name in SECURITY_HEADERS} <= answer.headers.keys(), answer
    return Code(error["code"])
