"""Weights & Biases beside metrics.jsonl: online where it can be, offline where not, never in the way."""

from __future__ import annotations

import logging
import netrc
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlparse

from mlops_img.config.train import TrackingConfig
from mlops_img.errors import UserError

INIT_TIMEOUT_SECONDS = 20
FINISH_TIMEOUT_SECONDS = 60
WANDB_CLOUD = "https://api.wandb.ai"
ONLINE_OR = "or use tracking.mode=auto, which records offline where it must"

log = logging.getLogger(__name__)


class Tracker(Protocol):
    """Where metrics go besides the run folder; nothing here raises or waits for a network."""

    # What a resumed run needs to go on with the same record.
    run_id: str | None

    def log(self, metrics: Mapping[str, Any], step: int) -> None:
        """Record numbers by name."""

    def log_images(self, images: Mapping[str, Path], step: int) -> None:
        """Record picture files by name."""

    def log_model(self, files: list[Path], metadata: Mapping[str, Any]) -> None:
        """Record the best checkpoint and what belongs to it."""

    def finish(self, summary: Mapping[str, Any] | None) -> None:
        """Close the record; without a summary the run counts as failed."""


class NoTracker:
    """Tracks nothing (`tracking=none`)."""

    run_id: str | None = None

    def log(self, metrics: Mapping[str, Any], step: int) -> None:
        """Do nothing."""

    def log_images(self, images: Mapping[str, Path], step: int) -> None:
        """Do nothing."""

    def log_model(self, files: list[Path], metadata: Mapping[str, Any]) -> None:
        """Do nothing."""

    def finish(self, summary: Mapping[str, Any] | None) -> None:
        """Do nothing."""


class WandbTracker:
    """A W&B run. The first failure of W&B is a warning, and from then on the run goes on without it."""

    def __init__(self, run: Any) -> None:
        self.run = run
        self.run_id: str | None = run.id

    def log(self, metrics: Mapping[str, Any], step: int) -> None:
        """Record numbers by name."""
        self._try(lambda run: run.log(dict(metrics), step=step))

    def log_images(self, images: Mapping[str, Path], step: int) -> None:
        """Record picture files by name."""
        import wandb

        self._try(lambda run: run.log({name: wandb.Image(str(path)) for name, path in images.items()}, step=step))

    def log_model(self, files: list[Path], metadata: Mapping[str, Any]) -> None:
        """Record the files as an artifact of type "model"."""
        import wandb

        def upload(run: Any) -> None:
            artifact = wandb.Artifact(f"model-{run.id}", type="model", metadata=dict(metadata))
            for path in files:
                # immutable: taken from where it lies, not copied aside first
                artifact.add_file(str(path), policy="immutable")
            run.log_artifact(artifact)

        self._try(upload)

    def finish(self, summary: Mapping[str, Any] | None) -> None:
        """Write the summary and close the run, so that the next job of a multirun starts its own."""

        def close(run: Any) -> None:
            if summary is not None:
                run.summary.update(dict(summary))
            run.finish(exit_code=0 if summary is not None else 1)

        self._try(close)

    def _try(self, action: Callable[[Any], object]) -> None:
        if self.run is None:
            return
        try:
            action(self.run)
        except Exception as error:  # whatever W&B stumbles over, the training is worth more
            log.warning("W&B failed (%s); going on with metrics.jsonl alone", error)
            self.run = None


class Start(Protocol):
    """Starts a tracker."""

    def __call__(self, config: TrackingConfig, folder: Path, run_config: dict[str, Any], run_id: str | None) -> Tracker:
        """Start tracking as configured.

        Args:
            config: the group `tracking`.
            folder: the run folder, in which the tracker may keep files.
            run_config: the resolved configuration, to be shown beside the metrics.
            run_id: `Tracker.run_id` of the run that is resumed, or None for a new one.

        Raises:
            UserError: the configuration cannot be met.
        """
        ...


# By `tracking.name`; `tracker` adds to it.
TRACKERS: dict[str, Start] = {}


def tracker(name: str) -> Callable[[Start], Start]:
    """Register what starts a tracker, so that `tracking.name` can name it."""

    def register(start: Start) -> Start:
        TRACKERS[name] = start
        return start

    return register


def start_tracker(config: TrackingConfig, folder: Path, run_config: dict[str, Any], run_id: str | None) -> Tracker:
    """Start the tracker that `config.name` names; see `Start`."""
    return TRACKERS[config.name](config, folder, run_config, run_id)


@tracker("none")
def start_none(config: TrackingConfig, folder: Path, run_config: dict[str, Any], run_id: str | None) -> Tracker:
    """Track nothing."""
    return NoTracker()


@tracker("wandb")
def start_wandb(config: TrackingConfig, folder: Path, run_config: dict[str, Any], run_id: str | None) -> Tracker:
    """Start or resume a W&B run; where it cannot be reached, it is recorded offline, or the run goes on without it.

    Raises:
        UserError: `config.mode` is online, and W&B cannot be reached.
    """
    import wandb

    # Else offline artifacts are staged in the user's home.
    os.environ["WANDB_DATA_DIR"] = str(folder / "wandb")
    os.environ["WANDB_SILENT"] = "true"
    mode = _mode(config.mode)
    sweep = folder.parent if folder.name.isdigit() else None  # a job of a multirun is named by its number
    for attempt in dict.fromkeys((mode, "offline")):
        try:
            settings = wandb.Settings(
                init_timeout=INIT_TIMEOUT_SECONDS, finish_timeout=FINISH_TIMEOUT_SECONDS, console="off", silent=True
            )
            run = wandb.init(
                project=config.project,
                entity=config.entity,
                group=config.group or (sweep.name if sweep else None),
                tags=config.tags,
                name=f"{sweep.name}/{folder.name}" if sweep else folder.name,
                dir=str(folder),
                config=run_config,
                id=run_id,
                resume="allow",
                mode=attempt,
                settings=settings,
            )
            return WandbTracker(run)
        except Exception as error:  # no key, no network, a setting it refuses, a full disk
            reason = (str(error) or type(error).__name__).splitlines()[0]
            if config.mode == "online":
                raise UserError(
                    f"tracking.mode=online: W&B cannot be reached ({reason}). Check the network, {ONLINE_OR}"
                ) from None
            log.warning("W&B cannot be reached (%s)", reason)  # otherwise never the run's end
    log.warning("going on with metrics.jsonl alone")
    return NoTracker()


def check_online(config: TrackingConfig) -> None:
    """See, before anything takes time, that a run that must be tracked online can be.

    Raises:
        UserError: `config.mode` is online, and there is no key or the environment says otherwise.
    """
    if config.name == "none" or config.mode != "online":
        return
    mode = os.environ.get("WANDB_MODE", "online")
    if mode not in ("online", "run"):  # "run" is W&B's older word
        raise UserError(f"tracking.mode=online, but the environment has WANDB_MODE={mode}. Unset it, {ONLINE_OR}")
    if not _has_key():
        raise UserError(f"tracking.mode=online: no W&B key. Set WANDB_API_KEY or run `wandb login`, {ONLINE_OR}")


def _mode(wanted: str) -> Any:
    if wanted != "auto":
        return wanted
    if "WANDB_MODE" in os.environ:
        return os.environ["WANDB_MODE"]
    if _has_key():
        return "online"
    log.warning(
        "W&B: no key, so the run is recorded offline in its folder. "
        "Send it later with `wandb sync`, set WANDB_API_KEY, or say tracking=none"
    )
    return "offline"


def _has_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", WANDB_CLOUD)).hostname or ""
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
