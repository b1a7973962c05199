"""train.max_minutes: how many steps fit, and a schedule that ends with them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from mlops_img.config.train import ScheduleConfig
from mlops_img.errors import EXIT_STOPPED
from mlops_img.training.context import RunClock
from mlops_img.training.hooks import RunHooks
from mlops_img.training.pace import Pace, Stopwatch
from mlops_img.training.schedule import make_schedule
from tests.helpers.commands import Outcome

Train = Callable[..., Outcome]


def test_untouched_pace_is_the_schedule_itself() -> None:
    schedule = make_schedule(ScheduleConfig(), 100, 10)
    paced = Pace(100).schedule(schedule)
    assert [paced(step) for step in range(100)] == pytest.approx([schedule(step) for step in range(100)])


@pytest.mark.parametrize("steps_left", [10, 40, 75])
def test_stretched_schedule_has_no_jump_and_ends_with_the_run(steps_left: int) -> None:
    schedule = make_schedule(ScheduleConfig(), 100, 10)
    pace = Pace(100)
    before = [pace.schedule(schedule)(step) for step in range(25)]
    pace.stretch(25, steps_left)
    rates = [pace.schedule(schedule)(step) for step in range(pace.total)]
    assert rates[:25] == before
    assert pace.total == 25 + steps_left
    assert pace.progress(pace.total) == pytest.approx(1)
    after = rates[25:]
    assert after == sorted(after, reverse=True)  # past the warmup a cosine only falls
    assert before[-1] - after[0] <= max(0.001, before[-2] - before[-1]) * 100 / 75 * 75 / steps_left + 0.01


def test_pace_never_ends_before_the_next_step_nor_after_the_epochs() -> None:
    pace = Pace(100)
    pace.stretch(50, 0)
    assert pace.total == 51
    pace.stretch(50, 1000)
    assert pace.total == 100


def test_marks_bring_back_the_pace() -> None:
    pace = Pace(100)
    pace.stretch(10, 30)
    pace.stretch(20, 40)
    again = Pace(100)
    again.restore([list(mark) for mark in pace.marks])
    assert again.total == pace.total == 60
    assert [again.progress(step) for step in range(61)] == [pace.progress(step) for step in range(61)]


def test_steps_that_fit_leave_time_for_validations_and_the_end() -> None:
    watch = Stopwatch(step=1.0, validation=4.0)
    steps = watch.steps_within(100, epoch=20, done=0, split_sizes=(50, 100), batch=10)
    ends = 4.0 * 150 / 50 + 5
    validations = -(-steps // 20)
    assert steps + 4 * validations + ends <= 100
    assert steps + 1 + 4 * -(-(steps + 1) // 20) + ends > 100


def test_no_step_fits_into_no_time() -> None:
    assert Stopwatch(step=1.0).steps_within(3, epoch=20, done=0, split_sizes=(50, 100), batch=10) == 0


def test_first_steps_are_not_measured() -> None:
    watch = Stopwatch()
    for seconds in (60.0, 30.0, 1.0, 1.0):
        watch.add_step(seconds)
    assert watch.step == 1.0


class FastClock(RunClock):
    """A clock on which each look takes a second, so that a run's length depends on no machine."""

    def __init__(self) -> None:
        self.now = 0.0

    def add(self, seconds: float) -> None:
        self.now += seconds

    @property
    def seconds(self) -> float:
        self.now += 1
        return self.now


def test_run_ends_early_with_its_schedule_finished(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlops_img.training.run.RunClock", FastClock)
    outcome = train("train.epochs=1000", "train.max_minutes=2", "train.log_every_steps=1", "hydra.run.dir=runs/a")
    assert outcome.code == 0, outcome.err
    run = tmp_path / "runs" / "a"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rates = [line["lr"] for line in lines if line["split"] == "train"]
    assert 10 < len(rates) < 120
    assert rates[-1] < 0.1 * max(rates)  # the cosine has come down
    assert json.loads((run / "summary.json").read_text())["steps"] == len(rates)


def test_run_that_is_resumed_keeps_to_its_plan(train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlops_img.training.run.RunClock", FastClock)
    settings = ("train.epochs=1000", "train.max_minutes=2", "train.log_every_steps=1", "hydra.run.dir=runs/a")
    with monkeypatch.context() as patch:
        stop = RunHooks.stop_requested
        patch.setattr(RunHooks, "stop_requested", lambda hooks: stop(hooks) or hooks.setup.state.step >= 10)
        assert train(*settings).code == EXIT_STOPPED
    outcome = train(*settings, "resume=auto")
    assert outcome.code == 0, outcome.err
    lines = [json.loads(line) for line in (tmp_path / "runs/a/metrics.jsonl").read_text().splitlines()]
    rates = {line["step"]: line["lr"] for line in lines if line["split"] == "train"}
    assert list(rates) == list(range(1, len(rates) + 1))
    assert rates[max(rates)] < 0.1 * max(rates.values())


def test_time_shorter_than_an_epoch_still_gives_a_model(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlops_img.training.run.RunClock", FastClock)
    outcome = train("train.epochs=5", "train.max_minutes=0.1", "hydra.run.dir=runs/a")
    assert outcome.code == 0, outcome.err
    assert (
        "train.max_minutes=0.1 ended the training within its first epoch" in (tmp_path / "runs/a/train.log").read_text()
    )


def test_no_time_is_a_user_error(train: Train) -> None:
    outcome = train("train.max_minutes=0")
    assert outcome.code == 2
    assert "train.max_minutes=0.0: it must be more than 0" in outcome.err
