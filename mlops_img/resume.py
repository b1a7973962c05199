"""Going on with a run: which one, with which settings, and what must not have changed."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import yaml

from mlops_img.config import Config
from mlops_img.errors import UserError

# What the weights, the optimiser's state and the order of the images depend on.
MUST_NOT_CHANGE = (
    "model",
    "data.source",
    "data.image_size",
    "data.limit",
    "seed",
    "train.batch_size",
    "train.accumulate",
    "optim.name",
    "optim.layer_decay",
)
MAY_CHANGE_SILENTLY = ("resume", "runs_dir", "data.root", "data.workers", "tracking")


def resume_arguments(arguments: list[str]) -> list[str]:
    """Rewrite `resume=...` on a command line so that Hydra goes back to that run's folder and settings.

    The overrides that started the run are repeated before those given now, so `resume=auto` alone is enough.

    Args:
        arguments: what follows the command's name.

    Returns:
        The arguments for Hydra; as they were where nothing is resumed.

    Raises:
        UserError: the folder to resume is no run.
    """
    given = dict(argument.split("=", 1) for argument in arguments if "=" in argument and argument[0] != "-")
    wanted = given.get("resume")
    if wanted in (None, "null", "") or {"-m", "--multirun"} & set(arguments):
        return arguments
    runs = Path(given.get("runs_dir", "runs"))
    if "hydra.run.dir" in given:
        folder = Path(given["hydra.run.dir"])
    elif wanted == "auto":
        folder = (runs / "latest").resolve()
    else:
        folder = Path(str(wanted)).resolve()
    if not folder.is_dir():
        if wanted == "auto":
            return arguments
        raise UserError(f"resume={wanted}: there is no such run folder. Name one, or say resume=auto")
    before = _overrides(folder)
    kept = [text for text in before if _key(text) not in {_key(argument) for argument in arguments}]
    place = [] if "hydra.run.dir" in given else [f"hydra.run.dir={folder}"]
    # After what was given: Hydra takes options such as --config-dir only before the first override.
    return [*arguments, *kept, *place]


def check_unchanged(config: dict[str, Any], fingerprint: str, checkpoint: dict[str, Any]) -> list[str]:
    """Compare a checkpoint with the run that wants to go on from it.

    Args:
        config: the configuration of now, as plain values.
        fingerprint: of the data of now.
        checkpoint: as `read_checkpoint` returns it.

    Returns:
        What changed and may, as "key: before -> now".

    Raises:
        UserError: the model, the data or something else changed that must not; says what.
    """
    before, now = _flat(checkpoint["config"]), _flat(config)
    changed = {
        key: f"{key}: {before.get(key)} -> {now.get(key)}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
    }
    fatal = [text for key, text in changed.items() if _under(key, MUST_NOT_CHANGE)]
    if fingerprint != checkpoint["fingerprint"]:
        fatal.append(
            f"data: other images, labels or classes (fingerprint {checkpoint['fingerprint'][:8]} -> {fingerprint[:8]})"
        )
    if fatal:
        raise UserError(
            f"this run cannot be resumed, something changed: {'; '.join(fatal)}. "
            "Change it back, or start a new run without resume"
        )
    return [text for key, text in changed.items() if not _under(key, MAY_CHANGE_SILENTLY)]


def as_plain(config: Config) -> dict[str, Any]:
    """Return the configuration as dicts, lists and plain values."""
    return dataclasses.asdict(config)


def _overrides(folder: Path) -> list[str]:
    # Not .hydra/overrides.yaml: an attempt to resume that was refused has left its own there.
    path = folder / "overrides.yaml"
    return list(yaml.safe_load(path.read_text(encoding="utf-8")) or []) if path.is_file() else []


def _key(override: str) -> str:
    return override.split("=", 1)[0].lstrip("+~")


def _under(key: str, prefixes: tuple[str, ...]) -> bool:
    return any(key == prefix or key.startswith(f"{prefix}.") for prefix in prefixes)


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat
