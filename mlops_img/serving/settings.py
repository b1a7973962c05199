"""Settings of the service, from environment variables. Imports nothing heavy: the supervising process needs them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import AliasGenerator, BeforeValidator, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from mlops_img.errors import UserError, did_you_mean

PREFIX = "MLOPS_IMG_"
MAX_DEFAULT_WORKERS = 4
# One process uses several cores: threads run the model at the same time. What Python itself does for a request, about
# a millisecond, is done by one core of a process.
CORES_PER_WORKER = 4
DEFAULT_PORT, MAX_PORT = 3000, 2**16 - 1
# A form has room for so many files (serving/forms.py).
MAX_FILES = 1000
DAY = 24 * 60 * 60


def cores() -> int:
    """Return the number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _default_workers(data: dict[str, Any]) -> int:
    # PyTorch, which knows whether there is a GPU, takes too long to import here.
    device = data.get("device", "auto")
    gpu = device.startswith("cuda") or (device == "auto" and Path("/dev/nvidia0").exists())
    return 1 if gpu else max(1, min(MAX_DEFAULT_WORKERS, cores() // CORES_PER_WORKER))


def _default_threads(data: dict[str, Any]) -> int:
    workers: int = data.get("workers", 1)
    return max(1, cores() // workers)


def _split(value: Any) -> Any:
    return tuple(filter(None, map(str.strip, value.split(",")))) if isinstance(value, str) else value


def _variable(field: str) -> str:
    return PREFIX + field.upper()


CommaSeparated = (NoDecode, BeforeValidator(_split))
WholeNumber = Annotated[int, Field(ge=1, le=10**12)]
Processes = Annotated[int, Field(ge=1, le=1024)]
Seconds = Annotated[float, Field(gt=0, le=DAY)]


class Settings(BaseSettings):
    """Each field is set by the variable MLOPS_IMG_<NAME>, e.g. MLOPS_IMG_MAX_BYTES; `port` by PORT.

    Attributes:
        bundle: a folder, gs://bucket/folder, or bentoml:name:version in BentoML's model store.
        device: auto, cpu, cuda or cuda:<number>.
        workers: processes, each with the model in memory. By default one for every 4 cores, at most 4; one with a GPU.
        threads: cores per worker: as many batches are computed at the same time. By default the workers share the
            cores.
        tokens: separated by commas. Requests must carry one of them as a bearer token; without any, none is needed.
        tokens_file: a file with further tokens, one a line.
        max_bytes: bytes of a request body.
        max_pixels: pixels of an image, width x height, checked before it is decoded.
        max_images: images in one request.
        queue: images that may wait or be worked on at once; further requests get status 429.
        timeout: seconds from a request's head to its response.
        keep_alive: seconds that an idle connection is kept open. A proxy in front of the service must close its
            connections earlier; otherwise it may send a request into one that is being closed.
        max_batch: images that the model processes at once, at most.
        plugins: names of modules, separated by commas, that add routes (mlops_img.serving.routes.extension).
        port: to listen on if the command line names none; platforms set it.
    """

    model_config = SettingsConfigDict(
        alias_generator=AliasGenerator(validation_alias=_variable),
        validate_by_name=True,
        validate_default=False,
        case_sensitive=True,
        frozen=True,
    )

    bundle: str = "bundles/latest"
    device: str = "auto"
    workers: Processes = Field(default_factory=_default_workers)
    threads: Processes = Field(default_factory=_default_threads)
    tokens: Annotated[tuple[SecretStr, ...], Field(min_length=1), *CommaSeparated] = ()
    tokens_file: str = ""
    max_bytes: WholeNumber = 20_000_000
    max_pixels: WholeNumber = 50_000_000
    max_images: Annotated[int, Field(ge=1, le=MAX_FILES)] = 32
    queue: WholeNumber = 64
    timeout: Seconds = 10.0
    keep_alive: Seconds = 75.0
    max_batch: WholeNumber = 16
    plugins: Annotated[tuple[str, ...], *CommaSeparated] = ()
    port: Annotated[
        int, Field(ge=1, le=MAX_PORT, validation_alias="PORT"), BeforeValidator(lambda text: text or DEFAULT_PORT)
    ] = DEFAULT_PORT

    @model_validator(mode="after")
    def _check_queue(self) -> Self:
        if self.max_images > self.queue:
            raise ValueError(
                f"{PREFIX}MAX_IMAGES={self.max_images} is more than {PREFIX}QUEUE={self.queue} allows. "
                "Raise the queue, or lower the images per request"
            )
        return self


def read_settings() -> Settings:
    """Read the settings from the environment.

    Raises:
        UserError: a value is invalid, or a variable with the prefix is unknown: a misspelled MLOPS_IMG_TOKENS must
            not leave the service open.
    """
    known = {_variable(field) for field in Settings.model_fields if field != "port"}
    for variable in os.environ:
        if variable.startswith(PREFIX) and variable not in known:
            raise UserError(f"{variable}: there is no such setting.{did_you_mean(variable.upper(), known)}")
    try:
        return Settings()
    except ValidationError as error:
        raise UserError(_describe(error)) from None


def read_tokens(settings: Settings) -> tuple[str, ...]:
    """Return all valid tokens: those of the environment, and those of the file.

    Raises:
        UserError: the file cannot be read or has no token, or a token cannot be sent in a header.
    """
    tokens = [token.get_secret_value() for token in settings.tokens]
    if settings.tokens_file:
        variable = f"{PREFIX}TOKENS_FILE={settings.tokens_file}"
        try:
            # -sig: some editors write a byte order mark, which would become part of the first token.
            lines = Path(settings.tokens_file).read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            raise UserError(f"{variable} cannot be read: {reason}") from None
        found = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
        if not found:
            raise UserError(f"{variable} has no token: write one a line")
        tokens += found
    if not all(token.isascii() and token.isprintable() and " " not in token for token in tokens):
        raise UserError("a token must be printable ASCII without spaces: make one with openssl rand -hex 32")
    return tuple(tokens)


def _describe(error: ValidationError) -> str:
    """Return one line about the first invalid value; a token is not shown."""
    first = error.errors()[0]
    if not first["loc"]:  # of a rule that spans several settings
        return str(first["ctx"]["error"])
    variable = str(first["loc"][0])
    if first["type"] == "too_short":
        return f"{variable} is empty: set a token, or unset it to require none"
    field = next(field for field in Settings.model_fields.values() if field.validation_alias == variable)
    limits = [(name, getattr(bound, name, None)) for bound in field.metadata for name in ("gt", "ge", "le")]
    bounds = {name: limit for name, limit in limits if limit is not None}
    kind = "a whole number, {ge} to {le}" if field.annotation is int else "a number above {gt}, at most {le}"
    return f"{variable}={first['input']}: it must be {kind.format(**bounds)}"
