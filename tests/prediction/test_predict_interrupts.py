"""Signals: a command that was stopped or killed leaves whole parts, and the same command goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mlops_img.errors import EXIT_STOPPED
from tests.helpers.commands import Outcome
from tests.helpers.paths import ROOT

Predict = Callable[..., Outcome]
# 30 rows in 3 parts of 2 batches each. The pipe is in the second batch of the second part.
SETTINGS = ("rows_per_part=10", "batch_size=5")
PIPE = "square/006.jpg"
DEADLINE = 240.0  # seconds; a limit for a hanging test, not a measure of anything


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


class PipedImage:
    """An image that is a named pipe: who reads it waits until the test writes it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.content = path.read_bytes()
        path.unlink()
        os.mkfifo(path)
        self.writer = -1

    def await_reader(self) -> None:
        wait_for(self._is_read)

    def _is_read(self) -> bool:
        try:
            self.writer = os.open(self.path, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:  # nobody reads it yet
            return False
        return True

    def send(self) -> None:
        os.write(self.writer, self.content)
        os.close(self.writer)


@pytest.fixture
def piped(shapes: Path) -> PipedImage:
    return PipedImage(shapes / PIPE)


@contextmanager
def started(bundle: Path, shapes: Path, output: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    call = (f"bundle={bundle}", f"input={shapes}", f"output={output}", "format=csv", *SETTINGS, *arguments)
    process = subprocess.Popen(
        [sys.executable, "-m", "mlops_img.predict", *call], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def finish(predict: Predict, piped: PipedImage, output: str) -> Outcome:
    """Run the command to its end in this process, and feed it the pipe if it reads it."""
    if Path(output, "part-00001.csv").exists():
        return predict(*SETTINGS, f"output={output}")

    def feed() -> None:
        piped.await_reader()
        piped.send()

    feeder = threading.Thread(target=feed)
    feeder.start()
    outcome = predict(*SETTINGS, f"output={output}")
    feeder.join()
    return outcome


def parts(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("part-*"))}


@pytest.mark.parametrize("workers", [0, 1])
def test_stopped_command_ends_after_the_batch_and_goes_on(
    predict: Predict, portable: Path, shapes: Path, piped: PipedImage, tmp_path: Path, workers: int
) -> None:
    output = tmp_path / "stopped"
    with started(portable, shapes, output, f"data.workers={workers}") as process:
        piped.await_reader()
        wait_for((output / "part-00000.csv").exists)
        process.send_signal(signal.SIGTERM)
        piped.send()  # afterwards: the signal has arrived when the image can be read
        assert process.stdout is not None
        rest = process.stdout.read()
        assert process.wait(DEADLINE) == EXIT_STOPPED
    assert "SIGTERM: stopping after this batch" in rest
    # The batch with the pipe is the last one of its part. Without workers it is the present one, and so it is written;
    # a worker reads ahead of the present one.
    written = ["part-00000.csv", "part-00001.csv"] if (output / "part-00001.csv").exists() else ["part-00000.csv"]
    assert workers or len(written) == 2
    assert f"stopped: {len(written)} of 3 parts are in {output}. The same command goes on with the next one" in rest
    assert sorted(os.listdir(output)) == ["_manifest.json", *written]
    assert finish(predict, piped, "stopped").code == 0
    assert finish(predict, piped, "whole").code == 0
    assert parts(output) == parts(tmp_path / "whole")
    assert len(parts(output)) == 3


def test_killed_command_leaves_whole_parts_and_goes_on(
    predict: Predict, portable: Path, shapes: Path, piped: PipedImage, tmp_path: Path
) -> None:
    output = tmp_path / "killed"
    with started(portable, shapes, output, "data.workers=0") as process:
        piped.await_reader()
        process.kill()
        assert process.wait(DEADLINE) == -signal.SIGKILL
        os.close(piped.writer)
    assert sorted(os.listdir(output)) == ["_manifest.json", "part-00000.csv"]
    # What a process leaves that is killed while it writes.
    (output / f".part-00001.csv.{process.pid}.part").write_bytes(b"path,row")
    assert finish(predict, piped, "killed").code == 0
    assert finish(predict, piped, "whole").code == 0
    assert sorted(os.listdir(output)) == ["_manifest.json", "part-00000.csv", "part-00001.csv", "part-00002.csv"]
    assert parts(output) == parts(tmp_path / "whole")
