"""A real service: `bentoml serve` in another process, on a free port."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import uvicorn
import uvicorn.loops.auto
import uvicorn.protocols.http.auto

from mlops_img.serving.protocol import GuardedHttpProtocol
from tests.helpers.paths import ROOT

READY_WITHIN = 300.0


@dataclass(frozen=True)
class Service:
    """A running service.

    Attributes:
        url: URL of the service.
        process: the supervisor; the workers are its children.
        log: file with its output.
    """

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    def workers(self) -> list[int]:
        """Return the process ids of the workers."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return [int(pid) for pid in children if b"worker" in Path(f"/proc/{pid}/cmdline").read_bytes()]


@contextmanager
def refused_port() -> Iterator[int]:
    """Hold a port on which no process listens, and which no other process can take."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


def free_port() -> int:
    """Return a port that no process listens on.

    It is below the ports of outgoing connections, of which other tests make many: one of them could otherwise take it
    before the service does.
    """
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)
        with socket.socket() as found, contextlib.suppress(OSError):
            found.bind(("127.0.0.1", port))
            return port


def python_path(folder: Path) -> str:
    """Return PYTHONPATH with a folder of modules in front."""
    return os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])


@contextmanager
def serving(bundle: Path, folder: Path, *, ready: bool = True, **settings: object) -> Iterator[Service]:
    """Start a service on a bundle, wait until it is ready, and stop it at the end of the block.

    Args:
        bundle: folder of the bundle.
        folder: for its log and the modules of plugins.
        ready: False: do not wait.
        settings: as in MLOPS_IMG_..., in lower case; by default one worker with one thread and a timeout of a
            minute, since the machine may be busy.
    """
    wanted = {"bundle": bundle, "workers": 1, "threads": 1, "timeout": 60, **settings}
    environment = {f"MLOPS_IMG_{name.upper()}": str(value) for name, value in wanted.items()}
    environment |= {"BENTOML_HOME": str(folder / "bentoml"), "PYTHONPATH": python_path(folder)}
    with started("mlops_img.service:ImageClassifier", folder, cwd=ROOT, ready=ready, **environment) as service:
        yield service


@contextmanager
def started(what: str | Path, folder: Path, *, cwd: Path, ready: bool = True, **environment: str) -> Iterator[Service]:
    """Start `bentoml serve` on a service or an archive; otherwise like `serving`."""
    service = _start(what, folder, cwd, environment)
    while ready and not _is_ready(service):
        # Another process may have taken the port between the check and the start.
        assert f"port {service.url.rpartition(':')[2]} is in use" in service.log.read_text(), service.log.read_text()
        service = _start(what, folder, cwd, environment)
    try:
        yield service
    finally:
        _end(service.process)


def _start(what: str | Path, folder: Path, cwd: Path, environment: dict[str, str]) -> Service:
    port = free_port()
    inherited = {name: value for name, value in os.environ.items() if name != "PROMETHEUS_MULTIPROC_DIR"}
    log = folder / f"service-{port}.log"
    command = [sys.executable, "-m", "bentoml", "serve", str(what), "--port", str(port), "--host", "127.0.0.1"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=cwd, env=inherited | environment, stdout=output, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
    return Service(f"http://127.0.0.1:{port}", process, log)


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def restore_uvicorn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the end of the test undo `replace_uvicorn`."""
    for name in ("header_timeout", "keep_alive"):
        monkeypatch.setattr(GuardedHttpProtocol, name, None, raising=False)
    for module, name in (
        (uvicorn.protocols.http.auto, "AutoHTTPProtocol"),
        (uvicorn.loops.auto, "auto_loop_factory"),
        (uvicorn, "Server"),
    ):
        monkeypatch.setattr(module, name, getattr(module, name))


def until(condition: Callable[[], object], within: float = READY_WITHIN) -> None:
    """Wait until a condition holds; fail after `within` seconds."""
    end = time.monotonic() + within
    while not condition():
        assert time.monotonic() < end, f"not within {within} s"
        time.sleep(0.02)


def _is_ready(service: Service) -> bool:
    """Wait until the service is ready; return False if it ended instead."""
    end = time.monotonic() + READY_WITHIN
    while service.process.poll() is None:
        if time.monotonic() > end:
            _end(service.process)
            raise AssertionError(service.log.read_text())
        try:
            if httpx.get(f"{service.url}/readyz", timeout=5).status_code == 200:
                return True
        except httpx.TransportError:
            time.sleep(0.1)
    return False
