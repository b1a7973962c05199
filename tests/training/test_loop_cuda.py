"""The training loop on a GPU: it does not wait, and clips and stops as on a CPU."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

import pytest
import torch
from torch import Tensor

from mlops_img.core.precision import Precision
from mlops_img.data.batch import Batch
from mlops_img.data.prefetch import on_device
from mlops_img.runs.checkpoint import TrainState
from mlops_img.training.loop import Intervals, NonFiniteLossError, Recipe, fit, train_step
from tests.helpers.tiny_training import (
    OVERFLOWS,
    Notes,
    batches,
    make_recipe,
    make_state,
    overflowing,
    same,
    weights,
)

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")


def on_cuda(dtype: torch.dtype) -> tuple[TrainState, Recipe]:
    state = make_state(device="cuda", ema=True, dropout=0.1, scale=2.0**10 if dtype == torch.float16 else None)
    recipe = make_recipe(precision=Precision(torch.device("cuda"), dtype), grad_clip=1.0, lr=1e-3)
    return state, recipe


def pinned() -> Iterator[Batch]:
    return (one._replace(images=one.images.pin_memory(), labels=one.labels.pin_memory()) for one in batches())


@pytest.mark.cuda
@needs_cuda
def test_batches_are_copied_whole_while_the_device_is_busy() -> None:
    busy = torch.randn(2048, 2048, device="cuda")
    sums = []
    for copied in islice(on_device(pinned(), torch.device("cuda")), 50):
        for _ in range(10):
            busy = (busy @ busy).tanh()
        sums.append(copied.images.sum(dtype=torch.int64))
    assert [int(total) for total in sums] == [int(one.images.sum()) for one in islice(batches(), 50)]


@pytest.mark.cuda
@needs_cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_step_does_not_wait_for_the_device(dtype: torch.dtype) -> None:
    state, recipe = on_cuda(dtype)
    ranks = recipe.take_part(state.model, lambda: False)
    stream = on_device(pinned(), recipe.precision.device)
    for _ in range(3):  # the first ones allocate
        train_step(state, stream, recipe, ranks)
        state.step += 1
    # The one wait of a step is for an event, which this does not count: the backward pass is queued by then.
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            train_step(state, stream, recipe, ranks)
            state.step += 1
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.cuda
@needs_cuda
def test_fp16_clips_the_unscaled_gradient() -> None:
    moves = []
    for dtype in (torch.float32, torch.float16):
        state = make_state(optim="sgd", device="cuda", scale=2.0**10 if dtype == torch.float16 else None)
        before = weights(state)
        recipe = make_recipe(precision=Precision(torch.device("cuda"), dtype), grad_clip=0.01, lr=1.0)
        fit(state, batches(), recipe, Intervals(1, 1), Notes())
        moves.append(torch.cat([(new - old).flatten() for new, old in zip(weights(state), before, strict=True)]))
    assert moves[1].norm().item() == pytest.approx(0.01, rel=1e-2)
    assert torch.cosine_similarity(moves[0], moves[1], dim=0) > 0.99


@pytest.mark.cuda
@needs_cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_non_finite_loss_stops_before_the_optimizer_on_a_gpu_too(dtype: torch.dtype) -> None:
    given = overflowing(3)
    state, recipe = on_cuda(dtype)
    recipe = replace(recipe, preprocessing=OVERFLOWS)
    reached: list[list[Tensor]] = []
    state.optimizer.register_step_post_hook(lambda *_: reached.append(weights(state)))
    with pytest.raises(NonFiniteLossError) as caught:
        fit(state, given, recipe, Intervals(9, 9), Notes())
    assert caught.value.rows == given[-1].rows.tolist()
    assert same(weights(state), reached[-1])
