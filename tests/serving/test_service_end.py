"""Start and shutdown of the processes: a port in use, a killed supervisor, and clients during a shutdown."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlops_img.serving.protocol import IDLE_GRACE
from mlops_img.serving.supervisor import PID_VARIABLE
from tests.helpers.hostile_requests import good
from tests.helpers.hostile_uploads import tiff
from tests.helpers.raw_http import form, part, request, send
from tests.helpers.service_process import Service, serving, until
from tests.serving.test_service_start import serve

# One process starts the service for all of them.
pytestmark = pytest.mark.xdist_group("service_end")

CLIENTS = 24


@pytest.fixture
def bundle(trained: Path) -> Path:
    return trained / "bundles" / "latest"


@pytest.fixture
def used_port() -> Iterator[int]:
    """A port that another socket listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()[1]


def test_port_in_use_is_one_line(bundle: Path, tmp_path: Path, used_port: int) -> None:
    ended = serve(tmp_path, port=used_port, bundle=bundle)
    assert ended.returncode == 2
    assert ended.stderr == (
        f"error: port {used_port} is in use. Stop the other process or choose another port: "
        "bentoml serve --port <number>, or PORT=<number>\n"
    )
    assert ended.stdout == ""


def alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def test_workers_of_a_killed_supervisor_end_and_free_the_port(bundle: Path, tmp_path: Path) -> None:
    with serving(bundle, tmp_path, workers=2) as service:
        until(lambda: service.log.read_text().count("initialized") == 2)
        workers = service.workers()
        assert len(workers) == 2
        os.kill(service.process.pid, signal.SIGKILL)
        service.process.wait()
        try:
            until(lambda: not any(map(alive, workers)), within=120)
        finally:
            for worker in filter(alive, workers):
                os.kill(worker, signal.SIGKILL)
        port = int(service.url.rsplit(":", 1)[1])
        with socket.create_server(("127.0.0.1", port)):
            pass


class Clients:
    """Clients that connect repeatedly until they are refused, and the outcomes of their connections."""

    def __init__(self, service: Service) -> None:
        self.address = ("127.0.0.1", int(service.url.rsplit(":", 1)[1]))
        self.answered: list[int] = []
        self.problems: list[str] = []
        self.threads = [threading.Thread(target=self._run, args=(number,)) for number in range(CLIENTS)]

    def _run(self, number: int) -> None:
        sent = good() if number % 2 else request(line="GET /livez HTTP/1.1", length=None)
        while True:
            try:
                connection = socket.create_connection(self.address, timeout=120)
            except ConnectionRefusedError:
                return
            start = time.monotonic()
            try:
                with connection:
                    connection.sendall(sent)
                    response = http.client.HTTPResponse(connection)
                    response.begin()
                    response.read()
                    self.answered.append(response.status)
            except http.client.RemoteDisconnected as problem:
                # Correct if the client was late: on a busy machine it may not have been scheduled in time.
                if time.monotonic() - start < IDLE_GRACE / 2:
                    self.problems.append(repr(problem))
            except (OSError, http.client.HTTPException) as problem:
                self.problems.append(repr(problem))


@pytest.mark.parametrize("workers", [1, 2])
def test_shutdown_resets_no_connection(bundle: Path, tmp_path: Path, workers: int) -> None:
    with serving(bundle, tmp_path, workers=workers, timeout=60) as service:
        until(lambda: service.log.read_text().count("initialized") == workers)
        clients = Clients(service)
        for thread in clients.threads:
            thread.start()
        until(lambda: len(clients.answered) > 2 * CLIENTS)
        service.process.send_signal(signal.SIGTERM)
        for thread in clients.threads:
            thread.join()
        assert service.process.wait(60) == 0
        assert clients.problems == []
        assert set(clients.answered) <= {200, 429}
        assert "Traceback" not in service.log.read_text()


WAIT_FOR_FILE = """
import os, pathlib, sys, time
if {condition}:
    (pathlib.Path(__file__).parent / "waiting").touch()
    while not (pathlib.Path(__file__).parent / "go_on").exists():
        time.sleep(0.02)
"""
# Where a worker is held up: when its interpreter starts, or when it loads the application.
STAGES = {
    "sitecustomize": "'worker' in ' '.join(sys.orig_argv)",
    "slow_plugin": f"'{PID_VARIABLE}' in os.environ",
}


@pytest.mark.parametrize("stage", STAGES)
def test_queued_client_is_answered_if_a_worker_is_stopped_while_it_loads(
    bundle: Path, tmp_path: Path, stage: str
) -> None:
    (tmp_path / f"{stage}.py").write_text(WAIT_FOR_FILE.format(condition=STAGES[stage]))
    plugins = {"plugins": stage} if stage == "slow_plugin" else {}
    with serving(bundle, tmp_path, ready=False, **plugins) as service:
        until((tmp_path / "waiting").exists)
        address = ("127.0.0.1", int(service.url.rsplit(":", 1)[1]))
        with socket.create_connection(address, timeout=120) as client:
            client.sendall(request(line="GET /model HTTP/1.1", length=None))
            service.process.send_signal(signal.SIGTERM)
            until(lambda: refuses(address))  # the supervisor has closed its socket; a worker still holds it
            (tmp_path / "go_on").touch()
            response = http.client.HTTPResponse(client)
            response.begin()
            assert response.status == 200
            assert b"test_resnet" in response.read()
        assert service.process.wait(120) == 0


def refuses(address: tuple[str, int]) -> bool:
    """Return whether no new connection is made: the kernel drops the requests for it."""
    try:
        socket.create_connection(address, timeout=0.5).close()
    except OSError:
        return True
    return False


def test_damaged_tiffs_write_nothing_but_json_to_the_log(bundle: Path, tmp_path: Path) -> None:
    with serving(bundle, tmp_path) as service:
        for _ in range(3):
            answer = send(service.url, request(form(part(tiff(64, 64, b"\xff" * 4000)))))
            assert answer is not None
            assert answer.status == 400
        log = service.log.read_text()
        assert "LZW" not in log
        assert "TIFF" not in log
