"""Dynamic batching: images that wait at the same time share a run of the model; none waits for later images."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mlops_img.preprocessing.transforms import stack
from mlops_img.serving.model_threads import ModelThreads


@dataclass(frozen=True)
class Output:
    """The output of the model for one image.

    Attributes:
        logits: float32 (classes,).
        queued, computed: seconds that the image waited, and that its batch took to run.
        batch: number of images in the batch.
        cores: number of cores that worked on the batch.
    """

    logits: Tensor
    queued: float
    computed: float
    batch: int
    cores: int


@dataclass(frozen=True)
class _Job:
    pixels: Tensor
    done: asyncio.Future[Output]
    submitted: float


class Batcher:
    """Runs the waiting images, at most `max_batch` at once, on threads of its own.

    Each of the threads takes the oldest images from one queue as soon as it is free. A batch that comes while nothing
    else is there gets all cores. Images whose callers were cancelled, by a timeout, are skipped. If a batch fails, its
    images are run one by one, so that only those that cause the failure fail.
    """

    def __init__(
        self, run: Callable[[Tensor], tuple[Tensor, Tensor]], max_batch: int, threads: ModelThreads | None = None
    ) -> None:
        self.run = run
        self.max_batch = max_batch
        self.waiting: deque[_Job] = deque()
        self._closed = False
        self._not_empty = asyncio.Event()
        self._threads = threads or ModelThreads()
        self._free = asyncio.Semaphore(self._threads.runs)
        self._running: dict[asyncio.Task[None], list[_Job]] = {}
        self._task = asyncio.create_task(self._serve())

    async def submit(self, pixels: Tensor) -> Output:
        """Return the model's output for one image, uint8 (3, side, side).

        Raises:
            asyncio.CancelledError: the batcher is closed.
        """
        job = _Job(pixels, asyncio.get_running_loop().create_future(), time.perf_counter())
        if self._closed:
            job.done.cancel()
        self.waiting.append(job)
        self._not_empty.set()
        return await job.done

    async def close(self) -> None:
        """End the threads; the callers of all images are cancelled."""
        self._closed = True
        running, under_way = list(self._running), [job for jobs in self._running.values() for job in jobs]
        for task in (self._task, *running):
            task.cancel()
        await asyncio.gather(self._task, *running, return_exceptions=True)
        for job in (*under_way, *self.waiting):
            job.done.cancel()
        self._threads.close()

    async def _serve(self) -> None:
        while True:
            await self._free.acquire()
            jobs = await self._next_jobs()
            alone = not self._running and not self.waiting
            task = asyncio.create_task(self._run_jobs(jobs, alone=alone))
            self._running[task] = jobs
            task.add_done_callback(self._end_run)

    def _end_run(self, task: asyncio.Task[None]) -> None:
        del self._running[task]
        self._free.release()

    async def _next_jobs(self) -> list[_Job]:
        while not self.waiting:
            self._not_empty.clear()
            await self._not_empty.wait()
        return [self.waiting.popleft() for _ in range(min(len(self.waiting), self.max_batch))]

    async def _run_jobs(self, jobs: list[_Job], *, alone: bool) -> None:
        jobs = [job for job in jobs if not job.done.done()]
        if not jobs:
            return
        start = time.perf_counter()
        try:
            executor = self._threads.executor(alone=alone)
            logits = await asyncio.get_running_loop().run_in_executor(executor, self._compute, jobs)
        except Exception as error:
            if len(jobs) == 1:
                if not jobs[0].done.done():
                    jobs[0].done.set_exception(error)
                return
            for job in jobs:
                await self._run_jobs([job], alone=alone)
            return
        computed = time.perf_counter() - start
        cores = self._threads.cores_of(alone=alone)
        for job, row in zip(jobs, logits, strict=True):
            if not job.done.done():
                job.done.set_result(Output(row, start - job.submitted, computed, len(jobs), cores))

    def _compute(self, jobs: list[_Job]) -> Tensor:
        with torch.inference_mode():
            return self.run(stack([job.pixels for job in jobs]))[0]
