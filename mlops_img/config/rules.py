"""Rules of configuration keys: each is defined with its key, `key(default, rule)`; `validate` checks them all."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import field
from importlib import import_module
from typing import Any

from mlops_img.errors import UserError, did_you_mean

# Takes a key's full name and its value; raises a UserError where the value breaks the rule.
Rule = Callable[[str, Any], None]


def key(default: Any, *rules: Rule, path: bool = False, verbatim: bool = False) -> Any:
    """Define a field of a configuration dataclass with its rules.

    Args:
        default: value of the field; each instance gets a list of its own.
        rules: checked by `validate`, in this order; a value of None breaks none.
        path: the value names a file or a folder, so `~` is expanded; it is `verbatim` too.
        verbatim: characters that are special to Hydra need no quotes in the value.
    """
    metadata = {"rules": rules, "path": path, "verbatim": path or verbatim}
    if isinstance(default, list):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


def validate(config: Any, prefix: str = "") -> None:
    """Check every key of a configuration, then combinations of keys (a dataclass's own `check`).

    Args:
        config: a dataclass instance; nested ones are checked too.
        prefix: of the keys, for errors.

    Raises:
        UserError: the first key whose value breaks a rule; says what it may be.
    """
    for entry in dataclasses.fields(config):
        name, value = f"{prefix}{entry.name}", getattr(config, entry.name)
        if dataclasses.is_dataclass(value):
            validate(value, f"{name}.")
        elif value is not None:
            for rule in entry.metadata.get("rules", ()):
                rule(name, value)
    check: Callable[[str], None] | None = getattr(config, "check", None)
    if check is not None:
        check(prefix)


def one_of(*choices: str) -> Rule:
    """Allow these values."""
    return lambda name, value: check_choice(name, value, choices)


def one_from(table: str, *others: str, prefix: str = "") -> Rule:
    """Allow the names in a table, which is imported when it is needed.

    Args:
        table: the import path of a mapping, "module:NAME".
        others: further values that are allowed, named first.
        prefix: put before each name of the table.
    """
    return lambda name, value: check_choice(
        name, value, (*others, *(f"{prefix}{entry}" for entry in import_table(table)))
    )


def import_table(path: str) -> Mapping[str, Any]:
    """Return the mapping at "module:NAME"."""
    module, _, name = path.partition(":")
    table: Mapping[str, Any] = getattr(import_module(module), name)
    return table


def check_choice(name: str, value: str, valid: Collection[str]) -> None:
    """Raise a UserError that names the nearest choice if `value` is none of them."""
    if value not in valid:
        raise UserError(f"{name}={value}: it can be {', '.join(valid)}.{did_you_mean(value, valid)}")


def at_least(least: float) -> Rule:
    """Allow this number and larger ones."""
    return _require(lambda value: value >= least, f"it must be at least {least}")


def more_than(limit: float) -> Rule:
    """Allow larger numbers than this."""
    return _require(lambda value: value > limit, f"it must be more than {limit}")


def word_or(word: str, rule: Rule, *, whole: bool = False) -> Rule:
    """Allow this word, and the numbers that another rule allows; only whole ones if `whole`."""
    number = int if whole else int | float

    def checked(name: str, value: Any) -> None:
        if value == word:
            return
        if isinstance(value, bool) or not isinstance(value, number):
            kind = "a whole number" if whole else "a number"
            raise UserError(f"{name}={value}: it can be {kind} or {word}.{did_you_mean(str(value), [word])}")
        rule(name, value)

    return checked


def between(low: float, high: float) -> Rule:
    """Allow these two numbers and those between them."""
    return _require(lambda value: low <= value <= high, f"it must lie between {low} and {high}")


def ascending_pair() -> Rule:
    """Allow two numbers above 0, the smaller first."""
    return _require(
        lambda value: len(value) == 2 and 0 < value[0] <= value[1],
        "it takes two numbers above 0, the smaller first, e.g. [0.5, 1.0]",
    )


def per_channel() -> Rule:
    """Allow three numbers."""
    return _require(lambda value: len(value) == 3, "it takes one number for each of red, green and blue")


def each_more_than(limit: float) -> Rule:
    """Allow lists of larger numbers than this."""
    return _require(lambda value: all(one > limit for one in value), f"each must be more than {limit}")


def not_empty(what: str) -> Rule:
    """Allow lists that hold something."""
    return _require(bool, f"name at least one {what}")


def folder_name() -> Rule:
    """Allow what can name a folder anywhere."""
    return _require(
        re.compile(r"[A-Za-z0-9][\w.-]*").fullmatch, "it names a folder; use letters, digits, '.', '_' and '-'"
    )


def _require(holds: Callable[[Any], Any], otherwise: str) -> Rule:
    def rule(name: str, value: Any) -> None:
        if not holds(value):
            raise UserError(f"{name}={value}: {otherwise}")

    return rule
