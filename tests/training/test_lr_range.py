"""optim.lr=auto: which rate a range test chooses, and that the run is then the one with that rate."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from mlops_img.errors import EXIT_STOPPED, UserError
from mlops_img.training.lr_range import HIGHEST, LOWEST, choose, rate_at
from tests.helpers.commands import Outcome
from tests.helpers.stopped_runs import metrics, stop_after

Train = Callable[..., Outcome]
AUTO = ("optim.lr=auto", "train.epochs=5")  # 30 steps, as many as the search takes at least


def test_rates_grow_by_the_same_factor_from_the_lowest_to_the_highest() -> None:
    rates = [rate_at(step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(LOWEST)
    assert rates[-1] == pytest.approx(HIGHEST)
    assert rates[51] / rates[50] == pytest.approx(rates[1] / rates[0])


def test_chosen_rate_is_a_tenth_of_the_one_at_the_lowest_loss() -> None:
    rates = [rate_at(step, 71) for step in range(71)]  # ten a decade
    losses = [2.0] * 30 + [2.0 - 0.1 * step for step in range(15)] + [0.6 + 2 * step for step in range(1, 11)]
    found = choose(rates[: len(losses)], losses)
    lowest = min(range(len(losses)), key=found.losses.__getitem__)
    assert 44 <= lowest <= 46  # smoothing lags behind
    assert found.chosen == pytest.approx(rates[lowest] / 10, rel=0.05)


def test_loss_that_never_falls_is_an_error() -> None:
    with pytest.raises(UserError, match=r"optim\.lr=auto: the loss falls at no learning rate"):
        choose([1e-6, 1e-5, 1e-4], [1.0, 2.0, 3.0])


def test_run_with_a_found_rate_is_the_run_with_that_rate(train: Train, tmp_path: Path) -> None:
    outcome = train(*AUTO, "hydra.run.dir=runs/found")
    assert outcome.code == 0, outcome.err
    found = json.loads((tmp_path / "runs/found/lr_range.json").read_text())
    config = yaml.safe_load((tmp_path / "runs/found/config.yaml").read_text())
    assert config["optim"]["lr"] == found["chosen"]
    assert LOWEST < found["chosen"] < HIGHEST
    assert (tmp_path / "runs/found/report/lr_range.png").is_file()
    assert train(f"optim.lr={found['chosen']}", "train.epochs=5", "hydra.run.dir=runs/given").code == 0
    assert metrics(tmp_path / "runs/found") == metrics(tmp_path / "runs/given")
    assert not (tmp_path / "runs/given/report/lr_range.png").exists()


def test_resumed_run_keeps_the_rate_that_was_found(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        stop_after(7, patch)
        assert train(*AUTO, "hydra.run.dir=runs/a").code == EXIT_STOPPED
    found = json.loads((tmp_path / "runs/a/lr_range.json").read_text())
    outcome = train(*AUTO, "hydra.run.dir=runs/a", "resume=auto")
    assert outcome.code == 0, outcome.err
    assert "changed since" not in outcome.out
    config = yaml.safe_load((tmp_path / "runs/a/config.yaml").read_text())
    assert config["optim"]["lr"] == found["chosen"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["optim.lr=auto"], "optim.lr=auto: the search takes 30 steps or more, and the run has 12"),
        (["optim.lr=outo"], "optim.lr=outo: it can be a number or auto. Did you mean 'auto'?"),
        (["optim.lr=0"], "optim.lr=0: it must be more than 0"),
        (["optim.lr=true"], "optim.lr=True: it can be a number or auto."),
    ],
)
def test_what_is_no_rate_is_refused(train: Train, settings: list[str], message: str) -> None:
    outcome = train(*settings)
    assert outcome.code == 2
    assert message in outcome.err
