"""What every command has in common: composing the configuration, exit codes, and errors in one line."""

from __future__ import annotations

import dataclasses
import logging
import os
import sys
import traceback
import uuid
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from mlops_img.config import register_schemas
from mlops_img.errors import EXIT_FAILED, EXIT_USER_ERROR, UserError, did_you_mean

C = TypeVar("C")

EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells count
ERROR_FILE = "error.txt"
PACKAGE = Path(__file__).parent

log = logging.getLogger(__name__)


def conf_folder() -> Path:
    """Return the folder of the YAML files: beside the package in a checkout, inside it in a wheel."""
    beside = PACKAGE.parent / "conf"
    return beside if (beside / "config.yaml").is_file() else PACKAGE / "conf"


def command(task: Callable[[C], float | int | None], config_name: str) -> None:
    """Run `task` on the configuration that the command line describes, and end the process as it should.

    A `UserError`, or a configuration that cannot be composed, becomes one line on stderr and exit code 2.

    Args:
        task: takes the configuration as its dataclass; in a multirun its value ranks the job.
        config_name: of the file in `conf/`.
    """
    register_schemas()
    OmegaConf.register_new_resolver("run_name", _run_name, use_cache=True, replace=True)
    # Hydra then hands errors on instead of printing them and exiting with 1.
    os.environ["HYDRA_FULL_ERROR"] = "1"

    def job(composed: DictConfig) -> float | int | None:
        try:
            reject_unknown_keys(composed)
            config: Any = OmegaConf.to_object(composed)
            return task(config)
        except Exception as error:
            if HydraConfig.get().mode == RunMode.MULTIRUN:
                _leave_error(Path(HydraConfig.get().runtime.output_dir), error)
                raise  # marks this job as failed; the others go on
            exit_with(error)

    main = hydra.main(version_base="1.3", config_path=str(conf_folder()), config_name=config_name)(job)
    try:
        main()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
    except Exception as error:
        if isinstance(error, OSError) and not isinstance(error, HydraException):
            # Hydra makes the run folder before any code of ours runs.
            place = f"run folder {error.filename} cannot be made: {error.strerror}"
            error = UserError(f"{place}. Choose another with hydra.run.dir=...")
        exit_with(error)
    finally:
        multirun = sys.modules.get("mlops_img.multirun")
        if multirun is not None:
            multirun.finish()


def reject_unknown_keys(node: DictConfig) -> None:
    """Look for keys that no dataclass has: `+key=value` adds them past the types.

    Raises:
        UserError: the first such key, with the nearest valid one.
    """
    kind = OmegaConf.get_type(node)
    for name in node:
        if dataclasses.is_dataclass(kind):
            names = [field.name for field in dataclasses.fields(kind)]
            if name not in names:
                raise UserError(_no_such_key(str(node._get_full_key(name)), str(name), names))
        if not OmegaConf.is_missing(node, name) and isinstance(node[name], DictConfig):
            reject_unknown_keys(node[name])


def _no_such_key(full: str, key: str, names: list[str]) -> str:
    return f"{full}: there is no such key.{did_you_mean(key, names)} Keys here: {', '.join(names)}"


def describe(error: Exception) -> str | None:
    """Return one line for a user's mistake, and None for an error of ours."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, MissingConfigException):
        wanted = (error.missing_cfg_file or "").removesuffix(".yaml")
        group, _, option = wanted.rpartition("/")
        options = [name for name in error.options or [] if name != option]
        if not group:
            return _one_line(error)
        return (
            f"{group}={option}: there is no such option; there are {', '.join(options)}.{did_you_mean(option, options)}"
        )
    if isinstance(error, HydraException | OmegaConfBaseException):
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, OmegaConfBaseException):
            cause = cause.__cause__ or cause.__context__
        return _one_line(error) if cause is None else _describe_key(error, cause)
    if isinstance(error, YAMLError):
        return f"this is no YAML: {_one_line(error)}"
    return None


def _describe_key(error: Exception, cause: OmegaConfBaseException) -> str:
    """Describe a key that does not exist, a value of the wrong type, or one that is missing."""
    place = f"{str(error).split(':')[0]}: " if str(error).startswith("In '") else ""
    key = cause.full_key or str(cause.key or "")
    reason = (cause.msg or str(cause)).splitlines()[0]
    if dataclasses.is_dataclass(cause.object_type) and cause.key is not None:
        names = [field.name for field in dataclasses.fields(cause.object_type)]
        if cause.key not in names:
            return place + _no_such_key(key, str(cause.key), names)
    if "mandatory value" in reason or "mandatory value" in str(cause):
        return f"{place}{key} is not set. Set it with {key}=..."
    return f"{place}{key}: {reason}" if key not in reason else f"{place}{reason}"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def exit_with(error: Exception) -> NoReturn:
    """End the process: a user's mistake as one line and exit code 2, anything else with its traceback and 1."""
    message = describe(error)
    if message is None:
        traceback.print_exception(error)
        sys.exit(EXIT_FAILED)
    print(f"error: {message}", file=sys.stderr)
    sys.exit(EXIT_USER_ERROR)


def _leave_error(folder: Path, error: Exception) -> None:
    """Write what went wrong into the job's own folder and log."""
    message = describe(error) or "".join(traceback.format_exception(error))
    log.error("%s", message)
    (folder / ERROR_FILE).write_text(message + "\n", encoding="utf-8")


def _run_name() -> str:
    # Two runs that start in the same second still get folders of their own.
    return f"{datetime.now():%Y-%m-%d_%H-%M-%S}_{uuid.uuid4().hex[:6]}"
