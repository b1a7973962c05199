"""Load a finished run: its configuration, its data, its best weights."""

from __future__ import annotations

import dataclasses
import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlops_img.config.data import CsvConfig, FolderConfig
from mlops_img.config.plugins import import_plugins
from mlops_img.config.rules import validate
from mlops_img.config.train import Config
from mlops_img.core.files import read_json
from mlops_img.core.precision import Precision, choose_device, choose_precision, set_tf32
from mlops_img.data.dataset import Dataset, load_dataset
from mlops_img.errors import UserError
from mlops_img.evaluation.calibration import fit_temperature
from mlops_img.evaluation.evaluator import Evaluator, TrainedModel, load_trained
from mlops_img.runs.folder import RunFolder, load_config

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainedRun:
    """A finished run without its data."""

    folder: RunFolder
    config: Config
    precision: Precision
    trained: TrainedModel

    def evaluator(self) -> Evaluator:
        """Return an evaluator with the preprocessing and the settings of the run."""
        return Evaluator.of(self.config, self.trained.preprocessing, self.precision)

    def with_data(self) -> FinishedRun:
        """List the data of the run and return the run with them.

        Raises:
            UserError: The data are not at data.root, or their classes differ from those of the training.
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
                "%s has changed since the training: training images may now be in other splits",
                self.config.data.root,
            )
        return FinishedRun(self.folder, self.config, self.precision, self.trained, dataset)

    def temperature(self) -> float:
        """Return the temperature that the training fitted on the validation images of the run.

        If summary.json does not hold it, it is fitted again; without the validation images it is 1, no calibration.
        """
        try:
            stored = read_json(self.folder.summary).get("temperature")
        except ValueError:
            stored = None
        if isinstance(stored, float) and stored > 0:
            return stored
        try:
            own = self.with_data()
        except UserError as error:
            log.warning(
                "%s has no temperature, and it cannot be fitted again: the probabilities are not calibrated (%s)",
                self.folder.summary,
                re.sub(r"\s+", " ", str(error)),
            )
            return 1.0
        return fit_temperature(own.evaluator().predict(own.trained.model, own.dataset.val)[0])


@dataclass(frozen=True)
class FinishedRun(TrainedRun):
    """A finished run and its data."""

    dataset: Dataset


def open_trained(path: str, **changes: Any) -> TrainedRun:
    """Open a run with its best checkpoint, without its data.

    Args:
        path: The run folder.
        changes: For a node of the configuration (data, train), a dataclass whose values replace those of the training
            unless they are None.

    Raises:
        UserError: The run or its checkpoint is missing, or a value is invalid.
    """
    folder = Path(path)
    if not (folder / "config.yaml").is_file():
        raise UserError(f"run={path}: there is no run in this folder. Set run to a run folder, e.g. run=runs/latest")
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
    """Open a run with its best checkpoint and its data; the arguments are those of `open_trained`.

    Raises:
        UserError: The run or its checkpoint is missing, or the classes of the data differ from those of the training.
    """
    return open_trained(path, **changes).with_data()


def _check_still_there(run: RunFolder, config: Config) -> None:
    """Raise a UserError if data.root does not exist. Sources that generate or download their data are not checked."""
    root = config.data.root
    if isinstance(config.data, FolderConfig | CsvConfig) and not os.path.exists(os.path.expanduser(root)):
        here = "" if os.path.isabs(os.path.expanduser(root)) else f" (seen from {os.getcwd()})"
        raise UserError(
            f"data.root={root}: folder {root} does not exist{here}, and the images of {run.path} are read from there. "
            "Name where they are now with data.root=..."
        )
