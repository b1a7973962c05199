"""What every command has in common: composing the configuration, exit codes, and errors in one line."""

from __future__ import annotations

import gc
import logging
import os
import sys
import traceback
import uuid
from collections.abc import Callable, Collection
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import hydra
import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, read_write

from mlops_img.config.command_line import prepare_arguments, quoted
from mlops_img.config.error_messages import describe, find_cause, reject_unknown_keys
from mlops_img.config.paths import expand_home, expand_paths
from mlops_img.config.plugins import import_plugins
from mlops_img.config.rules import validate
from mlops_img.config.schemas import COMMANDS, leaf_keys, register_schemas
from mlops_img.core.environment import prepare_process
from mlops_img.core.torchrun import Launch, current_launch, end_together
from mlops_img.errors import EXIT_FAILED, EXIT_USER_ERROR, UserError
from mlops_img.runs.folder import ERROR_FILE
from mlops_img.runs.launch import USER_ERROR

C = TypeVar("C")

EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells count
EXIT_BROKEN_PIPE = 141  # 128 + SIGPIPE
PACKAGE = Path(__file__).parent

log = logging.getLogger(__name__)


def conf_folder() -> Path:
    """Return the folder of the YAML files: beside the package in a checkout, inside it in a wheel."""
    beside = PACKAGE.parent / "conf"
    return beside if (beside / "train.yaml").is_file() else PACKAGE / "conf"


def command(
    task: Callable[[C], float | int | None],
    config_name: str,
    rewrite: Callable[[list[str]], list[str]] | None = None,
    after: Callable[[], None] | None = None,
) -> None:
    """Run `task` on the configuration that the command line describes, and end the process with its exit code.

    A `UserError`, or a configuration that cannot be composed, becomes one line on stderr and exit code 2.

    Args:
        task: takes the configuration as its dataclass; in a multirun its value ranks the job.
        config_name: of the file in `conf/`.
        rewrite: maps the arguments to those that Hydra gets.
        after: called at the end, however it ended.
    """
    prepare_process()
    keys = leaf_keys(COMMANDS[config_name])
    try:
        arguments = prepare_arguments(
            sys.argv[1:], {key for key, entry in keys.items() if entry.metadata.get("verbatim")}
        )
        sys.argv[1:] = rewrite(arguments) if rewrite else arguments
    except UserError as error:
        exit_with(error)
    register_schemas()
    OmegaConf.register_new_resolver("run_name", _run_name, use_cache=True, replace=True)
    OmegaConf.register_new_resolver("groups", partial(groups_help, conf_folder(), config_name), replace=True)
    # Hydra then hands errors on instead of printing them and exiting with 1.
    os.environ["HYDRA_FULL_ERROR"] = "1"

    begun = False

    def job(composed: DictConfig) -> float | int | None:
        nonlocal begun
        begun = True
        try:
            reject_unknown_keys(composed, keys)
            config: Any = OmegaConf.to_object(composed)
            expand_paths(config)
            import_plugins(getattr(config, "plugins", ()))
            validate(config)
            return task(config)
        except Exception as error:
            if HydraConfig.get().mode != RunMode.MULTIRUN:
                exit_with(error, keys)
            failure = _leave_error(Path(HydraConfig.get().runtime.output_dir), error, keys)
        # Marks this job as failed; the others continue. Hydra keeps the error until the end, so it must not
        # be the one whose traceback holds the model and the batches.
        gc.collect()
        raise failure

    main = hydra.main(version_base="1.3", config_path=str(conf_folder()), config_name=config_name)(job)
    try:
        main()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
    except Exception as error:
        # Hydra makes the run folder and its log before it calls the job.
        cause = None if begun or isinstance(error, HydraException) else find_cause(error, OSError)
        if isinstance(cause, BrokenPipeError):  # `--help | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nothing more is flushed into the pipe
            sys.exit(EXIT_BROKEN_PIPE)
        if cause is not None:
            place = f"run folder {cause.filename} cannot be made: {cause.strerror}"
            error = UserError(f"{place}. Choose another with hydra.run.dir=...")
        exit_with(error, keys)
    finally:
        if after is not None:
            after()


class ExpandHome(Callback):
    """Hydra's callback: replaces `~` in the folders that Hydra makes, which may come from a YAML file."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Expand hydra.run.dir."""
        _expand_folder(config, "hydra.run.dir")

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Expand hydra.sweep.dir, for the jobs too: each is composed anew from the overrides."""
        folder = _expand_folder(config, "hydra.sweep.dir")
        if folder is not None:
            with read_write(config.hydra):
                config.hydra.overrides.hydra.append(f"hydra.sweep.dir={quoted(folder)}")


def _expand_folder(config: DictConfig, key: str) -> str | None:
    """Replace `~` in the folder that this key names; returns what it is now, or None where nothing changed."""
    folder = str(OmegaConf.select(config, key))
    expanded = expand_home(key, folder)
    if expanded == folder:
        return None
    with read_write(config.hydra):
        OmegaConf.update(config, key, expanded)
    return expanded


def exit_with(error: Exception, keys: Collection[str] = ()) -> NoReturn:
    """End the process: a user error with one line and exit code 2, any other with its traceback and exit code 1."""
    message = describe(error, keys)
    launch = current_launch()
    if launch is not None:
        _exit_as_rank(launch, error, message)
    if message is None:
        traceback.print_exception(error)
        sys.exit(EXIT_FAILED)
    print(f"error: {message}", file=sys.stderr)
    sys.exit(EXIT_USER_ERROR)


def _exit_as_rank(launch: Launch, error: Exception, message: str | None) -> NoReturn:
    """End one of the processes that torchrun started: the first that fails prints its error, the others nothing."""
    code = EXIT_FAILED if message is None else EXIT_USER_ERROR
    code, line = end_together(launch, error, code, message or "".join(traceback.format_exception(error)))
    if line is not None:
        line = f"error: {line}"
        if code == EXIT_USER_ERROR:
            launch.remember(USER_ERROR, line)
        print(line, file=sys.stderr)
    sys.exit(code)


def _leave_error(folder: Path, error: Exception, keys: Collection[str]) -> Exception:
    """Write the error into the job's folder and log, and return it without its traceback."""
    line = describe(error, keys)
    message = line or "".join(traceback.format_exception(error))
    log.error("%s", message)
    (folder / ERROR_FILE).write_text(message + "\n", encoding="utf-8")
    return UserError(line) if line else RuntimeError(f"a job failed, see {folder / ERROR_FILE}")


def groups_help(conf: Path, config_name: str) -> str:
    """Return the part of `--help` on the groups that a command composes; empty where there are none.

    Args:
        conf: the folder of the YAML files.
        config_name: of the file in it.
    """
    defaults = yaml.safe_load((conf / f"{config_name}.yaml").read_text(encoding="utf-8"))["defaults"]
    groups = [group for entry in defaults if isinstance(entry, dict) for group in entry if " " not in group]
    lines = [f"{group}: {', '.join(sorted(path.stem for path in (conf / group).glob('*.yaml')))}" for group in groups]
    return "\n".join(["Groups (choose one of each with group=option):", "", *lines, "", ""]) if lines else ""


def _run_name() -> str:
    # Two runs that start in the same second still get folders of their own.
    return f"{datetime.now():%Y-%m-%d_%H-%M-%S}_{uuid.uuid4().hex[:6]}"
