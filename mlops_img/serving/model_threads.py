"""The threads that run the model: several for batches that are computed at the same time, one for a batch on its own.

PyTorch's number of threads per operator is a setting of each thread. With one of them per core, no core waits for
another; but a batch that comes alone is answered sooner when all cores work on it.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor

import torch


class ModelThreads:
    """Threads for as many runs of the model at the same time as there are cores for it.

    Attributes:
        cores: of this worker.
        runs: how many batches are computed at the same time, at most.
    """

    def __init__(self, cores: int = 1, *, concurrent: bool = True) -> None:
        """Start no thread yet. A model that is not `concurrent` runs one batch at a time, on all cores."""
        self.cores = cores
        self.runs = cores if concurrent else 1
        self._alone = _executor(1, cores)
        self._shared = _executor(self.runs, 1) if self.runs > 1 else self._alone

    def executor(self, *, alone: bool) -> Executor:
        """Return where to run a batch: on all cores if no other is there, otherwise on one."""
        return self._alone if alone else self._shared

    def cores_of(self, *, alone: bool) -> int:
        """Return how many cores work on a batch there."""
        return self.cores if alone or self.runs == 1 else 1

    def in_each(self, call: Callable[[], float]) -> list[float]:
        """Call a function once on all cores, then once on one core; return what it returned."""
        kinds = (True, False) if self.runs > 1 else (True,)
        return [self.executor(alone=alone).submit(call).result() for alone in kinds]

    def close(self) -> None:
        """End the threads after the runs under way."""
        self._alone.shutdown(wait=True)
        self._shared.shutdown(wait=True)


def _executor(threads: int, cores: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="model", initializer=_use_cores, initargs=(cores,))


def _use_cores(cores: int) -> None:
    torch.get_num_threads()  # before its first use in a thread, PyTorch sets the number that was set last anywhere
    torch.set_num_threads(cores)
