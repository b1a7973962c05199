"""Checkpoints: atomic, verified when read, the best one and the newest few."""

from __future__ import annotations

import logging
import pickle
import re
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import torch
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn

from mlops_img.core.files import write_atomically
from mlops_img.errors import UserError

FORMAT_VERSION = 1
OPTIMIZER_OPTIONS = ("weight_decay", "momentum", "betas", "eps")
STEP_FILE = re.compile(r"step-\d+\.pt")

log = logging.getLogger(__name__)


@dataclass
class TrainState:
    """All that changes while a model trains, and so all that a checkpoint must hold."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    ema: ModelEmaV3 | None
    # Optimizer steps done.
    step: int = 0
    # Best value of the optimized metric, the epoch whose weights are kept, and the first that reached the value.
    best: float | None = None
    best_epoch: int = 0
    improved_epoch: int = 0
    # Sum of the losses of the current epoch's steps so far, on the device: float32 ().
    epoch_loss: Tensor = field(default_factory=lambda: torch.zeros(()))
    # Seconds of training before this process.
    seconds: float = 0.0
    # With train.max_minutes: what was decided on the length of the run, see `mlops_img.training.pace.Mark`.
    marks: list[list[float]] = field(default_factory=list)
    tracking_id: str | None = None

    @property
    def evaluated_model(self) -> nn.Module:
        """The weights that count: their moving average where there is one."""
        averaged: nn.Module | None = self.ema.module if self.ema is not None else None
        return averaged if averaged is not None else self.model

    def to_dict(self) -> dict[str, Any]:
        """Return plain values and tensors."""
        return {
            "model": self.model.state_dict(),
            "ema": self.ema.module.state_dict() if self.ema is not None else None,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "step": self.step,
            "best": self.best,
            "best_epoch": self.best_epoch,
            "improved_epoch": self.improved_epoch,
            "epoch_loss": self.epoch_loss,
            "seconds": self.seconds,
            "marks": self.marks,
            "tracking_id": self.tracking_id,
        }

    def load_dict(self, values: dict[str, Any]) -> None:
        """Become the state that `to_dict` described, with the optimizer's options of now.

        An average or a loss scale that the run before did not have starts from here.
        """
        self.model.load_state_dict(values["model"])
        if self.ema is not None:
            self.ema.module.load_state_dict(values["ema"] or values["model"])
        # PyTorch would bring back the options too, and a changed weight decay would do nothing.
        groups = self.optimizer.param_groups
        options = [{name: group[name] for name in OPTIMIZER_OPTIONS if name in group} for group in groups]
        self.optimizer.load_state_dict(values["optimizer"])
        for group, now in zip(self.optimizer.param_groups, options, strict=True):
            group.update(now)
        if values["scaler"]:
            self.scaler.load_state_dict(values["scaler"])
        self.epoch_loss = values["epoch_loss"].to(self.epoch_loss.device)
        for name in ("step", "best", "best_epoch", "seconds", "tracking_id"):
            setattr(self, name, values[name])
        self.marks = values.get("marks", [])
        # Older checkpoints keep the first epoch alone.
        self.improved_epoch = values.get("improved_epoch", self.best_epoch)


class Checkpoints:
    """The checkpoints of one run: `step-<n>.pt`, of which the newest few stay, and `best.pt`."""

    def __init__(self, folder: Path, keep: int, about: dict[str, Any]) -> None:
        """Remember the folder; `about` (plain values: classes, preprocessing, config) goes into each."""
        self.folder = folder
        self.keep = keep
        self.about = about
        folder.mkdir(parents=True, exist_ok=True)

    def save(self, state: TrainState) -> None:
        """Write the whole state, then delete the oldest checkpoints beyond `keep`.

        Those of later steps go too: they are damaged, or of a run that this one has replaced.

        Raises:
            UserError: the disk is full, or the weights are not finite; the checkpoints from before stay.
        """
        if not all(parameter.isfinite().all() for parameter in state.model.parameters()):
            raise UserError(
                f"the weights after step {state.step} are not finite and were not saved. "
                "Lower optim.lr or train.grad_clip, and go on from before with resume=auto"
            )
        self._write(f"step-{state.step:08d}.pt", state.to_dict())
        saved = step_checkpoints(self.folder)
        later = [path for path in saved if _step(path) > state.step]
        for path in later + saved[len(later) + self.keep :]:
            path.unlink(missing_ok=True)

    def save_best(self, state: TrainState, metrics: dict[str, float]) -> None:
        """Write the weights that are evaluated, with the validation metrics that made them the best."""
        weights = state.evaluated_model.state_dict()
        self._write("best.pt", {"model": weights, "step": state.step, "metrics": metrics})

    def _write(self, name: str, content: dict[str, Any]) -> None:
        path = self.folder / name
        content = {"format_version": FORMAT_VERSION, **self.about, **content}

        def write(file: IO[bytes]) -> None:
            torch.save(content, file)

        try:
            write_atomically(path, write)
        except (OSError, RuntimeError) as error:
            # torch's zip writer trips over a full disk a second time, with a RuntimeError of its own.
            cause = error if isinstance(error, OSError) else error.__context__
            if not isinstance(cause, OSError):
                raise
            newest = next(iter(step_checkpoints(self.folder)), None)
            raise UserError(
                f"checkpoint {path} could not be written: {cause.strerror or cause}. "
                + (f"{newest} is whole: free some space and go on with resume=auto" if newest else "Free some space")
            ) from None


def step_checkpoints(folder: Path) -> list[Path]:
    """Return the step checkpoints, newest first."""
    found = [path for path in folder.glob("step-*.pt") if STEP_FILE.fullmatch(path.name)]
    return sorted(found, key=_step, reverse=True)


def _step(path: Path) -> int:
    return int(path.stem.removeprefix("step-"))


def newest_valid(folder: Path) -> dict[str, Any] | None:
    """Return the content of the newest checkpoint that is whole, warning of damaged ones; None without any."""
    for path in step_checkpoints(folder):
        try:
            return read_checkpoint(path)
        except UserError as error:
            log.warning("%s; trying the one before", error)
    return None


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint after checking every byte of it against its checksums.

    Nothing in the file is executed (`weights_only`).

    Raises:
        UserError: missing, damaged, or of a newer format.
    """
    if not path.is_file():
        raise UserError(f"checkpoint {path} does not exist. Name a run folder that has trained for an epoch at least")
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise zipfile.BadZipFile(f"{damaged} does not match its checksum")
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:  # its message explains how to load the file all the same
        raise UserError(f"checkpoint {path} holds more than tensors and plain values, which is not loaded") from None
    except Exception as error:  # damage shows itself in many ways, and none is worth a traceback
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"checkpoint {path} is damaged: {reason}") from None
    if not isinstance(content, dict) or "format_version" not in content:
        raise UserError(f"{path} is no checkpoint of mlops_img. To start from its weights use model.weights={path}")
    if content["format_version"] > FORMAT_VERSION:
        raise UserError(f"checkpoint {path} was written by a newer mlops_img; update this one")
    return content
