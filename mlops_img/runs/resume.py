"""Resume a run: find it, restore its command line, and check that its settings are compatible."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import yaml

from mlops_img.config.command_line import given_values, is_multirun, quoted, split_arguments
from mlops_img.config.train import Config
from mlops_img.errors import UserError
from mlops_img.runs.folder import OVERRIDES_FILE

# The state of the model and the optimizer and the order of the images depend on these keys.
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
    "optim.lr_scales",
    "optimized_metric",
)
MAY_CHANGE_SILENTLY = ("resume", "runs_dir", "data.root", "data.workers", "tracking", "train.timeout_seconds")


def resume_arguments(arguments: list[str]) -> list[str]:
    """Rewrite a command line with `resume=...` so that Hydra uses the folder and the settings of that run.

    The original arguments of the run are put before the given ones, so `resume=auto` alone is sufficient.

    Args:
        arguments: The arguments that `prepare_arguments` returns.

    Returns:
        The arguments for Hydra; unchanged if there is no run to resume.

    Raises:
        UserError: The folder to resume is not a run.
    """
    options, overrides = split_arguments(arguments)
    given = given_values(overrides)
    wanted = given.get("resume")
    if wanted is None or is_multirun(options, overrides):
        return arguments
    folder = Path(str(given.get("runs_dir", "runs"))) / "latest" if wanted == "auto" else Path(str(wanted))
    if "hydra.run.dir" in given:
        place = Path(str(given["hydra.run.dir"]))
        if wanted != "auto" and place.resolve() != folder.resolve():
            raise UserError(
                f"resume={wanted} and hydra.run.dir={place} name two runs. Use resume=auto, or remove one of them"
            )
        folder = place
    folder = folder.resolve()
    origin = folder / OVERRIDES_FILE
    if not origin.is_file():
        if wanted == "auto":
            return arguments  # the run was stopped before it wrote its configuration
        raise UserError(f"resume={wanted}: there is no such run. Set resume to a run folder or to auto")
    before = yaml.safe_load(origin.read_text(encoding="utf-8"))
    again = {_key(override) for override in overrides}
    kept = [override for override in before["overrides"] if _key(override) not in again]
    # The order matters: Hydra accepts options only before the first override, and the last override wins.
    here = [] if "hydra.run.dir" in given else [f"hydra.run.dir={quoted(str(folder))}"]
    return [*before["options"], *options, *kept, *overrides, *here]


def check_unchanged(config: dict[str, Any], fingerprint: str, checkpoint: dict[str, Any]) -> list[str]:
    """Check that the current configuration and data are compatible with a checkpoint.

    Args:
        config: The current configuration as plain values.
        fingerprint: The fingerprint of the current data.
        checkpoint: The checkpoint that `read_checkpoint` returns.

    Returns:
        The allowed changes, as "key: before -> now".

    Raises:
        UserError: The data or a key of `MUST_NOT_CHANGE` changed.
    """
    now = _flat(config)
    # A key that is newer than the checkpoint had, in effect, its default value.
    defaults = {key: value for key, value in _flat(as_plain(Config())).items() if key in now}
    before = defaults | _flat(checkpoint["config"])
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
            f"this run cannot be resumed, because its settings or data changed: {'; '.join(fatal)}. "
            "Restore them, or start a new run without resume"
        )
    return [text for key, text in changed.items() if not _under(key, MAY_CHANGE_SILENTLY)]


def as_plain(config: Config) -> dict[str, Any]:
    """Return the configuration as plain dicts, lists and values."""
    return dataclasses.asdict(config)


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
