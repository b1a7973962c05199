"""Checkpoints: written atomically, verified on reading; the best and the newest few are kept."""

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
    """The mutable state of a training, all of which is stored in a checkpoint."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    ema: ModelEmaV3 | None
    step: int = 0  # completed optimizer steps
    # The best value of the optimized metric, the epoch whose weights are kept, and the first epoch with this value.
    best: float | None = None
    best_epoch: int = 0
    improved_epoch: int = 0
    # The sum of the losses of the current epoch so far, on the device, float32 ().
    epoch_loss: Tensor = field(default_factory=lambda: torch.zeros(()))
    seconds: float = 0.0  # of training in earlier processes
    # With train.max_minutes: how the length of the run was set, see `mlops_img.training.pace.Mark`.
    marks: list[list[float]] = field(default_factory=list)
    tracking_id: str | None = None

    @property
    def evaluated_model(self) -> nn.Module:
        """The model to evaluate: the moving average of the weights if enabled, else the model."""
        averaged: nn.Module | None = self.ema.module if self.ema is not None else None
        return averaged if averaged is not None else self.model

    def to_dict(self) -> dict[str, Any]:
        """Return the state as plain values and tensors."""
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
        """Restore the state that `to_dict` returned, but keep the current options of the optimizer.

        A moving average or a loss scale that the checkpoint lacks starts fresh.
        """
        self.model.load_state_dict(values["model"])
        if self.ema is not None:
            self.ema.module.load_state_dict(values["ema"] or values["model"])
        # load_state_dict also restores the options, so a changed weight decay would have no effect.
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
        # Checkpoints of earlier versions lack it.
        self.improved_epoch = values.get("improved_epoch", self.best_epoch)


class Checkpoints:
    """The checkpoints of a run: `best.pt`, and `step-<n>.pt`, of which the newest few are kept."""

    def __init__(self, folder: Path, keep: int, about: dict[str, Any]) -> None:
        """Create the folder; `about` (plain values: classes, preprocessing, config) is stored in every checkpoint."""
        self.folder = folder
        self.keep = keep
        self.about = about
        folder.mkdir(parents=True, exist_ok=True)

    def save(self, state: TrainState) -> None:
        """Write the state, then delete all but the newest `keep` checkpoints.

        Also deletes checkpoints of later steps, which are damaged or belong to a replaced run.

        Raises:
            UserError: The disk is full or the weights are not finite. Earlier checkpoints are kept.
        """
        if not all(parameter.isfinite().all() for parameter in state.model.parameters()):
            raise UserError(
                f"the weights after step {state.step} are not finite and were not saved. "
                "Lower optim.lr or train.grad_clip, and resume from the last checkpoint with resume=auto"
            )
        self._write(f"step-{state.step:08d}.pt", state.to_dict())
        saved = step_checkpoints(self.folder)
        later = [path for path in saved if _step(path) > state.step]
        for path in later + saved[len(later) + self.keep :]:
            path.unlink(missing_ok=True)

    def save_best(self, state: TrainState, metrics: dict[str, float]) -> None:
        """Write the evaluated weights to best.pt, with their validation metrics."""
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
            # On a full disk, torch's zip writer raises a RuntimeError while the OSError is handled.
            cause = error if isinstance(error, OSError) else error.__context__
            if not isinstance(cause, OSError):
                raise
            newest = next(iter(step_checkpoints(self.folder)), None)
            raise UserError(
                f"checkpoint {path} could not be written: {cause.strerror or cause}. "
                + (f"{newest} is intact: free disk space and resume with resume=auto" if newest else "Free disk space")
            ) from None


def step_checkpoints(folder: Path) -> list[Path]:
    """Return the step checkpoints, newest first."""
    found = [path for path in folder.glob("step-*.pt") if STEP_FILE.fullmatch(path.name)]
    return sorted(found, key=_step, reverse=True)


def _step(path: Path) -> int:
    return int(path.stem.removeprefix("step-"))


def newest_valid(folder: Path) -> dict[str, Any] | None:
    """Return the content of the newest intact checkpoint, or None; log a warning for each damaged one."""
    for path in step_checkpoints(folder):
        try:
            return read_checkpoint(path)
        except UserError as error:
            log.warning("%s; trying the previous one", error)
    return None


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Verify the checksums of a checkpoint and read it.

    Loads with `weights_only`, so no code in the file is executed.

    Raises:
        UserError: The file is missing, damaged, or of a newer format.
    """
    if not path.is_file():
        raise UserError(f"checkpoint {path} does not exist. Choose a run that has completed at least one epoch")
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise zipfile.BadZipFile(f"{damaged} does not match its checksum")
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:  # its message recommends weights_only=False
        raise UserError(
            f"checkpoint {path} contains objects other than tensors and plain values. Only those are loaded"
        ) from None
    except Exception as error:  # damage can raise almost any exception type
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"checkpoint {path} is damaged: {reason}") from None
    if not isinstance(content, dict) or "format_version" not in content:
        raise UserError(f"{path} is not a checkpoint of mlops_img. To start from its weights, set model.weights={path}")
    if content["format_version"] > FORMAT_VERSION:
        raise UserError(f"checkpoint {path} was written by a newer version of mlops_img. Update mlops_img")
    return content
