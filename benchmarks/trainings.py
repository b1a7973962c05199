"""Trainings as processes of their own: what they print and when, and what they cost."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from mlops_img.errors import UserError

ROOT = Path(__file__).parents[1]


@dataclass
class Output:
    """What a process printed: each line with the seconds since its start."""

    lines: list[tuple[float, str]] = field(default_factory=list)

    @property
    def text(self) -> str:
        """Everything that was printed."""
        return "".join(line for _, line in self.lines)

    def numbers(self, pattern: str) -> list[tuple[float, float]]:
        """Return the seconds and the last group of each line that matches, as a number."""
        found = ((seconds, re.search(pattern, line)) for seconds, line in self.lines)
        return [(seconds, float(match.groups()[-1])) for seconds, match in found if match]


def python(*arguments: str, cwd: Path, cache: Path | None = None, kill_after: float | None = None) -> Output:
    """Run Python as a process of its own.

    Args:
        arguments: of Python.
        cwd: the folder to run in.
        cache: takes the place of ~/.cache; None: one in `cwd`.
        kill_after: seconds after which it is killed, which is then no failure.

    Raises:
        UserError: it failed; with the end of what it printed.
    """
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(paths),
        "XDG_CACHE_HOME": str(cache or cwd / "cache"),
        "PYTHONUNBUFFERED": "1",
    }
    start, output = time.perf_counter(), Output()
    # In a process group of its own, which its data workers belong to.
    process = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=cwd,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        process_group=0,
    )
    assert process.stdout is not None
    killed = threading.Event()

    def kill() -> None:
        killed.set()
        os.killpg(process.pid, signal.SIGKILL)

    timer = threading.Timer(kill_after or threading.TIMEOUT_MAX, kill)
    timer.daemon = True
    timer.start()
    try:
        for line in process.stdout:
            output.lines.append((time.perf_counter() - start, line))
        process.wait()
    except BaseException:
        kill()
        process.wait()
        raise
    finally:
        timer.cancel()
    if process.returncode and not killed.is_set():
        raise UserError(f"{' '.join(arguments)} failed:\n{output.text[-2000:]}")
    return output


def train(folder: Path, *overrides: str, cache: Path | None = None) -> Output:
    """Train with these overrides into the run folder `folder`/run."""
    arguments = ("-m", "mlops_img.train", *overrides, "tracking=none", f"hydra.run.dir={folder / 'run'}")
    return python(*arguments, cwd=folder, cache=cache)


def accuracies(folder: Path) -> tuple[float, float]:
    """Return the validation and test top-1 of the run in `folder`/run."""
    summary = json.loads((folder / "run" / "summary.json").read_text(encoding="utf-8"))
    return summary["val.top1"], summary["test.top1"]


def processor_seconds() -> float:
    """Return what all ended child processes have used, over all cores."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
