"""The command line of a training that torchrun started: rank 0 chooses the run folder, the others use it."""

from __future__ import annotations

import sys

from mlops_img.config.command_line import is_multirun, quoted, split_arguments
from mlops_img.config.train import Config
from mlops_img.core.torchrun import Launch, code_digest, join
from mlops_img.errors import EXIT_OK, EXIT_USER_ERROR, UserError
from mlops_img.runs.resume import resume_arguments

HANDED_OVER = "handed over"
FOLDER = "folder"
USER_ERROR = "user error"
# Options with which Hydra prints something and does not start the job.
PRINTING = {"--help", "-h", "--hydra-help", "--version", "--cfg", "-c", "--info", "-i", "--shell-completion", "-sc"}


def launch_arguments(arguments: list[str]) -> list[str]:
    """Rewrite a command line so that all processes of a torchrun work on one run.

    Without torchrun it is rewritten for `resume=...` only.

    Args:
        arguments: what `prepare_arguments` returns.

    Returns:
        The arguments for Hydra.

    Raises:
        UserError: it asks for a multirun, the ranks differ in it or in their code, or there is no run to resume.
    """
    try:
        launch = join()
    except RuntimeError as error:
        raise UserError(f"torchrun's store cannot be reached: {str(error).splitlines()[0]}") from None
    if launch is None:
        return resume_arguments(arguments)
    options, overrides = split_arguments(arguments)
    if not launch.world.leads:
        if PRINTING & {option.split("=")[0] for option in options}:
            sys.exit(EXIT_OK)  # rank 0 prints it
        _state_what_must_be_equal(launch, arguments)
        return _as_rank_0(*launch.get(HANDED_OVER))
    _end_if_restarting_is_useless(launch)
    if is_multirun(options, overrides):
        raise UserError("-m runs many trainings, and torchrun one training in many processes. Leave out one of both")
    _state_what_must_be_equal(launch, arguments)
    folder = launch.remembered(FOLDER)
    if folder is not None:  # of the processes before torchrun restarted them
        kept = [given for given in overrides if given.split("=")[0].lstrip("+~") not in ("resume", "hydra.run.dir")]
        arguments = [*options, *kept, "resume=auto", f"hydra.run.dir={quoted(folder)}"]
    return resume_arguments(arguments)


def hand_over(launch: Launch, folder: str) -> None:
    """On rank 0, tell the others the command line and the run folder, which exists by now."""
    launch.remember(FOLDER, folder)
    launch.set(HANDED_OVER, [sys.argv[1:], folder])


def check_supported(config: Config) -> None:
    """Refuse what only a single process does.

    Raises:
        UserError: the configuration asks for it.
    """
    if config.probe.name != "none":
        raise UserError(
            f"probe={config.probe.name}: a probe is fitted by one process. Run it without torchrun and with "
            "train.epochs=0, then train with probe=none and model.weights=<its run folder>"
        )
    if config.train.batch_size == "auto":
        raise UserError("train.batch_size=auto: the search times a single process. Under torchrun, set a number")
    if config.train.max_minutes is not None:
        raise UserError(
            f"train.max_minutes={config.train.max_minutes:g}: each rank has a clock of its own. Under torchrun, set "
            "train.epochs or train.max_steps"
        )


def _state_what_must_be_equal(launch: Launch, arguments: list[str]) -> None:
    for what, value, fix in (
        ("arguments", "\n".join(arguments), "Start every machine with the same command line"),
        ("code", code_digest(), "Install the same mlops_img and PyTorch on every machine"),
    ):
        differing = launch.differing(what, value)
        if differing:
            ranks = ", ".join(map(str, differing))
            raise UserError(f"rank {ranks}: other {what} than rank 0. {fix}")


def _as_rank_0(arguments: list[str], folder: str) -> list[str]:
    """Return the arguments of rank 0 for another rank, which writes neither a log nor the composed configuration."""
    options, overrides = split_arguments(arguments)
    kept = [given for given in overrides if given.split("=")[0] not in ("hydra/job_logging", "hydra.output_subdir")]
    own = [f"hydra.run.dir={quoted(folder)}", "hydra.output_subdir=null", "hydra/job_logging=none"]
    return [*options, *kept, *own]


def _end_if_restarting_is_useless(launch: Launch) -> None:
    line = launch.remembered(USER_ERROR)
    if line is not None:
        print(line, file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)
