"""train.batch_size=auto: which size is chosen, and that the run keeps it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from mlops_img.core.precision import Precision
from mlops_img.errors import EXIT_STOPPED
from mlops_img.training.batch_search import choose_size, doubled, images_per_second
from tests.helpers.commands import Outcome
from tests.helpers.stopped_runs import stop_after

Train = Callable[..., Outcome]


@pytest.mark.parametrize(("last", "sizes"), [(64, [8, 16, 32, 64]), (63, [8, 16, 32]), (3, [8])])
def test_sizes_are_doubled_up_to_the_last(last: int, sizes: list[int]) -> None:
    assert list(doubled(8, last)) == sizes


@pytest.mark.parametrize(
    ("speeds", "chosen"),
    [
        ({8: 100, 16: 150, 32: 180, 64: 185}, 32),  # 64 is hardly faster
        ({8: 100, 16: 105, 32: 500}, 8),
        ({8: 100, 16: 150, 32: None}, 16),  # does not fit into memory
        ({8: None, 16: None}, 8),
        ({8: 100}, 8),
    ],
)
def test_size_is_doubled_while_that_is_worthwhile(speeds: dict[int, float | None], chosen: int) -> None:
    assert choose_size(speeds.__getitem__, list(speeds)) == chosen


def test_timing_changes_neither_gradients_nor_random_numbers() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout(0.5), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    before = torch.get_rng_state()
    speed = images_per_second(model, torch.zeros(8, 3, 16, 16), Precision(torch.device("cpu"), torch.float32))
    assert speed is not None
    assert speed > 0
    assert torch.equal(torch.get_rng_state(), before)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_run_keeps_the_size_that_was_found(train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlops_img.training.batch_search.STEPS_PER_EPOCH", 1)
    speeds = iter([100.0, 200.0, 210.0])
    monkeypatch.setattr("mlops_img.training.batch_search.images_per_second", lambda *_: next(speeds))
    with monkeypatch.context() as patch:
        stop_after(1, patch)
        assert train("train.batch_size=auto", "hydra.run.dir=runs/a").code == EXIT_STOPPED
    outcome = train("train.batch_size=auto", "hydra.run.dir=runs/a", "resume=auto")
    assert outcome.code == 0, outcome.err
    config = yaml.safe_load((tmp_path / "runs/a/config.yaml").read_text())
    assert config["train"]["batch_size"] == 16


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("outo", "train.batch_size=outo: it can be a whole number or auto. Did you mean 'auto'?"),
        ("1.5", "train.batch_size=1.5: it can be a whole number or auto."),
        ("0", "train.batch_size=0: it must be more than 0"),
    ],
)
def test_what_is_no_size_is_refused(train: Train, setting: str, message: str) -> None:
    outcome = train(f"train.batch_size={setting}")
    assert outcome.code == 2
    assert message in outcome.err
