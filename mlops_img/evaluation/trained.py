"""A finished run, opened again: its configuration, its data, its best weights."""

from __future__ import annotations

import dataclasses
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlops_img.config.data import CsvConfig, FolderConfig
from mlops_img.config.plugins import import_plugins
from mlops_img.config.rules import validate
from mlops_img.config.train import Config
from mlops_img.core.precision import Precision, choose_device, choose_precision, set_tf32
from mlops_img.data.dataset import Dataset, load_dataset
from mlops_img.errors import UserError
from mlops_img.evaluation.evaluator import Evaluator, Trained, load_trained
from mlops_img.runs.folder import RunFolder, load_config

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainedRun:
    """What a run left behind, without its data."""

    folder: RunFolder
    config: Config
    precision: Precision
    trained: Trained

    def evaluator(self) -> Evaluator:
        """Return what predicts its splits, with its preprocessing and settings."""
        return Evaluator.of(self.config, self.trained.preprocessing, self.precision)

    def with_data(self) -> FinishedRun:
        """List its data too.

        Raises:
            UserError: they are not where its configuration says, or have other classes than it was trained on.
        """
        _check_still_there(self.folder, self.config)
        dataset = load_dataset(self.config.data, classes=self.trained.classes)
        if dataset.classes != self.trained.classes:
            raise UserError(
                f"data.root={self.config.data.root} has other classes than {self.folder.path} was trained on. "
                "Name that data with data.root=..."
            )
        if dataset.fingerprint != self.trained.fingerprint:
            log.warning(
                "%s has changed since the training: images that were trained on may lie in other splits now",
                self.config.data.root,
            )
        return FinishedRun(self.folder, self.config, self.precision, self.trained, dataset)


@dataclass(frozen=True)
class FinishedRun(TrainedRun):
    """What a run left behind, and the data it was trained on."""

    dataset: Dataset


def open_trained(path: str, **changes: Any) -> TrainedRun:
    """Open a run with its best checkpoint, without its data.

    Args:
        path: the run folder.
        changes: by node of the configuration (data, train) a dataclass whose values, where not None, take the
            place of the training's.

    Raises:
        UserError: no such run, no checkpoint, or a value that cannot be.
    """
    folder = Path(path)
    if not (folder / "config.yaml").is_file():
        raise UserError(f"run={path}: there is no run. Name a run folder, e.g. run=runs/latest")
    run = RunFolder(folder.resolve())
    config = load_config(run.config)
    import_plugins(config.plugins)
    for node, given in changes.items():
        for name, value in dataclasses.asdict(given).items():
            if value is not None:
                setattr(getattr(config, node), name, value)
    validate(config)
    precision = choose_precision(config.train.precision, choose_device(config.train.device))
    set_tf32(config.train.tf32)
    return TrainedRun(run, config, precision, load_trained(run.checkpoints / "best.pt", precision))


def open_run(path: str, **changes: Any) -> FinishedRun:
    """Open a run with its best checkpoint and its data; arguments as of `open_trained`.

    Raises:
        UserError: no such run, no checkpoint, or data with other classes than it was trained on.
    """
    return open_trained(path, **changes).with_data()


def _check_still_there(run: RunFolder, config: Config) -> None:
    """Raise a UserError if the run's images were moved; the other sources write or fetch what is missing."""
    root = config.data.root
    if isinstance(config.data, FolderConfig | CsvConfig) and not os.path.exists(os.path.expanduser(root)):
        here = "" if os.path.isabs(os.path.expanduser(root)) else f" (seen from {os.getcwd()})"
        raise UserError(
            f"data.root={root}: folder {root} does not exist{here}, and the images of {run.path} are read from there. "
            "Name where they are now with data.root=..."
        )
