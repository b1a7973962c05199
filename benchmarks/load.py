"""A load on a server: prepared requests over connections of its own, with as little work between them as can be."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

BOUNDARY = "mlopsimgload"
# Seconds after which a connection is not used again, as with other clients: servers may be about to close it.
IDLE = 4.0


def request(path: str, field_name: str, photo: Path) -> bytes:
    """Return the bytes of a POST with one photo as a multipart form."""
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{field_name}"; filename="{photo.name}"\r\n'
    head += "Content-Type: image/jpeg\r\n\r\n"
    body = head.encode() + photo.read_bytes() + f"\r\n--{BOUNDARY}--\r\n".encode()
    lines = (
        f"POST {path} HTTP/1.1",
        "Host: 127.0.0.1",
        f"Content-Type: multipart/form-data; boundary={BOUNDARY}",
        f"Content-Length: {len(body)}",
    )
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


@dataclass
class Answers:
    """What came back: the status and the seconds of each request, and how long all of it took."""

    statuses: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    duration: float = 0.0

    def taken(self, *, accepted: bool) -> list[float]:
        """Return the seconds of the requests that were answered by 200, or of the others."""
        return [taken for status, taken in zip(self.statuses, self.seconds, strict=True) if (status == 200) == accepted]

    @property
    def rate(self) -> float:
        """Requests a second that were answered by 200."""
        return len(self.taken(accepted=True)) / self.duration

    def percentile(self, share: float, *, accepted: bool = True) -> float:
        """Return this percentile of the times, in milliseconds."""
        taken = self.taken(accepted=accepted)
        return 1e3 * float(np.percentile(taken, share)) if taken else float("nan")


class Connection:
    """A connection that is kept alive, and opened anew when the server closed it."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.reader: asyncio.StreamReader | None = None
        self.used = 0.0

    async def ask(self, wanted: bytes) -> int:
        """Send a request and read its answer whole; returns the status."""
        if self.reader is not None and (self.reader.at_eof() or time.perf_counter() - self.used > IDLE):
            self.close()
        if self.reader is None:
            self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
        self.writer.write(wanted)
        head = await self.reader.readuntil(b"\r\n\r\n")
        lines = head.lower().split(b"\r\n")
        lengths = [int(line.split(b":")[1]) for line in lines if line.startswith(b"content-length:")]
        await self.reader.readexactly(lengths[0])
        if b"connection: close" in lines:
            self.close()
        self.used = time.perf_counter()
        return int(head[9:12])

    def close(self) -> None:
        """Close it; the next request opens another."""
        if self.reader is not None:
            self.writer.close()
            self.reader = None


def closed_loop(port: int, requests: Sequence[bytes], clients: int, seconds: float, most: int = 10**9) -> Answers:
    """Let clients ask one after the other, each as soon as it has its answer, for so long or so often."""
    answers = Answers()

    async def client(number: int, end: float) -> None:
        connection = Connection(port)
        place = number
        while time.perf_counter() < end and len(answers.statuses) < most:
            start = time.perf_counter()
            status = await connection.ask(requests[place % len(requests)])
            answers.seconds.append(time.perf_counter() - start)
            answers.statuses.append(status)
            place += clients
        connection.close()

    async def all_clients() -> None:
        start = time.perf_counter()
        await asyncio.gather(*(client(number, start + seconds) for number in range(clients)))
        answers.duration = time.perf_counter() - start

    _run(all_clients)
    return answers


def open_loop(port: int, requests: Sequence[bytes], rate: float, seconds: float) -> Answers:
    """Send requests at a fixed rate, whether the earlier ones were answered or not."""
    answers = Answers()
    idle: list[Connection] = []

    async def one(wanted: bytes) -> None:
        connection = idle.pop() if idle else Connection(port)
        start = time.perf_counter()
        try:
            status = await connection.ask(wanted)
        except (OSError, asyncio.IncompleteReadError):
            status = 0
            connection.reader = None
        answers.seconds.append(time.perf_counter() - start)
        answers.statuses.append(status)
        idle.append(connection)

    async def arrivals() -> None:
        start = time.perf_counter()
        tasks = []
        for number in range(int(rate * seconds)):
            await asyncio.sleep(max(0.0, start + number / rate - time.perf_counter()))
            tasks.append(asyncio.create_task(one(requests[number % len(requests)])))
        await asyncio.gather(*tasks)
        answers.duration = time.perf_counter() - start
        for connection in idle:
            connection.close()

    _run(arrivals)
    return answers


def _run(load: Callable[[], Coroutine[None, None, None]]) -> None:
    import uvloop  # of an extra: where it is missing, the benchmark says so and is skipped

    uvloop.run(load())
