"""What the parts of an output were computed from. A command that goes on must compute from the same."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from mlops_img.core.files import write_json
from mlops_img.errors import UserError
from mlops_img.prediction.output import not_writable

MANIFEST = "_manifest.json"
VERSION = 1


class Record(BaseModel):
    """A part of the manifest: no key more, none less."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class InputInfo(Record):
    """The images: see `mlops_img.prediction.inputs.Input`; `rows` is their number."""

    location: str
    rows: int
    fingerprint: str


class ModelInfo(Record):
    """The model: see `mlops_img.prediction.model.Model`."""

    location: str
    sha256: str
    temperature: float
    precision: str


class OutputManifest(Record):
    """_manifest.json.

    Attributes:
        version: of this schema.
        input, model: what the parts were computed from; their locations may differ from machine to machine.
        top_k: classes that a row lists.
        batch_size, rows_per_part, format: as in the configuration.
        parts: how many there will be.
        columns: their names.
    """

    version: int
    input: InputInfo
    model: ModelInfo
    top_k: int
    batch_size: int
    rows_per_part: int
    format: str
    parts: int
    columns: list[str]

    def differences(self, other: OutputManifest) -> list[str]:
        """Say what is not the same in another manifest; empty where that one may go on with the parts of this one."""
        found = []
        for name in ("format", "top_k", "batch_size", "rows_per_part"):
            before, now = getattr(self, name), getattr(other, name)
            if before != now:
                found.append(f"{name}={before}, now {now}")
        if self.input.rows != other.input.rows:
            found.append(f"{_rows(self.input)}, now {_rows(other.input)}")
        elif self.input.fingerprint != other.input.fingerprint:
            found.append(
                f"{_rows(self.input)}, now {_rows(other.input)} with other names or sizes, or in another order"
            )
        if self.model.sha256 != other.model.sha256:
            found.append(f"{_model(self.model)}, now {_model(other.model)}")
        for name in ("precision", "temperature"):
            before, now = getattr(self.model, name), getattr(other.model, name)
            if before != now:
                found.append(f"a model of {name} {before}, now {now}")
        return found


def _rows(info: InputInfo) -> str:
    return f"the {info.rows:,} images of {info.location}"


def _model(info: ModelInfo) -> str:
    return f"{info.location} (sha256 {info.sha256[:12]})"


def read_manifest(folder: Path) -> OutputManifest | None:
    """Return the manifest of an output folder; None if nothing was begun in it.

    Raises:
        UserError: the manifest is damaged, or the folder cannot be read or holds other files.
    """
    path = folder / MANIFEST
    try:
        if not path.exists():
            others = sorted(name for name in os.listdir(folder) if not name.startswith("."))
            if others and not path.exists():  # another shard may have begun between the two looks
                raise UserError(
                    f"output={folder} has files of something else, e.g. {others[0]}, and no {MANIFEST}. Choose a new "
                    "or an empty folder with output=..."
                )
            if not others:
                return None
        content = json.loads(path.read_text(encoding="utf-8"))
        return OutputManifest.model_validate(content)
    except OSError as error:
        raise UserError(f"output={folder} cannot be read: {error.strerror}. Choose another with output=...") from None
    except (ValueError, ValidationError):
        raise UserError(
            f"{path} is damaged or of another version of mlops_img. Choose another folder with output=..., or delete "
            "it and the parts beside it"
        ) from None


def begin_or_resume(folder: Path, manifest: OutputManifest) -> None:
    """Write the manifest, or see that the one which is there is the same.

    Raises:
        UserError: the output was begun with something else, which the message names; or it cannot be written.
    """
    before = read_manifest(folder)
    if before is None:
        try:
            _write_first(folder / MANIFEST, manifest.model_dump(mode="json"))
        except OSError as error:
            raise not_writable(folder, error) from None
        before = read_manifest(folder)
    differing = before.differences(manifest) if before is not None else []
    if differing:
        raise UserError(
            f"output={folder} was begun with {'; with '.join(differing)}. Repeat the command that began it, or choose "
            "another folder with output=..."
        )


def _write_first(path: Path, content: Mapping[str, Any]) -> None:
    """Write the manifest unless another process is faster: of several shards that start at once, one writes it."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    write_json(fresh, content)
    try:
        with contextlib.suppress(FileExistsError):
            os.link(fresh, path)
    except OSError:  # a file system without hard links
        os.replace(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)
