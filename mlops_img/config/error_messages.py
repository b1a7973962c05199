"""One line for each error of the command line, the configuration and the disk."""

from __future__ import annotations

import dataclasses
import difflib
import errno
from collections.abc import Collection
from typing import TypeVar

from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from mlops_img.errors import UserError, did_you_mean

FULL_OR_READ_ONLY = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
MAX_SUGGESTIONS = 3

E = TypeVar("E", bound=BaseException)


def reject_unknown_keys(node: DictConfig, keys: Collection[str] = ()) -> None:
    """Reject keys that no dataclass has: `+key=value` adds them past the schema.

    Args:
        node: what was composed.
        keys: all keys of the command, to suggest one of them.

    Raises:
        UserError: the first such key, with the nearest valid one.
    """
    kind = OmegaConf.get_type(node)
    for name in node:
        if dataclasses.is_dataclass(kind):
            names = [field.name for field in dataclasses.fields(kind)]
            if name not in names:
                raise UserError(_no_such_key(str(node._get_full_key(name)), str(name), names, keys))
        if not OmegaConf.is_missing(node, name) and isinstance(node[name], DictConfig):
            reject_unknown_keys(node[name], keys)


def _no_such_key(full: str, key: str, names: list[str], keys: Collection[str]) -> str:
    """Describe an unknown key: `names` are those beside it, `keys` all keys of the command."""
    # `lr` for `optim.lr`: what was left out or mistaken is where the key is.
    same = [known for known in keys if known.rpartition(".")[2] == key and known != full][:MAX_SUGGESTIONS]
    hint = f" Did you mean {' or '.join(map(repr, same))}?" if same else did_you_mean(key, names)
    if not hint:
        near = difflib.get_close_matches(key, {known.rpartition(".")[2] for known in keys}, n=1, cutoff=0.7)
        hint = f" Did you mean {next(repr(known) for known in keys if known.endswith(f'.{near[0]}'))}?" if near else ""
    return f"{full}: there is no such key.{hint} Keys here: {', '.join(names)}"


def describe(error: Exception, keys: Collection[str] = ()) -> str | None:
    """Return one line for a user error, and None for an internal error.

    Args:
        error: what ended the command.
        keys: all keys of the command, to suggest one of them.
    """
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
        cause = find_cause(error, OmegaConfBaseException)
        return _one_line(error) if cause is None else _describe_key(error, cause, keys)
    if isinstance(error, YAMLError):
        return f"invalid YAML: {_one_line(error)}"
    if isinstance(error, OSError) and error.errno in FULL_OR_READ_ONLY:
        place = error.filename or "a file of the run"
        return f"{place} cannot be written: {error.strerror}. Free some space, or choose another hydra.run.dir=..."
    return None


def find_cause(error: BaseException | None, kind: type[E]) -> E | None:
    """Return the first error of this kind among those that led to `error`, itself included."""
    while error is not None and not isinstance(error, kind):
        error = error.__cause__ or error.__context__
    return error


def _describe_key(error: Exception, cause: OmegaConfBaseException, keys: Collection[str]) -> str:
    """Describe a key that does not exist, a value of the wrong type, or one that is missing."""
    place = f"{str(error).split(':')[0]}: " if str(error).startswith("In '") else ""
    key = cause.full_key or str(cause.key or "")
    reason = (cause.msg or str(cause)).splitlines()[0]
    if dataclasses.is_dataclass(cause.object_type) and cause.key is not None:
        names = [field.name for field in dataclasses.fields(cause.object_type)]
        if cause.key not in names:
            return place + _no_such_key(key, str(cause.key), names, keys)
    if "mandatory value" in reason or "mandatory value" in str(cause):
        return f"{place}{key} is not set. Set it with {key}=..."
    return f"{place}{key}: {reason}" if key not in reason else f"{place}{reason}"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
