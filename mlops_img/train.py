"""Train, evaluate and report: `python -m mlops_img.train model=resnet18 optim.lr=1e-3`.

`--help` shows every key. Exit codes: 0 done, 1 an internal error, 2 a user error (one line describes it),
75 stopped on request after saving (`resume=auto` goes on).
"""

from __future__ import annotations

import sys
from pathlib import Path

from hydra.core.hydra_config import HydraConfig

from mlops_img.cli import command
from mlops_img.config.command_line import split_arguments
from mlops_img.config.train import Config
from mlops_img.errors import UserError
from mlops_img.runs.resume import resume_arguments
from mlops_img.runs.tracking import check_online


def train(config: Config) -> float:
    """Run one training and return the value of `config.optimized_metric` that its best epoch reached."""
    check_online(config.tracking)
    from mlops_img.runs.folder import Origin, RunFolder

    hydra = HydraConfig.get()
    folder = RunFolder(Path(hydra.runtime.output_dir))
    folder.create()
    if config.resume not in (None, "auto") and Path(config.resume).resolve() != folder.path.resolve():
        raise UserError(f"resume={config.resume}: say it on the command line of a single run, or use resume=auto")
    from mlops_img.training.run import release_memory, run

    options, _ = split_arguments(sys.argv[1:])
    origin = Origin(options, list(hydra.overrides.task))
    try:
        return float(run(config, folder, origin)[config.optimized_metric])
    finally:
        release_memory()  # for the next job of a multirun, which runs in this process


def main() -> None:
    """Run the command line."""
    command(train, "train", rewrite=resume_arguments)


if __name__ == "__main__":
    main()
