"""Processes that torchrun started: finding one another, handing over what rank 0 chose, and ending together.

Everything here goes through torchrun's key-value store, which exists before the configuration is known and outlives
a rank. This module imports PyTorch only in such a process, so that `--help` stays quick elsewhere.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mlops_img.errors import EXIT_FAILED

if TYPE_CHECKING:
    import torch

    from mlops_img.core.distributed import World

VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
JOIN_SECONDS = 300.0  # until all ranks have been started and rank 0 has chosen the run folder
FAILURE = "failure"
# Seconds in which ranks that lost another one look for its error, and after which a rank that is stuck ends itself.
GRACE_SECONDS = 4.0
STUCK_SECONDS = 8.0
POLL_SECONDS = 0.2
PACKAGE = Path(__file__).parents[1]


class LostPeerError(RuntimeError):
    """Another rank knows why the run ends, or has ended itself."""


class Failure(NamedTuple):
    """Why a rank ended all of them.

    Attributes:
        rank: of the process.
        code: its exit code.
        line: what it printed.
    """

    rank: int
    code: int
    line: str


@dataclass
class Launch:
    """The store of the processes that torchrun started together.

    Attributes:
        world: the place of this process.
        store: of this attempt; keys of an earlier one (`--max-restarts`) are not in it.
        lasting: of all attempts.
        attempt: how often torchrun has restarted the processes.
    """

    world: World
    store: Any
    lasting: Any
    attempt: int = 0
    timeout_seconds: float = JOIN_SECONDS  # how long a rank waits for another one

    def set(self, key: str, value: Any) -> None:
        """Store plain values under a key, for all ranks."""
        self.store.set(key, json.dumps(value))

    def get(self, key: str) -> Any:
        """Wait until a rank has stored something under the key, and return it."""
        return json.loads(self.store.get(key))

    def differing(self, key: str, value: str) -> list[int]:
        """On rank 0, return the ranks that called this with another value; an empty list elsewhere."""
        self.set(f"{key}/{self.world.rank}", value)
        if not self.world.leads:
            return []
        return [rank for rank in range(1, self.world.size) if self.get(f"{key}/{rank}") != value]

    def meet(self) -> None:
        """Wait until all ranks have called this."""
        self.set(f"ready/{self.world.rank}", True)
        if self.world.leads:
            for rank in range(1, self.world.size):
                self.get(f"ready/{rank}")
            self.set("all ready", True)
        self.get("all ready")

    def remember(self, key: str, value: Any) -> None:
        """Store plain values for this attempt and the ones after it."""
        self.lasting.set(key, json.dumps(value))

    def remembered(self, key: str) -> Any:
        """Return what this or an earlier attempt remembered, or None."""
        return json.loads(self.lasting.get(key)) if self.lasting.check([key]) else None

    @property
    def failure(self) -> Failure | None:
        """The first failure of a rank in this attempt, or None."""
        return Failure(*self.get(FAILURE)) if self.store.check([FAILURE]) else None

    def claim_failure(self, code: int, line: str) -> Failure:
        """Store this rank's failure unless there is one already; returns the one that is stored."""
        own = json.dumps([self.world.rank, code, line])
        return Failure(*json.loads(self.store.compare_set(FAILURE, "", own)))

    def await_failure(self) -> tuple[Failure | None, list[int]]:
        """Wait a moment for the error of a rank that was lost.

        Returns:
            The error, and the ranks that have not noticed that one was lost: it is among them.
        """
        self.set(f"lost/{self.world.rank}", True)
        end = time.monotonic() + GRACE_SECONDS
        while (failure := self.failure) is None and time.monotonic() < end:
            time.sleep(POLL_SECONDS)
        silent = [rank for rank in range(self.world.size) if not self.store.check([f"lost/{rank}"])]
        return failure, silent

    def end_when_stuck(self) -> None:
        """End the process, in the background, if another rank failed and this one still waits for it."""

        def watch() -> None:
            try:
                while (failure := self.failure) is None:
                    time.sleep(5 * POLL_SECONDS)
            except RuntimeError:
                return  # the store has ended, and torchrun with it
            time.sleep(STUCK_SECONDS)
            os._exit(failure.code)

        threading.Thread(target=watch, name="failure of another rank", daemon=True).start()


_launch: Launch | None = None


def current_launch() -> Launch | None:
    """Return the launch that this process has joined; None if it works alone."""
    return _launch


def join() -> Launch | None:
    """Join the other processes of this torchrun; None if this process was started alone.

    Raises:
        RuntimeError: their store cannot be reached.
    """
    global _launch
    if any(name not in os.environ for name in VARIABLES) or int(os.environ["WORLD_SIZE"]) == 1:
        return None
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    from mlops_img.core.distributed import World

    lasting, rank, size = next(rendezvous("env://", timeout=timedelta(seconds=JOIN_SECONDS)))
    world = World(rank, size, int(os.environ.get("LOCAL_RANK", rank)), int(os.environ.get("LOCAL_WORLD_SIZE", size)))
    # Restarted processes meet in the same store, where the addresses of the ones before would mislead them.
    attempt = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))
    _launch = Launch(world, PrefixStore(f"mlops_img/attempt-{attempt}", lasting), lasting, attempt)
    _launch.end_when_stuck()
    return _launch


def start_group(launch: Launch, device: torch.device, timeout_seconds: float) -> None:
    """Start torch.distributed's process group: gloo for tensors of the CPU, NCCL for those of GPUs.

    Args:
        launch: from `join`.
        device: of this rank.
        timeout_seconds: how long a rank waits for another one.
    """
    import torch.distributed as dist

    launch.meet()  # the timeout must not count how much longer one rank took to import everything
    dist.init_process_group(
        "gloo" if device.type == "cpu" else "cpu:gloo,cuda:nccl",
        store=launch.store,
        rank=launch.world.rank,
        world_size=launch.world.size,
        timeout=timedelta(seconds=timeout_seconds),
    )
    launch.timeout_seconds = timeout_seconds


def end_group() -> None:
    """End the process group, if there is one."""
    if _launch is not None:
        import torch.distributed as dist

        if dist.is_initialized():
            dist.destroy_process_group()


def is_lost_peer(error: BaseException) -> bool:
    """Return whether this is torch.distributed's error of a rank that has ended or does not answer."""
    if _launch is None or not isinstance(error, RuntimeError):
        return False
    import torch.distributed as dist

    return isinstance(error, LostPeerError | dist.DistError) or "gloo" in str(error).lower()


def end_together(launch: Launch, error: BaseException, code: int, line: str) -> tuple[int, str | None]:
    """Return the exit code of this process after an error, and the line to print; None where another rank prints it.

    Args:
        launch: of the ranks.
        error: what ended this one.
        code: the exit code for it.
        line: what describes it.
    """
    if is_lost_peer(error):
        failure, silent = launch.await_failure()
        if failure is not None:
            return failure.code, None
        code, line = EXIT_FAILED, _describe_loss(launch, error, silent)
    line = f"rank {launch.world.rank}: {line}"
    first = launch.claim_failure(code, line)
    return (code, line) if first.rank == launch.world.rank else (first.code, None)


def _describe_loss(launch: Launch, error: BaseException, silent: list[int]) -> str:
    place = "".join(getattr(error, "__notes__", ()))
    who = f"rank {', '.join(map(str, silent))}" if silent else "another rank"
    if "timed out" in str(error).lower() or "timeout" in str(error).lower():
        reason = f"no answer from {who} within train.timeout_seconds={launch.timeout_seconds:g}"
    elif silent:
        reason = f"{who} has ended"
    else:
        reason = " ".join(str(error).split())
    return f"{place}{reason}. resume=auto resumes the run from its last checkpoint"


def code_digest() -> str:
    """Return a digest of the package's source files and of PyTorch's version."""
    import torch

    digest = hashlib.sha256(str(torch.__version__).encode())
    for path in sorted(PACKAGE.rglob("*.py")):
        digest.update(str(path.relative_to(PACKAGE)).encode() + path.read_bytes())
    return digest.hexdigest()
