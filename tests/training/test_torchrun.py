"""Trainings that torchrun starts: one folder, one error line, one stop, and restarts that change nothing."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.commands import Outcome
from tests.helpers.shapes import write_shapes
from tests.helpers.stopped_runs import metrics
from tests.helpers.torchrun import interrupted, torchrun

Command = Callable[..., Outcome]
WHOLE = ("data.root=photos", "train.accumulate=2", "train.batch_size=4", "train.precision=fp32", "train.device=cpu")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for split, count in (("train", 9), ("val", 4), ("test", 4)):
        write_shapes(tmp_path / "photos" / split, count, seed=len(split))
    return tmp_path


def best(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(run / "checkpoints" / "best.pt", weights_only=True)
    return content


def own_lines(outcome: Outcome) -> list[str]:
    """Return what the ranks printed to stderr, without torchrun's own report of a failure."""
    lines = outcome.err.splitlines()
    return [line for line in lines if line.startswith("error: ")] + [line for line in lines if "Traceback" in line]


def test_two_ranks_train_one_run_which_one_process_goes_on_with(folder: Path, command: Command) -> None:
    damaged = folder / "photos" / "train" / "circle" / "000.jpg"
    damaged.write_bytes(damaged.read_bytes()[:300])
    outcome = torchrun(folder, *WHOLE, "data.on_bad_image=skip", "train.epochs=2")
    assert outcome.code == 0, outcome.err
    (run,) = [path for path in (folder / "runs").iterdir() if not path.is_symlink()]
    assert (folder / "runs" / "latest").resolve() == run
    assert outcome.out.count("run folder: ") == 1
    assert (run / "train.log").read_text().count("run folder: ") == 1
    assert list(json.loads((run / "skipped.json").read_text())) == ["photos/train/circle/000.jpg"]
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["steps"], summary["test.n"]) == (6, 12)
    assert [line["step"] for line in metrics(run) if line["split"] == "val"] == [3, 6]
    again = command("mlops_img.train", "resume=auto", f"hydra.run.dir={run}", "train.epochs=3")
    assert again.code == 0, again.err
    assert json.loads((run / "summary.json").read_text())["steps"] == 9


def test_error_of_one_rank_is_one_line_and_not_worth_a_restart(folder: Path) -> None:
    for kind in ("circle", "square", "stripes"):
        for path in sorted((folder / "photos/train" / kind).iterdir())[::4]:
            path.write_bytes(f"no image: {path}".encode())
    outcome = torchrun(folder, *WHOLE, restarts=1)
    assert outcome.code == 1
    lines = own_lines(outcome)
    assert "cannot be decoded" in lines[0]
    assert lines[0].startswith(("error: rank 0: ", "error: rank 1: "))
    assert set(lines) <= {lines[0], "Traceback (most recent call last):"}, outcome.err
    assert outcome.err.index("cannot be decoded") < outcome.err.index("Traceback"), "that one is torchrun's"


@pytest.mark.parametrize(
    ("arguments", "processes", "message"),
    [
        (("data.root=photos", "train.batch_size=8"), 3, "Start 2 or 4, or change one of both"),
        (("-m", "data.root=photos"), 2, "-m runs many trainings"),
        (("data.root=photos", "train.max_minutes=1"), 2, "train.max_minutes=1: each rank has a clock"),
    ],
)
def test_what_ranks_cannot_do_is_refused_in_one_line(
    folder: Path, arguments: tuple[str, ...], processes: int, message: str
) -> None:
    outcome = torchrun(folder, *arguments, processes=processes)
    assert outcome.code == 1
    (line,) = [line for line in outcome.err.splitlines() if line.startswith("error: ")]
    assert message in line


def test_a_rank_that_is_killed_costs_one_restart_and_no_bit(folder: Path) -> None:
    settings = (*WHOLE, "train.checkpoint_every_steps=1", "train.epochs=2")
    killed = torchrun(folder, *settings, "hydra.run.dir=runs/killed", *interrupted(1, 4, signal.SIGKILL), restarts=1)
    assert killed.code == 0, killed.err
    whole = torchrun(folder, *settings, "hydra.run.dir=runs/whole", *interrupted(-1, 0, 0))
    assert whole.code == 0, whole.err
    one, other = (best(folder / "runs" / name)["model"] for name in ("killed", "whole"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert metrics(folder / "runs/killed") == metrics(folder / "runs/whole")


def test_sigterm_to_one_rank_saves_and_stops_all(folder: Path) -> None:
    stopped = torchrun(folder, *WHOLE, "hydra.run.dir=runs/a", *interrupted(1, 1, signal.SIGTERM), restarts=1)
    assert stopped.code == 0, stopped.err
    assert "stopped on request" in stopped.out
    assert [path.name for path in (folder / "runs/a/checkpoints").iterdir()] == ["step-00000002.pt"]
    assert not (folder / "runs/a/summary.json").exists()
