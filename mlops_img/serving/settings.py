"""The service's settings, each an environment variable. Imports nothing heavy: the supervising process needs them."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TypeVar

from mlops_img.errors import EXIT_USER_ERROR, UserError, did_you_mean

PREFIX = "MLOPS_IMG_"
MOST_WORKERS = 4
T = TypeVar("T")


def cores() -> int:
    """Return how many processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class Settings:
    """Each attribute is set by MLOPS_IMG_ and its name in capitals, e.g. MLOPS_IMG_MAX_BYTES.

    Attributes:
        bundle: a folder, gs://bucket/folder, or bentoml:name:version of BentoML's model store.
        device: auto, cpu, cuda or cuda:<number>.
        workers: processes, each with the model in memory. By default one for each core, up to 4; one with a GPU.
        threads: processor threads that each worker computes with; by default they share the cores.
        tokens: separated by commas; who sends none of them as a bearer token is refused. None: everybody may ask.
        tokens_file: a file with one token a line, in addition.
        max_bytes: of a request's body.
        max_pixels: of an image, width x height, looked up before it is decoded.
        max_images: in one request.
        queue: images that wait or are worked on at once; who comes then is told to come again.
        timeout: seconds from a request's arrival to its answer.
        keep_alive: seconds that a connection is kept open for its next request. Whoever stands in front must let go
            of it earlier, or will now and then send a request into a connection that is being closed.
        max_batch: the most images that the model takes at once.
    """

    bundle: str = "bundles/latest"
    device: str = "auto"
    workers: int = 1
    threads: int = 1
    tokens: tuple[str, ...] = ()
    tokens_file: str = ""
    max_bytes: int = 20_000_000
    max_pixels: int = 50_000_000
    max_images: int = 32
    queue: int = 64
    timeout: float = 10.0
    keep_alive: float = 75.0
    max_batch: int = 16


def read_settings(environment: Mapping[str, str]) -> Settings:
    """Read the settings from environment variables.

    Raises:
        UserError: a variable with our prefix is none of ours, which a mistyped MLOPS_IMG_TOKENS must not pass
            unnoticed; or a value cannot be.
    """
    known = {PREFIX + entry.name.upper(): entry for entry in fields(Settings)}
    given: dict[str, object] = {}
    for variable, text in environment.items():
        if not variable.startswith(PREFIX):
            continue
        if variable not in known:
            raise UserError(f"{variable}: there is no such setting.{did_you_mean(variable.upper(), known)}")
        name = known[variable].name
        if name == "tokens":
            given[name] = tuple(token for token in map(str.strip, text.split(",")) if token)
            if not given[name]:
                raise UserError(f"{variable} is empty: name a token, or unset it to let everybody ask")
        elif name in ("bundle", "device", "tokens_file"):
            given[name] = text
        else:
            given[name] = _number(variable, text, whole=name not in ("timeout", "keep_alive"))
    given.setdefault("workers", _default_workers(str(given.get("device", "auto"))))
    given.setdefault("threads", max(1, cores() // int(str(given["workers"]))))
    settings = Settings(**given)  # type: ignore[arg-type]
    if settings.max_images > settings.queue:
        raise UserError(
            f"{PREFIX}MAX_IMAGES={settings.max_images} is more than {PREFIX}QUEUE={settings.queue} lets in. "
            "Raise the queue, or lower the images of a request"
        )
    return settings


def read_tokens(settings: Settings) -> tuple[str, ...]:
    """Return all tokens that are let in: those of the environment, and those of the file.

    Raises:
        UserError: the file cannot be read, holds no token, or one is no plain ASCII.
    """
    tokens = list(settings.tokens)
    if settings.tokens_file:
        try:
            # -sig: some editors begin a file with a mark, which would be part of the first token.
            lines = Path(settings.tokens_file).read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            raise UserError(f"{PREFIX}TOKENS_FILE={settings.tokens_file} cannot be read: {reason}") from None
        found = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
        if not found:
            raise UserError(f"{PREFIX}TOKENS_FILE={settings.tokens_file} holds no token: write one a line")
        tokens += found
    if not all(token.isascii() and token.isprintable() and " " not in token for token in tokens):
        raise UserError("a token must be printable ASCII without blanks: make one with openssl rand -hex 32")
    return tuple(tokens)


def read_port(environment: Mapping[str, str]) -> int:
    """Return the port to listen on, if the command line names none: PORT, which platforms set, or 3000.

    Raises:
        UserError: it is not a port.
    """
    text = environment.get("PORT") or "3000"
    if not (text.isascii() and text.isdigit() and 0 < int(text[:10]) < 2**16):
        raise UserError(f"PORT={text}: it must be a port, 1 to 65535")
    return int(text)


def settings_or_exit() -> Settings:
    """Read the settings of this process; a mistake is one line and exit code 2, not a traceback."""
    return _or_exit(read_settings)


def port_or_exit() -> int:
    """Read the port; a mistake is one line and exit code 2, not a traceback."""
    return _or_exit(read_port)


def _or_exit(read: Callable[[Mapping[str, str]], T]) -> T:
    try:
        return read(os.environ)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)


def _default_workers(device: str) -> int:
    """Return how many processes suit the machine.

    A compiled program holds Python's lock while it runs, so on a CPU several processes of one thread do more than one
    process of several threads. PyTorch, which knows whether there is a GPU, is too slow to ask here.
    """
    gpu = device.startswith("cuda") or (device == "auto" and Path("/dev/nvidia0").exists())
    return 1 if gpu else min(MOST_WORKERS, cores())


def _number(variable: str, text: str, *, whole: bool) -> float:
    try:
        value = int(text) if whole else float(text)
    except ValueError:
        value = 0
    if not 0 < value < 10**12:
        raise UserError(f"{variable}={text}: it must be a {'whole ' if whole else ''}number above 0")
    return value
