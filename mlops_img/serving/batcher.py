"""Requests that come together share a run of the model; none waits for others that might come."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from mlops_img.preprocessing.transforms import stack


@dataclass(frozen=True)
class Output:
    """What the model said of one image.

    Attributes:
        logits: float32 (classes,).
        queued, computed: seconds that the image waited, and that its batch took.
        batch: how many images the batch had.
    """

    logits: Tensor
    queued: float
    computed: float
    batch: int


@dataclass(frozen=True)
class _Job:
    pixels: Tensor
    done: asyncio.Future[Output]
    since: float


class Batcher:
    """Runs what is there, up to `max_batch` images at once, on a thread of its own.

    A job whose caller has gone, because of a timeout, is dropped unseen. If a batch fails its images are tried one
    by one, so that only those that are to blame fail.
    """

    def __init__(self, run: Callable[[Tensor], tuple[Tensor, Tensor]], max_batch: int) -> None:
        self.run = run
        self.max_batch = max_batch
        self.waiting: deque[_Job] = deque()
        self._closed = False
        self._something = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._task = asyncio.create_task(self._serve())

    async def submit(self, pixels: Tensor) -> Output:
        """Wait for what the model says of one image, uint8 (3, side, side); cancelled once the batcher is closed."""
        job = _Job(pixels, asyncio.get_running_loop().create_future(), time.perf_counter())
        if self._closed:
            job.done.cancel()
        self.waiting.append(job)
        self._something.set()
        return await job.done

    async def close(self) -> None:
        """End the thread; what still waits is cancelled."""
        self._closed = True
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        for job in self.waiting:
            job.done.cancel()
        self._thread.shutdown(wait=True)

    async def _serve(self) -> None:
        while True:
            jobs = await self._next_jobs()
            try:
                await self._answer(jobs)
            except asyncio.CancelledError:
                for job in jobs:
                    job.done.cancel()
                raise

    async def _next_jobs(self) -> list[_Job]:
        while not self.waiting:
            self._something.clear()
            await self._something.wait()
        return [self.waiting.popleft() for _ in range(min(len(self.waiting), self.max_batch))]

    async def _answer(self, jobs: list[_Job]) -> None:
        jobs = [job for job in jobs if not job.done.done()]
        if not jobs:
            return
        start = time.perf_counter()
        try:
            logits = await asyncio.get_running_loop().run_in_executor(self._thread, self._compute, jobs)
        except Exception as error:
            if len(jobs) == 1:
                if not jobs[0].done.done():
                    jobs[0].done.set_exception(error)
                return
            for job in jobs:
                await self._answer([job])
            return
        computed = time.perf_counter() - start
        for job, row in zip(jobs, logits, strict=True):
            if not job.done.done():
                job.done.set_result(Output(row, start - job.since, computed, len(jobs)))

    def _compute(self, jobs: list[_Job]) -> Tensor:
        with torch.inference_mode():
            return self.run(stack([job.pixels for job in jobs]))[0]
