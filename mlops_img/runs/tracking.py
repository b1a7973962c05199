"""Experiment tracking with Weights & Biases: online if possible, else offline. Failures never stop a run."""

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
ONLINE_OR = "or use tracking.mode=auto, which records offline if necessary"

log = logging.getLogger(__name__)


class Tracker(Protocol):
    """Records metrics in addition to the run folder. Methods neither raise nor wait for the network."""

    run_id: str | None  # continues the same record when the run is resumed

    def log(self, metrics: Mapping[str, Any], step: int) -> None:
        """Record numbers by name."""

    def log_images(self, images: Mapping[str, Path], step: int) -> None:
        """Record image files by name."""

    def log_model(self, files: list[Path], metadata: Mapping[str, Any]) -> None:
        """Record the best checkpoint and its files."""

    def finish(self, summary: Mapping[str, Any] | None) -> None:
        """Close the record; without a summary the run counts as failed."""


class NoTracker:
    """A tracker that records nothing (`tracking=none`)."""

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
    """A tracker for W&B. On the first failure it logs a warning and stops tracking; the training continues."""

    def __init__(self, run: Any) -> None:
        self.run = run
        self.run_id: str | None = run.id

    def log(self, metrics: Mapping[str, Any], step: int) -> None:
        """Record numbers by name."""
        self._try(lambda run: run.log(dict(metrics), step=step))

    def log_images(self, images: Mapping[str, Path], step: int) -> None:
        """Record image files by name."""
        import wandb

        self._try(lambda run: run.log({name: wandb.Image(str(path)) for name, path in images.items()}, step=step))

    def log_model(self, files: list[Path], metadata: Mapping[str, Any]) -> None:
        """Record the files as an artifact of type "model"."""
        import wandb

        def upload(run: Any) -> None:
            artifact = wandb.Artifact(f"model-{run.id}", type="model", metadata=dict(metadata))
            for path in files:
                # "immutable" uploads the file in place instead of a copy
                artifact.add_file(str(path), policy="immutable")
            run.log_artifact(artifact)

        self._try(upload)

    def finish(self, summary: Mapping[str, Any] | None) -> None:
        """Write the summary and close the run, so that the next job of a multirun can start another."""

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
        except Exception as error:  # no failure of W&B may stop the training
            log.warning("W&B failed (%s); metrics are written to metrics.jsonl only", error)
            self.run = None


class Start(Protocol):
    """A function that starts a tracker."""

    def __call__(self, config: TrackingConfig, folder: Path, run_config: dict[str, Any], run_id: str | None) -> Tracker:
        """Start tracking as configured.

        Args:
            config: The group `tracking`.
            folder: The run folder, in which the tracker may write files.
            run_config: The resolved configuration, recorded with the metrics.
            run_id: `Tracker.run_id` of the run that is resumed, or None for a new run.

        Raises:
            UserError: Tracking is not possible as configured.
        """
        ...


# By `tracking.name`; `tracker` registers more.
TRACKERS: dict[str, Start] = {}


def tracker(name: str) -> Callable[[Start], Start]:
    """Register a function that starts a tracker under `name`, the value of `tracking.name`."""

    def register(start: Start) -> Start:
        TRACKERS[name] = start
        return start

    return register


def start_tracker(config: TrackingConfig, folder: Path, run_config: dict[str, Any], run_id: str | None) -> Tracker:
    """Start the tracker `config.name`; see `Start`."""
    return TRACKERS[config.name](config, folder, run_config, run_id)


@tracker("none")
def start_none(config: TrackingConfig, folder: Path, run_config: dict[str, Any], run_id: str | None) -> Tracker:
    """Return a tracker that records nothing."""
    return NoTracker()


@tracker("wandb")
def start_wandb(config: TrackingConfig, folder: Path, run_config: dict[str, Any], run_id: str | None) -> Tracker:
    """Start or resume a W&B run. Without a connection, record offline; if that fails too, do not track.

    Raises:
        UserError: `config.mode` is online and W&B cannot be reached.
    """
    import wandb

    # By default, W&B stages offline artifacts in the home directory.
    os.environ["WANDB_DATA_DIR"] = str(folder / "wandb")
    os.environ["WANDB_SILENT"] = "true"
    mode = _mode(config.mode)
    sweep = folder.parent if folder.name.isdigit() else None  # folders of multirun jobs are numbered
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
        except Exception as error:  # missing key, no network, invalid setting, full disk
            reason = (str(error) or type(error).__name__).splitlines()[0]
            if config.mode == "online":
                raise UserError(
                    f"tracking.mode=online: W&B cannot be reached ({reason}). Check the network, {ONLINE_OR}"
                ) from None
            log.warning("W&B cannot be reached (%s)", reason)
    log.warning("metrics are written to metrics.jsonl only")
    return NoTracker()


def check_online(config: TrackingConfig) -> None:
    """Check early that online tracking is possible if it is required.

    Raises:
        UserError: `config.mode` is online, but there is no key or WANDB_MODE has another value.
    """
    if config.name == "none" or config.mode != "online":
        return
    mode = os.environ.get("WANDB_MODE", "online")
    if mode not in ("online", "run"):  # "run" is the older name of "online"
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
        "W&B: no key, so the run is recorded offline in the run folder. "
        "Upload it later with `wandb sync`, set WANDB_API_KEY, or use tracking=none"
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
