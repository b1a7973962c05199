"""Keys that name a file or a folder: their mark, and `~` in their values.

A key is marked where it is defined, `key(default, path=True)`; everything here follows from the mark.
"""

from __future__ import annotations

import dataclasses
import os
from typing import Any

from mlops_img.errors import UserError

HYDRA_PATHS = ("hydra.run.dir", "hydra.sweep.dir")


def expand_home(key: str, value: str) -> str:
    """Replace a leading `~` or `~user` by that home folder.

    Raises:
        UserError: no home folder is known.
    """
    expanded = os.path.expanduser(value)
    if expanded.split("/")[0] == "~":
        raise UserError(f"{key}={value}: the home folder is unknown. Set HOME, or write the whole path")
    return expanded


def expand_paths(config: Any, prefix: str = "") -> None:
    """Replace `~` in every path of a configuration, in place.

    Args:
        config: a dataclass instance; nested ones are walked too.
        prefix: of the keys, for errors.

    Raises:
        UserError: a path is empty, or no home folder is known.
    """
    for field in dataclasses.fields(config):
        key, value = f"{prefix}{field.name}", getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            expand_paths(value, f"{key}.")
        elif field.metadata.get("path") and isinstance(value, str):
            if not value.strip():
                raise UserError(f"{key}: the value is empty. Set it with {key}=..., or leave it out")
            setattr(config, field.name, expand_home(key, value))
