"""Train, evaluate and report: `python -m mlops_img.train model=resnet18 optim.lr=1e-3`.

`--help` shows every key. Exit codes: 0 done, 1 an internal error, 2 a user error (one line describes it),
75 stopped on request after saving (`resume=auto` resumes).
"""

from __future__ import annotations

import sys
from pathlib import Path

from hydra.core.hydra_config import HydraConfig

from mlops_img.cli import command
from mlops_img.config.command_line import split_arguments
from mlops_img.config.train import Config
from mlops_img.reporting.multirun import summarize_multirun
from mlops_img.runs.folder import Origin, RunFolder
from mlops_img.runs.resume import resume_arguments


def train(config: Config) -> float:
    """Run one training and return the value of `config.optimized_metric` that its kept weights reached."""
    from mlops_img.training.run import release_memory, run

    hydra = HydraConfig.get()
    options, _ = split_arguments(sys.argv[1:])
    origin = Origin(options, list(hydra.overrides.task))
    try:
        return float(run(config, RunFolder(Path(hydra.runtime.output_dir)), origin)[config.optimized_metric])
    finally:
        release_memory()  # for the next job of a multirun, which runs in this process


def main() -> None:
    """Run the command line."""
    command(train, "train", rewrite=resume_arguments, after=summarize_multirun)


if __name__ == "__main__":
    main()
