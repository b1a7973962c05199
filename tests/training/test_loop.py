"""The training loop: what a step does, when what happens, and what stops it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import torch

from mlops_img.config.train import ScheduleConfig
from mlops_img.data.batch import Batch
from mlops_img.errors import EXIT_STOPPED, StoppedOnRequest
from mlops_img.training.loop import Intervals, NonFiniteLossError, fit
from mlops_img.training.schedule import make_schedule
from tests.helpers.tiny_training import (
    OVERFLOWS,
    Notes,
    batch,
    batches,
    make_recipe,
    make_state,
    overflowing,
    same,
    weights,
)

# --- one step ----------------------------------------------------------------------------------------


def test_loss_falls() -> None:
    notes = Notes()
    fit(make_state(), itertools.cycle([batch(0)]), make_recipe(), Intervals(60, 60, log=1), notes)
    assert notes.losses[-1] < 0.1 < notes.losses[0]


def test_two_halves_accumulated_equal_one_batch() -> None:
    whole, halves = make_state(optim="sgd"), make_state(optim="sgd")
    recipe, every = make_recipe(lr=0.1), Intervals(5, 5, log=1)
    split = make_recipe(lr=0.1, accumulate=2)
    one, other = Notes(), Notes()
    full = [batch(number, 16) for number in range(5)]
    parts = [
        Batch(big.images[half], big.labels[half], big.rows[half], [])
        for big in full
        for half in (slice(0, 8), slice(8, 16))
    ]
    fit(whole, full, recipe, every, one)
    fit(halves, parts, split, every, other)
    torch.testing.assert_close(weights(halves), weights(whole), atol=1e-6, rtol=0)
    assert other.losses == pytest.approx(one.losses, abs=1e-5)
    assert not same(weights(halves), weights(make_state()))


@pytest.mark.parametrize("scale", [None, 1024.0])
def test_clipping_bounds_the_true_gradient_whatever_the_loss_scale(scale: float | None) -> None:
    states = {clip: make_state(optim="sgd", scale=scale) for clip in (None, 0.01)}
    before = weights(states[None])
    moves = {}
    for clip, state in states.items():
        fit(state, batches(), make_recipe(lr=1.0, grad_clip=clip), Intervals(1, 1), Notes())
        moves[clip] = torch.cat([(new - old).flatten() for new, old in zip(weights(state), before, strict=True)])
    assert moves[None].norm() > 0.1
    assert moves[0.01].norm().item() == pytest.approx(0.01, rel=1e-3)
    # The direction stays.
    assert torch.cosine_similarity(moves[None], moves[0.01], dim=0) > 0.9999


def test_loss_scale_does_not_change_the_steps() -> None:
    plain, scaled = make_state(optim="sgd"), make_state(optim="sgd", scale=2.0**12)
    for state in (plain, scaled):
        fit(state, batches(), make_recipe(grad_clip=1.0), Intervals(4, 4), Notes())
    torch.testing.assert_close(weights(plain), weights(scaled), atol=1e-6, rtol=1e-5)


def test_each_step_has_its_rate_of_the_schedule() -> None:
    seen: list[float] = []
    state = make_state(optim="sgd")
    state.optimizer.register_step_pre_hook(lambda optimizer, *_: seen.append(optimizer.param_groups[0]["lr"]))
    schedule = make_schedule(ScheduleConfig(name="cosine", warmup="2 steps"), 6, 3)
    fit(state, batches(), make_recipe(lr=0.5, schedule=schedule), Intervals(6, 3), Notes())
    assert seen == [0.5 * schedule(step) for step in range(6)]


def test_memory_format_does_not_change_the_result() -> None:
    layouts = []
    for wanted in (True, False):
        state = make_state()
        state.model.register_forward_pre_hook(
            lambda _, images: layouts.append(images[0].is_contiguous(memory_format=torch.channels_last))
        )
        given = (one._replace(images=one.images.contiguous(memory_format=torch.channels_last)) for one in batches())
        fit(state, given, make_recipe(channels_last=wanted), Intervals(1, 1), Notes())
    assert layouts == [True, False]


# --- a loss that is not finite -----------------------------------------------------------------------


@pytest.mark.parametrize("accumulate", [1, 3])
def test_loss_that_is_not_finite_stops_before_the_optimizer_and_names_step_and_rows(accumulate: int) -> None:
    recipe = make_recipe(accumulate=accumulate, preprocessing=OVERFLOWS, lr=1e-3)
    given = overflowing(3 * accumulate)
    state, wanted = make_state(ema=True), make_state(ema=True)
    fit(wanted, given, recipe, Intervals(2, 2), Notes())
    notes = Notes()
    with pytest.raises(NonFiniteLossError, match="step 3 is not finite") as caught:
        fit(state, given, recipe, Intervals(9, 9), notes)
    assert caught.value.step == 3
    assert caught.value.rows == given[-1].rows.tolist()
    assert notes.steps("save") == []
    assert state.step == 2
    reached, before = state.to_dict(), wanted.to_dict()
    for part in ("model", "ema"):
        assert all(torch.equal(reached[part][name], tensor) for name, tensor in before[part].items())
    for number, values in before["optimizer"]["state"].items():
        assert all(torch.equal(reached["optimizer"]["state"][number][name], value) for name, value in values.items())
    assert torch.stack(weights(state)[:1]).isfinite().all()


# --- when what happens -------------------------------------------------------------------------------


def test_hooks_are_called_at_their_intervals() -> None:
    notes = Notes()
    fit(make_state(), batches(), make_recipe(), Intervals(total=10, epoch=4, log=3, checkpoint=5), notes)
    assert notes.steps("log") == [3, 4, 6, 8, 9, 10]
    assert notes.steps("epoch") == [4, 8, 10]
    assert notes.steps("save") == [4, 5, 8, 10]
    # A checkpoint follows the validation, whose result it holds.
    assert [event for event in notes.events if event[1] == 4] == [("log", 4), ("epoch", 4), ("save", 4)]


def test_interval_of_zero_is_never() -> None:
    notes = Notes()
    fit(make_state(), batches(), make_recipe(), Intervals(total=6, epoch=3, log=0, checkpoint=0), notes)
    assert notes.steps("log") == notes.steps("save") == [3, 6]


def test_resumed_run_calls_hooks_at_the_same_steps() -> None:
    state, notes = make_state(), Notes()
    state.step = 5
    fit(state, batches(5), make_recipe(), Intervals(total=10, epoch=4, log=3, checkpoint=5), notes)
    assert notes.steps("log") == [6, 8, 9, 10]
    assert notes.steps("epoch") == [8, 10]
    assert notes.steps("save") == [8, 10]


def test_finished_run_does_nothing() -> None:
    state, notes = make_state(), Notes()
    state.step = 4
    fit(state, iter(()), make_recipe(), Intervals(4, 4), notes)
    assert notes.events == []


def test_epochs_loss_is_the_mean_of_its_steps_also_of_a_last_epoch_cut_short() -> None:
    notes = Notes()
    fit(make_state(), batches(), make_recipe(), Intervals(total=5, epoch=3, log=1), notes)
    first, last = notes.losses[:3], notes.losses[3:]
    assert notes.epoch_losses == pytest.approx([sum(first) / 3, sum(last) / 2])


def test_no_batch_is_read_beyond_the_last_step() -> None:
    taken = []

    def counted() -> Iterator[Batch]:
        for number in itertools.count():
            taken.append(number)
            yield batch(number)

    fit(make_state(), counted(), make_recipe(accumulate=2), Intervals(3, 3), Notes())
    assert len(taken) == 6


def test_too_few_batches_are_an_error() -> None:
    notes = Notes()
    with pytest.raises(RuntimeError, match="ended before step"):
        fit(make_state(), [batch(0), batch(1)], make_recipe(), Intervals(3, 3), notes)
    assert notes.events == []


def test_early_stopping_saves_and_ends() -> None:
    state, notes = make_state(), Notes(enough_at=6)
    fit(state, batches(), make_recipe(), Intervals(total=12, epoch=3), notes)
    assert state.step == 6
    assert notes.events[-1] == ("save", 6)


def test_stop_request_saves_at_the_next_step_and_exits_with_code_75() -> None:
    state, notes = make_state(), Notes(stop_at=2)
    with pytest.raises(StoppedOnRequest) as caught:
        fit(state, batches(), make_recipe(), Intervals(total=12, epoch=6), notes)
    assert caught.value.code == EXIT_STOPPED == 75
    assert state.step == 2
    assert notes.events == [("save", 2)]


def test_run_finishes_if_stopped_at_its_last_step() -> None:
    notes = Notes(stop_at=3)
    fit(make_state(), batches(), make_recipe(), Intervals(total=3, epoch=3), notes)
    assert notes.events[-1] == ("save", 3)
