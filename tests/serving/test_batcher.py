"""The batcher: what shares a run of the model, who gets which answer, and what becomes of those who leave.

The model is a stand-in that waits at a gate, so that nothing here depends on how fast the machine is.
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

WITHIN = 30.0  # seconds after which a test is taken to hang


class Model:
    """Answers each image with its own number, once the gate lets the run through.

    Attributes:
        runs: the numbers of the images of each run so far.
        bad: numbers of images that no run survives.
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
            assert self._passes.acquire(timeout=WITHIN)
        if self.bad & set(numbers):
            raise ValueError(f"bad among {numbers}")
        logits = images[:, 0, 0, :2].float()
        return logits, logits

    async def begun(self) -> None:
        """Wait until one run more has begun."""
        assert await asyncio.to_thread(self._begun.acquire, timeout=WITHIN)

    def let_through(self, runs: int = 1) -> None:
        assert self._passes is not None
        self._passes.release(runs)


def image(number: int) -> Tensor:
    return torch.full((3, 4, 4), number, dtype=torch.uint8)


def submit(batcher: Batcher, *numbers: int) -> list[asyncio.Task[Output]]:
    return [asyncio.create_task(batcher.submit(image(number))) for number in numbers]


async def queued(batcher: Batcher, count: int) -> None:
    """Wait until so many images wait."""
    while len(batcher.waiting) != count:
        await asyncio.sleep(0)


def in_loop(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    def run() -> None:
        asyncio.run(asyncio.wait_for(test(), WITHIN))

    run.__name__ = test.__name__
    return run


def answers(outputs: list[Output]) -> list[int]:
    return [int(output.logits[0]) for output in outputs]


@in_loop
async def test_a_lone_image_is_computed_at_once() -> None:
    model = Model(gate=True)
    batcher = Batcher(model, max_batch=16)
    (only,) = submit(batcher, 7)
    await model.begun()  # though no other has come, and no time passes by itself
    model.let_through()
    output = await only
    assert answers([output]) == [7]
    assert output.batch == 1
    assert output.queued >= 0
    assert output.computed > 0
    await batcher.close()


@in_loop
async def test_what_comes_while_the_model_is_busy_shares_the_next_run() -> None:
    model = Model(gate=True)
    batcher = Batcher(model, max_batch=16)
    first = submit(batcher, 1)
    await model.begun()
    others = submit(batcher, 2, 3, 4)
    await queued(batcher, 3)
    model.let_through(2)
    outputs = await asyncio.gather(*first, *others)
    assert model.runs == [[1], [2, 3, 4]]
    assert answers(outputs) == [1, 2, 3, 4]
    assert [output.batch for output in outputs] == [1, 3, 3, 3]
    await batcher.close()


@in_loop
async def test_no_run_has_more_images_than_it_may() -> None:
    model = Model(gate=True)
    batcher = Batcher(model, max_batch=4)
    first = submit(batcher, 0)
    await model.begun()
    others = submit(batcher, *range(1, 11))
    await queued(batcher, 10)
    model.let_through(4)
    assert answers(await asyncio.gather(*first, *others)) == list(range(11))
    assert model.runs == [[0], [1, 2, 3, 4], [5, 6, 7, 8], [9, 10]], "the oldest first"
    await batcher.close()


@in_loop
async def test_the_image_of_a_caller_who_left_is_not_computed() -> None:
    model = Model(gate=True)
    batcher = Batcher(model, max_batch=16)
    first = submit(batcher, 1)
    await model.begun()
    stays, leaves = submit(batcher, 2, 3)
    await queued(batcher, 2)
    leaves.cancel()
    await asyncio.gather(leaves, return_exceptions=True)
    model.let_through(2)
    assert answers(await asyncio.gather(*first, stays)) == [1, 2]
    assert model.runs == [[1], [2]]
    await batcher.close()


@in_loop
async def test_it_goes_on_when_all_who_waited_have_left() -> None:
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
    assert answers([await batcher.submit(image(4))]) == [4]
    assert model.runs == [[1], [4]]
    await batcher.close()


@in_loop
async def test_a_caller_who_leaves_during_the_run_harms_nobody() -> None:
    model = Model(gate=True)
    batcher = Batcher(model, max_batch=16)
    first = submit(batcher, 1)
    await model.begun()
    stays, leaves = submit(batcher, 2, 3)
    await queued(batcher, 2)
    model.let_through()
    await asyncio.gather(*first)
    await model.begun()
    leaves.cancel()
    model.let_through()
    assert answers([await stays]) == [2]
    assert model.runs == [[1], [2, 3]]
    await batcher.close()


@in_loop
async def test_of_a_batch_that_fails_only_the_bad_image_does() -> None:
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
    assert answers([outcome for outcome in outcomes if isinstance(outcome, Output)]) == [1, 2, 4]
    assert answers([await batcher.submit(image(5))]) == [5], "and it goes on"
    await batcher.close()


@in_loop
async def test_who_leaves_after_a_batch_failed_is_not_tried_again() -> None:
    model = Model(gate=True)
    model.bad = {2}
    batcher = Batcher(model, max_batch=16)
    first = submit(batcher, 1)
    await model.begun()
    bad, leaves, stays = submit(batcher, 2, 3, 4)
    await queued(batcher, 3)
    model.let_through()
    await model.begun()  # the batch
    leaves.cancel()
    await asyncio.gather(leaves, return_exceptions=True)
    model.let_through(3)
    await asyncio.gather(*first, stays)
    assert model.runs == [[1], [2, 3, 4], [2], [4]]
    with pytest.raises(ValueError, match="bad among"):
        await bad
    await batcher.close()


@in_loop
async def test_each_of_many_callers_gets_the_answer_to_its_own_image() -> None:
    model = Model()
    batcher = Batcher(model, max_batch=8)

    async def ask(number: int) -> bool:
        for _ in range(number % 7):  # they come in no order
            await asyncio.sleep(0)
        return answers([await batcher.submit(image(number))]) == [number]

    assert all(await asyncio.gather(*(ask(number) for number in range(256))))
    assert sorted(number for run in model.runs for number in run) == list(range(256))
    assert max(map(len, model.runs)) <= 8
    await batcher.close()


async def is_cancelled(task: Awaitable[Output]) -> bool:
    (outcome,) = await asyncio.gather(task, return_exceptions=True)
    return isinstance(outcome, asyncio.CancelledError)


@in_loop
async def test_closing_ends_the_threads_and_cancels_all_who_wait() -> None:
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
async def test_who_comes_after_closing_is_cancelled_and_does_not_wait_for_ever() -> None:
    batcher = Batcher(Model(), max_batch=16)
    await batcher.submit(image(1))
    await batcher.close()
    (late,) = submit(batcher, 2)
    assert await is_cancelled(late)


@in_loop
async def test_the_model_gets_channels_last_batches_without_gradients() -> None:
    seen: list[tuple[bool, torch.dtype, bool]] = []

    def run(images: Tensor) -> tuple[Tensor, Tensor]:
        channels_last = images.is_contiguous(memory_format=torch.channels_last)
        seen.append((channels_last, images.dtype, torch.is_inference_mode_enabled()))
        return images[:, 0, 0, :2].float(), images

    batcher = Batcher(run, max_batch=16)
    await batcher.submit(image(1).permute(1, 2, 0).contiguous().permute(2, 0, 1))
    assert seen == [(True, torch.uint8, True)]
    await batcher.close()
