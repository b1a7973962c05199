"""Train, evaluate and report: `python -m mlops_img.train model=resnet18 optim.lr=1e-3`.

`--help` shows every key. Exit codes: 0 done, 1 an internal error, 2 a user error (one line describes it),
75 stopped on request after saving (`resume=auto` resumes).
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from hydra.core.hydra_config import HydraConfig

from mlops_img.cli import command
from mlops_img.config.command_line import split_arguments
from mlops_img.config.train import Config
from mlops_img.core.torchrun import Launch, current_launch, end_group, start_group
from mlops_img.errors import StoppedOnRequest
from mlops_img.reporting.multirun import summarize_multirun
from mlops_img.runs.folder import Origin, RunFolder
from mlops_img.runs.launch import check_supported, hand_over, launch_arguments

log = logging.getLogger(__name__)


def train(config: Config) -> float:
    """Run one training and return the value of `config.optimized_metric` that its kept weights reached."""
    from mlops_img.training.run import release_memory, run

    launch = current_launch()
    if launch is not None:
        return _train_as_rank(config, launch)
    folder = RunFolder(Path(HydraConfig.get().runtime.output_dir))
    try:
        return float(run(config, folder, _origin())[config.optimized_metric])
    finally:
        release_memory()  # for the next job of a multirun, which runs in this process


def _train_as_rank(config: Config, launch: Launch) -> float:
    """Do one process's part of a training that torchrun started; the value is that of rank 0."""
    from mlops_img.core.distributed import device_of
    from mlops_img.core.precision import choose_device
    from mlops_img.training.follow import follow
    from mlops_img.training.run import run

    folder = RunFolder(Path(HydraConfig.get().runtime.output_dir))
    if launch.world.leads:
        check_supported(config)
        hand_over(launch, str(folder.path))
    else:
        logging.getLogger().setLevel(logging.ERROR)  # rank 0 says the rest
    device = choose_device(device_of(launch.world, config.train.device))
    start_group(launch, device, config.train.timeout_seconds)
    value = float("nan")
    try:
        if launch.world.leads:
            value = float(run(config, folder, _origin(), launch.world)[config.optimized_metric])
        else:
            follow(config, folder, launch.world)
    except StoppedOnRequest:
        # Any other code would let torchrun's --max-restarts start the run again.
        log.warning("stopped on request; resume=auto resumes the run")
    end_group()
    return value


def _origin() -> Origin:
    options, _ = split_arguments(sys.argv[1:])
    return Origin(options, list(HydraConfig.get().overrides.task))


def main() -> None:
    """Run the command line."""
    command(train, "train", rewrite=launch_arguments, after=summarize_multirun)


if __name__ == "__main__":
    main()
