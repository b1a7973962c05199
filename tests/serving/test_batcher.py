"""The batcher: which images share a run of the model, who gets which output, and what cancellation does.

The model is a fake that waits at a gate, so that no test depends on the speed of the machine.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest
import torch
from torch import Tensor

from mlops_img.serving.batcher import Batcher, Output
from mlops_img.serving.model_threads import ModelThreads

TIMEOUT = 30.0  # seconds after which a test counts as hanging


class Model:
    """Returns the number of each image as its logits, once the gate lets the run through.

    Attributes:
        runs: numbers of the images of each run so far.
        bad: numbers of images that make a run fail.
    """

    def __init__(self, *, gate: bool = False) -> None:
        self.runs: list[list[int]] = []
        self.bad: set[int] = set()
        self._begun = threading.Semaphore(0)
        self._passes = threading.Semaphore(0) if gate else None

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        numbers = images[:, 0, 0, 0].tolist()
        self.runs.append(numbers)
        self._begun.release()
        if self._passes is not None:
            assert self._passes.acquire(timeout=TIMEOUT)
        if self.bad & set(numbers):
            raise ValueError(f"bad among {numbers}")
        logits = images[:, 0, 0, :2].float()
        return logits, logits

    async def begun(self) -> None:
        """Wait until another run has begun."""
        assert await asyncio.to_thread(self._begun.acquire, timeout=TIMEOUT)

    def let_through(self, runs: int = 1) -> None:
        assert self._passes is not None
        self._passes.release(runs)


def image(number: int) -> Tensor:
    return torch.full((3, 4, 4), number, dtype=torch.uint8)


def submit(batcher: Batcher, *numbers: int) -> list[asyncio.Task[Output]]:
    return [asyncio.create_task(batcher.submit(image(number))) for number in numbers]


async def queued(batcher: Batcher, count: int) -> None:
    """Wait until so many images are queued."""
    while len(batcher.waiting) != count:
        await asyncio.sleep(0)


def in_loop(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    def run() -> None:
        asyncio.run(asyncio.wait_for(test(), TIMEOUT))

    run.__name__ = test.__name__
    return run


def numbers_of(outputs: list[Output]) -> list[int]:
    return [int(output.logits[0]) for output in outputs]


@in_loop
async def test_single_image_is_run_at_once() -> None:
    model = Model(gate=True)
    batcher = Batcher(model, max_batch=16)
    (only,) = submit(batcher, 7)
    await model.begun()  # without a second image or a time to wait for one
    model.let_through()
    output = await only
    assert numbers_of([output]) == [7]
    assert output.batch == 1
    assert output.queued >= 0
    assert output.computed > 0
    await batcher.close()


@in_loop
async def test_images_that_arrive_during_a_run_share_the_next_one() -> None:
    model = Model(gate=True)
    batcher = Batcher(model, max_batch=16)
    first = submit(batcher, 1)
    await model.begun()
    others = submit(batcher, 2, 3, 4)
    await queued(batcher, 3)
    model.let_through(2)
    outputs = await asyncio.gather(*first, *others)
    assert model.runs == [[1], [2, 3, 4]]
    assert numbers_of(outputs) == [1, 2, 3, 4]
    assert [output.batch for output in outputs] == [1, 3, 3, 3]
    await batcher.close()


@in_loop
async def test_batch_size_is_limited() -> None:
    model = Model(gate=True)
    batcher = Batcher(model, max_batch=4)
    first = submit(batcher, 0)
    await model.begun()
    others = submit(batcher, *range(1, 11))
    await queued(batcher, 10)
    model.let_through(4)
    assert numbers_of(await asyncio.gather(*first, *others)) == list(range(11))
    assert model.runs == [[0], [1, 2, 3, 4], [5, 6, 7, 8], [9, 10]], "the oldest first"
    await batcher.close()


@in_loop
async def test_image_of_a_cancelled_caller_is_not_run() -> None:
    model = Model(gate=True)
    batcher = Batcher(model, max_batch=16)
    first = submit(batcher, 1)
    await model.begun()
    kept, cancelled = submit(batcher, 2, 3)
    await queued(batcher, 2)
    cancelled.cancel()
    await asyncio.gather(cancelled, return_exceptions=True)
    model.let_through(2)
    assert numbers_of(await asyncio.gather(*first, kept)) == [1, 2]
    assert model.runs == [[1], [2]]
    await batcher.close()


@in_loop
async def test_batcher_continues_after_all_waiting_callers_were_cancelled() -> None:
    model = Model(gate=True)
    batcher = Batcher(model, max_batch=16)
    first = submit(batcher, 1)
    await model.begun()
    left = submit(batcher, 2, 3)
    await queued(batcher, 2)
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)
    model.let_through(2)
    await asyncio.gather(*first)
    assert numbers_of([await batcher.submit(image(4))]) == [4]
    assert model.runs == [[1], [4]]
    await batcher.close()


@in_loop
async def test_caller_cancelled_during_a_run_does_not_affect_others() -> None:
    model = Model(gate=True)
    batcher = Batcher(model, max_batch=16)
    first = submit(batcher, 1)
    await model.begun()
    kept, cancelled = submit(batcher, 2, 3)
    await queued(batcher, 2)
    model.let_through()
    await asyncio.gather(*first)
    await model.begun()
    cancelled.cancel()
    model.let_through()
    assert numbers_of([await kept]) == [2]
    assert model.runs == [[1], [2, 3]]
    await batcher.close()


@in_loop
async def test_only_the_bad_image_of_a_failed_batch_fails() -> None:
    model = Model(gate=True)
    model.bad = {3}
    batcher = Batcher(model, max_batch=16)
    first = submit(batcher, 1)
    await model.begun()
    others = submit(batcher, 2, 3, 4)
    await queued(batcher, 3)
    model.let_through(6)
    outcomes = await asyncio.gather(*first, *others, return_exceptions=True)
    assert model.runs == [[1], [2, 3, 4], [2], [3], [4]]
    assert str(outcomes.pop(2)) == "bad among [3]"
    assert numbers_of([outcome for outcome in outcomes if isinstance(outcome, Output)]) == [1, 2, 4]
    assert numbers_of([await batcher.submit(image(5))]) == [5], "and the batcher continues"
    await batcher.close()


@in_loop
async def test_image_cancelled_after_its_batch_failed_is_not_run_again() -> None:
    model = Model(gate=True)
    model.bad = {2}
    batcher = Batcher(model, max_batch=16)
    first = submit(batcher, 1)
    await model.begun()
    bad, cancelled, kept = submit(batcher, 2, 3, 4)
    await queued(batcher, 3)
    model.let_through()
    await model.begun()  # the batch
    cancelled.cancel()
    await asyncio.gather(cancelled, return_exceptions=True)
    model.let_through(3)
    await asyncio.gather(*first, kept)
    assert model.runs == [[1], [2, 3, 4], [2], [4]]
    with pytest.raises(ValueError, match="bad among"):
        await bad
    await batcher.close()


@in_loop
async def test_each_caller_gets_the_output_of_its_own_image() -> None:
    model = Model()
    batcher = Batcher(model, max_batch=8)

    async def submit_one(number: int) -> bool:
        for _ in range(number % 7):  # in no particular order
            await asyncio.sleep(0)
        return numbers_of([await batcher.submit(image(number))]) == [number]

    assert all(await asyncio.gather(*(submit_one(number) for number in range(256))))
    assert sorted(number for run in model.runs for number in run) == list(range(256))
    assert max(map(len, model.runs)) <= 8
    await batcher.close()


async def is_cancelled(task: Awaitable[Output]) -> bool:
    (outcome,) = await asyncio.gather(task, return_exceptions=True)
    return isinstance(outcome, asyncio.CancelledError)


@in_loop
async def test_close_ends_the_thread_and_cancels_all_waiting_callers() -> None:
    before = set(threading.enumerate())
    model = Model(gate=True)
    batcher = Batcher(model, max_batch=16)
    computed = submit(batcher, 1)
    await model.begun()
    waiting = submit(batcher, 2, 3)
    await queued(batcher, 2)
    model.let_through()
    await batcher.close()
    for task in (*computed, *waiting):
        assert await is_cancelled(task)
    assert model.runs == [[1]]
    assert not [thread for thread in set(threading.enumerate()) - before if thread.name.startswith("model")]


@in_loop
async def test_threads_compute_batches_of_one_queue_at_the_same_time() -> None:
    model = Model(gate=True)
    batcher = Batcher(model, max_batch=2, threads=ModelThreads(2))
    tasks = submit(batcher, 1, 2, 3, 4, 5)
    for _ in range(2):
        await model.begun()
    await queued(batcher, 1)  # the third batch waits for a thread
    assert sorted(model.runs) == [[1, 2], [3, 4]], "a second run has begun before the first has ended"
    model.let_through(3)
    outputs = await asyncio.gather(*tasks)
    assert numbers_of(outputs) == [1, 2, 3, 4, 5]
    await batcher.close()


@in_loop
async def test_batch_that_comes_alone_gets_all_cores() -> None:
    model = Model(gate=True)
    cores: list[int] = []

    def run(images: Tensor) -> tuple[Tensor, Tensor]:
        cores.append(torch.get_num_threads())
        return model(images)

    batcher = Batcher(run, max_batch=16, threads=ModelThreads(2))
    first = submit(batcher, 1)
    await model.begun()
    second = submit(batcher, 2)  # while the first is computed
    await model.begun()
    model.let_through(2)
    outputs = await asyncio.gather(*first, *second)
    assert cores == [output.cores for output in outputs] == [2, 1]
    model.let_through()
    assert (await batcher.submit(image(3))).cores == 2
    await batcher.close()


@in_loop
async def test_model_that_holds_the_lock_runs_one_batch_at_a_time_on_all_cores() -> None:
    model = Model(gate=True)
    batcher = Batcher(model, max_batch=1, threads=ModelThreads(2, concurrent=False))
    tasks = submit(batcher, 1, 2)
    await model.begun()
    await queued(batcher, 1)
    assert model.runs == [[1]]
    model.let_through(2)
    assert [output.cores for output in await asyncio.gather(*tasks)] == [2, 2]
    await batcher.close()


@in_loop
async def test_close_cancels_the_callers_of_all_threads() -> None:
    model = Model(gate=True)
    batcher = Batcher(model, max_batch=1, threads=ModelThreads(2))
    tasks = submit(batcher, 1, 2, 3)
    for _ in range(2):
        await model.begun()
    await queued(batcher, 1)
    model.let_through(2)
    await batcher.close()
    assert all([await is_cancelled(task) for task in tasks])
    assert sorted(model.runs) == [[1], [2]]


@in_loop
async def test_submit_after_close_is_cancelled() -> None:
    batcher = Batcher(Model(), max_batch=16)
    await batcher.submit(image(1))
    await batcher.close()
    (late,) = submit(batcher, 2)
    assert await is_cancelled(late)


@in_loop
async def test_model_gets_channels_last_batches_in_inference_mode() -> None:
    seen: list[tuple[bool, torch.dtype, bool]] = []

    def run(images: Tensor) -> tuple[Tensor, Tensor]:
        channels_last = images.is_contiguous(memory_format=torch.channels_last)
        seen.append((channels_last, images.dtype, torch.is_inference_mode_enabled()))
        return images[:, 0, 0, :2].float(), images

    batcher = Batcher(run, max_batch=16)
    await batcher.submit(image(1).permute(1, 2, 0).contiguous().permute(2, 0, 1))
    assert seen == [(True, torch.uint8, True)]
    await batcher.close()
