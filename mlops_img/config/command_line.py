"""Command-line arguments before Hydra reads them: options and overrides, paths with special characters, `~`.

Hydra's grammar cannot read many characters that occur in file names (blanks beside parentheses, quotes, `=`, letters
beyond ASCII). If the value of a path key does not parse, it is quoted; a value that parses keeps its meaning.
"""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Collection
from typing import Any, NoReturn

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Sweep
from hydra.errors import HydraException

from mlops_img.config.paths import HYDRA_PATHS, expand_home
from mlops_img.errors import UserError

OPTIONS_WITH_VALUE = (
    "--config-dir",
    "-cd",
    "--config-name",
    "-cn",
    "--config-path",
    "-cp",
    "--cfg",
    "-c",
    "--package",
    "-p",
    "--experimental-rerun",
)
TYPOGRAPHIC = "“”„‘’‚«»–—"  # quotes and dashes that a web page or a word processor puts in place of ASCII


def prepare_arguments(arguments: list[str], paths: Collection[str]) -> list[str]:
    """Return the arguments with options first, as Hydra requires, and paths that it can read.

    Args:
        arguments: what follows the command's name.
        paths: keys whose values are paths. In these, `~` is expanded, and a value that does not parse is quoted.

    Raises:
        UserError: an option or override that Hydra cannot read.
    """
    options, overrides = split_arguments(arguments)
    _check_options(options)
    multirun = is_multirun(options, overrides)
    return [*options, *(_prepare(override, {*paths, *HYDRA_PATHS}, multirun) for override in overrides)]


def split_arguments(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Split a command line into Hydra's options, with their values, and overrides."""
    options, overrides = [], []
    values = iter(arguments)
    for argument in values:
        if not argument.startswith("-"):
            overrides.append(argument)
            continue
        options.append(argument)
        if argument in OPTIONS_WITH_VALUE:
            options += [value for value in [next(values, None)] if value is not None]
    return options, overrides


def is_multirun(options: list[str], overrides: list[str]) -> bool:
    """Return whether the command line asks for a multirun."""
    return bool({"-m", "--multirun"} & set(options)) or any(
        re.fullmatch(r"\+{0,2}hydra\.mode=multirun", override, re.IGNORECASE) for override in overrides
    )


def given_values(overrides: list[str]) -> dict[str, Any]:
    """Return the values that overrides set, by key; of sweeps, their text."""
    values = {}
    for override in overrides:
        parsed = parse(override)
        value = parsed.value()
        values[parsed.key_or_group] = override.split("=", 1)[1] if isinstance(value, Sweep) else value
    return values


def parse(override: str) -> Override:
    """Parse one override by Hydra's grammar.

    Raises:
        HydraException: it cannot be parsed.
    """
    return OverridesParser.create().parse_override(override)


def quoted(value: str, *, quote: str = "'", interpolations: bool = False) -> str:
    """Return `value` as Hydra's grammar quotes text.

    Args:
        value: any text.
        quote: the quotation mark, ' or ".
        interpolations: `${...}` in it keeps its meaning; otherwise it is escaped.
    """
    # A backslash is literal, unless what follows is a quotation mark or an interpolation: there it is doubled.
    if not interpolations:
        value = re.sub(r"(\\*)\$\{", r"\1\1\\${", value)
    value = re.sub(rf"(\\*){quote}", rf"\1\1\\{quote}", value)
    value = re.sub(r"(\\+)\Z", r"\1\1", value)
    return f"{quote}{value}{quote}"


def for_shell(key: str, value: str) -> str:
    """Return `key=value` quoted for Hydra and for a shell, ready to paste."""
    text = quoted(value, quote='"')  # the shell's own are single
    return shlex.quote(f"{key}={text}")


def _check_options(options: list[str]) -> None:
    def refuse(message: str) -> NoReturn:
        hint = " Options start with two ASCII hyphens." if any(char in message for char in TYPOGRAPHIC) else ""
        raise UserError(f"{' '.join(message.split())}.{hint} --help lists the options")

    parser: argparse.ArgumentParser = get_args_parser()
    parser.error = refuse  # type: ignore[method-assign]
    parser.parse_args([option for option in options if option != "--version"])


def _prepare(override: str, paths: set[str], multirun: bool) -> str:
    try:
        parsed = parse(override)
    except HydraException as error:
        return _repair(override, paths, multirun, error)
    key = parsed.key_or_group
    if not key:
        raise UserError(f"{override}: the key is missing. Write key=value without blanks around '='")
    if key not in paths or parsed.is_delete():
        return override
    text = override.split("=", 1)[1].strip()
    if parsed.is_sweep_override():
        if multirun:
            return override
        raise UserError(
            f"{override}: Hydra reads this value as a sweep, for which -m is missing. "
            f"If it is one path, write {for_shell(key, text)}"
        )
    value = parsed.value()
    if isinstance(value, list | dict):
        kind = "list" if isinstance(value, list) else "mapping"
        raise UserError(f"{override}: Hydra reads this value as a {kind}. As a path, write {for_shell(key, text)}")
    if text == "":
        raise UserError(f"{override}: the value is empty. Give one, or leave {key} out")
    if isinstance(value, bool | int | float) and str(value) != text:
        return _with_value(override, quoted(text))  # a folder 2024.10 would become 2024.1
    if isinstance(value, str) and value.startswith("~"):
        return _with_value(override, quoted(expand_home(key, value), interpolations=True))
    return override


def _repair(override: str, paths: set[str], multirun: bool, error: HydraException) -> str:
    """Quote a path that does not parse; for anything else, raise a UserError with the quoted form."""
    before, equals, value = override.partition("=")
    key = before.lstrip("+")
    typographic = any(char in TYPOGRAPHIC for char in override)
    hint = " It has typographic quotes or dashes: type \", ' or - instead." if typographic else ""
    if not equals:
        raise UserError(f"{override}: this is not key=value, as in optim.lr=1e-3.{hint}")
    if key != key.strip() or not _is_key(before):
        raise UserError(f"{override}: {key!r} is not a key. Write key=value without blanks around '='.{hint}")
    if not value.startswith(tuple(TYPOGRAPHIC)) and key in paths and not (multirun and "," in value):
        return _with_value(override, quoted(expand_home(key, value)))
    reason = " ".join(str(error).split()).removesuffix(".")
    if value.startswith(("[", "{")):
        fix = "Quote each text in it, as in ['a','b'] or {key: 'a'}"
    elif multirun and "," in value:
        fix = f"Quote each value of a sweep, as in {key}='a','b'"
    else:
        fix = f"As text, write {for_shell(before, value)}"
    raise UserError(f"{override}: Hydra cannot read this value ({reason}).{hint} {fix}")


def _is_key(text: str) -> bool:
    try:
        parse(f"{text}=0")
    except HydraException:
        return False
    return text.strip("+") != ""


def _with_value(override: str, value: str) -> str:
    return f"{override.partition('=')[0]}={value}"
