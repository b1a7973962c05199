"""The training loop does the same again: run twice, resumed, averaged or profiled."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mlops_img.config.augment import AugmentConfig
from mlops_img.core.precision import Precision
from mlops_img.data.augment import BatchAugment
from mlops_img.errors import StoppedOnRequest
from mlops_img.runs.checkpoint import Checkpoints, newest_valid
from mlops_img.training.loop import Intervals, fit
from mlops_img.training.profiling import profiled
from tests.helpers.tiny_training import (
    CPU,
    Notes,
    batch,
    batches,
    make_recipe,
    make_state,
    same,
    weights,
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_two_runs_are_equal_to_the_bit(dtype: torch.dtype) -> None:
    states = [make_state(dropout=0.5, ema=True) for _ in range(2)]
    for state in states:
        torch.manual_seed(id(state))  # whatever was drawn before does not matter
        fit(state, batches(), make_recipe(precision=Precision(CPU, dtype)), Intervals(6, 3), Notes())
    assert same(weights(states[0]), weights(states[1]))
    other = make_state(dropout=0.5)
    fit(other, batches(), make_recipe(seed=1, precision=Precision(CPU, dtype)), Intervals(6, 3), Notes())
    assert not same(weights(states[0]), weights(other))


def test_dropout_differs_between_accumulated_parts() -> None:
    state, dropped = make_state(dropout=0.5), []
    state.model.get_submodule("3").register_forward_hook(
        lambda _, before, after: dropped.append((after == 0) & (before[0] != 0))
    )
    fit(state, [batch(0), batch(0)], make_recipe(accumulate=2), Intervals(1, 1), Notes())
    assert not torch.equal(dropped[0], dropped[1])


def test_resumed_run_repeats_dropout_mixing_and_erasing(tmp_path: Path) -> None:
    augment = AugmentConfig(mixup=0.4, cutmix=1.0, mix_prob=0.7, random_erasing=0.5)
    recipe = make_recipe(augment=BatchAugment(augment, 3), accumulate=2)
    every = Intervals(total=8, epoch=4)
    whole, straight = make_state(dropout=0.5, ema=True), Notes()
    fit(whole, batches(), recipe, every, straight)

    stopped = make_state(dropout=0.5, ema=True)
    with pytest.raises(StoppedOnRequest):
        fit(stopped, batches(), recipe, every, Notes(stop_at=3, checkpoints=Checkpoints(tmp_path, 1, {})))
    content = newest_valid(tmp_path)
    assert content is not None
    resumed, rest = make_state(dropout=0.5, ema=True), Notes()
    resumed.load_dict(content)
    torch.manual_seed(99)
    fit(resumed, batches(start=3 * 2), recipe, every, rest)

    assert same(weights(resumed), weights(whole))
    assert whole.ema is not None
    assert resumed.ema is not None
    assert same(list(resumed.ema.module.parameters()), list(whole.ema.module.parameters()))
    assert rest.epoch_losses == straight.epoch_losses


def test_moving_average_is_evaluated() -> None:
    state = make_state(ema=True, optim="sgd")
    average = weights(state)
    for number in range(3):
        fit(state, [batch(number)], make_recipe(lr=0.1), Intervals(number + 1, 9), Notes())
        decay = 0.9 if number > 0 else 0.0  # the first step's weights are where it starts
        average = [decay * old + (1 - decay) * new for old, new in zip(average, weights(state), strict=True)]
    torch.testing.assert_close([tensor.detach() for tensor in state.evaluated_model.parameters()], average)
    assert not same(average, weights(state))


@pytest.mark.parametrize("steps", [8, 4])
def test_profile_is_written_and_the_batches_pass_through(steps: int, tmp_path: Path) -> None:
    plain, watched = make_state(), make_state()
    given = [batch(number) for number in range(8)]
    fit(plain, given, make_recipe(), Intervals(steps, 8), Notes())
    fit(watched, profiled(given, tmp_path / "profile", steps=3), make_recipe(), Intervals(steps, 8), Notes())
    assert same(weights(plain), weights(watched))
    assert "aten::addmm" in (tmp_path / "profile" / "operators.txt").read_text()
    assert (tmp_path / "profile" / "trace.json").stat().st_size > 1000
