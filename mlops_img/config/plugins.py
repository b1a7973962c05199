"""Modules and classes of the user's own, imported by name (docs/extending.md)."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from typing import Any

from mlops_img.errors import UserError


def import_plugins(modules: Iterable[str]) -> None:
    """Import the modules of `plugins=[...]`.

    Raises:
        UserError: one cannot be imported; says why.
    """
    for name in modules:
        try:
            import_module(name)
        except Exception as error:  # whatever the user's module raises
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise UserError(
                f"plugins: {name} cannot be imported: {reason}. "
                "Name a module that can be imported from the current folder or is installed"
            ) from error


def import_target(key: str, target: str) -> Any:
    """Return the class or function at an import path, "package.module.name".

    Raises:
        UserError: it cannot be imported; names `key` and says why.
    """
    from hydra.utils import get_object

    try:
        found = get_object(target)
    except Exception as error:  # whatever the user's module raises when it is imported
        reason = str(error.__cause__ or error).splitlines()[0]
        raise UserError(f"{key}: {target} cannot be imported: {reason}") from error
    if not callable(found):
        raise UserError(f"{key}: {target} is not a class or function")
    return found
