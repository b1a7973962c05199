"""Class names as keys of a YAML file, where `yes`, `on`, `01` and `1.10` are not strings."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from mlops_img.errors import UserError, did_you_mean


def find_class(key: str, name: Any, classes: Sequence[str]) -> str:
    """Return the class that a key of a mapping names, as YAML 1.1 reads it: `yes` is True and `01` is 1.

    Args:
        key: of the mapping in the configuration, for errors.
        name: the class name as YAML or the command line parsed it.
        classes: all names.

    Raises:
        UserError: it names no class, or more than one.
    """
    if isinstance(name, str):
        meant = [name] if name in classes else []
    else:
        meant = [known for known in classes if known == str(name) or _same_scalar(known, name)]
    if len(meant) == 1:
        return meant[0]
    if meant:
        raise UserError(
            f"{key}: {name!r} can mean the classes {' and '.join(map(repr, meant))}. "
            f'Put the name in quotes in a YAML file, e.g. "{meant[0]}"'
        )
    hint = "" if isinstance(name, str) else " Put the name in quotes, if YAML changed it."
    raise UserError(f"{key}: there is no class {name!r}.{hint}{did_you_mean(str(name), classes)}")


def _same_scalar(text: str, value: Any) -> bool:
    read = _as_yaml(text)
    return type(read) is type(value) and bool(read == value)


@cache
def _as_yaml(text: str) -> Any:
    """Return what OmegaConf makes of this text in a YAML file."""
    try:
        return OmegaConf.to_container(OmegaConf.create(f"name: {text}"))["name"]  # type: ignore[call-overload, index]
    except (YAMLError, OmegaConfBaseException, ValueError, KeyError):
        return text
