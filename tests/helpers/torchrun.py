"""Trainings by torchrun, as from a shell."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.helpers.commands import TINY, Outcome
from tests.helpers.paths import ROOT
from tests.helpers.shared_bundle import unmeasured

# A schedule that does something to this process before a step, in the first attempt only.
PLUGIN = """
import os, signal
from mlops_img.core.torchrun import current_launch
from mlops_img.training.schedule import constant, schedule

@schedule("interrupted")
def interrupted(config, span):
    usual = constant(config, span)

    def rate(step):
        if step == config.kwargs["step"] and is_the_one(config.kwargs["rank"]) and not done:
            done.append(step)
            os.kill(os.getpid(), config.kwargs["signal"])
        return usual(step)

    return rate

done = []

def is_the_one(rank):
    launch = current_launch()
    return launch is not None and launch.world.rank == rank and launch.attempt == 0
"""


def torchrun(folder: Path, *arguments: str, processes: int = 2, restarts: int = 0) -> Outcome:
    """Train in `folder` with the tiny settings; further arguments override them."""
    (folder / "interrupting.py").write_text(PLUGIN)
    given = {argument.split("=")[0] for argument in arguments}
    defaults = [argument for argument in TINY if argument.split("=")[0] not in given]
    command = [
        *(sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}"),
        *("--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", f"--max-restarts={restarts}", "-m", "mlops_img.train"),
    ]
    environment = {**unmeasured(), "PYTHONPATH": f"{ROOT}:{folder}"}
    done = subprocess.run(
        [*command, *arguments, *defaults], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


def interrupted(rank: int, step: int, signal: int) -> tuple[str, ...]:
    """Return the arguments with which a rank gets a signal before a step (counted from 0) of the first attempt."""
    kwargs = f"schedule.kwargs={{rank: {rank}, step: {step}, signal: {signal:d}}}"
    return "plugins=[interrupting]", "schedule=constant", "schedule.name=interrupted", kwargs
