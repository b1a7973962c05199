"""Evaluation of a checkpoint on splits, shared by training and the evaluate command."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from mlops_img.config.train import Config, ModelConfig
from mlops_img.core.files import write_json
from mlops_img.core.memory import freed_memory_kept
from mlops_img.core.precision import Precision, to_device
from mlops_img.data.dataset import Dataset
from mlops_img.data.loader import handle_bad_images, loader_workers, make_loader
from mlops_img.data.sampler import sequential_batches
from mlops_img.data.skipped import SkippedImages
from mlops_img.data.sources.base import ImageSet
from mlops_img.evaluation.calibration import fit_temperature
from mlops_img.evaluation.confidence import small_split_warning
from mlops_img.evaluation.predictions import Predictions, collect_predictions
from mlops_img.evaluation.result import build_result
from mlops_img.models.build import build_model
from mlops_img.preprocessing.transforms import Preprocessing
from mlops_img.runs.checkpoint import read_checkpoint
from mlops_img.runs.folder import RunFolder

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evaluator:
    """Predict whole image sets, each image exactly once."""

    preprocessing: Preprocessing
    precision: Precision
    batch_size: int
    workers: int
    skip_bad: bool

    @classmethod
    def of(cls, config: Config, preprocessing: Preprocessing, precision: Precision) -> Evaluator:
        """Return the evaluator of a configuration."""
        return cls(
            preprocessing,
            precision,
            batch_size=config.train.eval_batch_size or 2 * config.train.batch_size,
            workers=loader_workers(config.data.workers, precision.device),
            skip_bad=config.data.on_bad_image == "skip",
        )

    @freed_memory_kept()
    def predict(self, model: nn.Module, images: ImageSet) -> tuple[Predictions, dict[str, str]]:
        """Return the predictions, and the images that were skipped as a mapping from path to reason.

        Raises:
            UserError: An image cannot be decoded and `skip_bad` is False.
        """
        skipped = SkippedImages()
        batches = make_loader(
            images,
            self.preprocessing.crop,
            sequential_batches(len(images), self.batch_size),
            decode=self.preprocessing.decode,
            workers=self.workers,
            device=self.precision.device,
        )
        checked = handle_bad_images(batches, images, skipped if self.skip_bad else None, min_images=0)
        return collect_predictions(model, checked, self.preprocessing, self.precision), skipped.as_dict()


@dataclass(frozen=True)
class TrainedModel:
    """The model of a run's best checkpoint, ready to predict."""

    model: nn.Module
    classes: list[str]
    preprocessing: Preprocessing
    fingerprint: str  # of the training data


def load_trained(path: Path, precision: Precision) -> TrainedModel:
    """Build the model of a checkpoint and load its weights, on the device, in evaluation mode.

    Raises:
        UserError: The checkpoint is missing or damaged.
    """
    content = read_checkpoint(path)
    preprocessing = Preprocessing.from_dict(content["preprocessing"])
    settings = content["config"]
    model = build_model(
        ModelConfig(**settings["model"]), len(content["classes"]), preprocessing.image_size, load_weights=False
    )
    model.load_state_dict(content["model"])
    model = to_device(model, precision.device, channels_last=settings["train"]["channels_last"])
    return TrainedModel(model.eval(), content["classes"], preprocessing, content["fingerprint"])


def evaluate_splits(
    folder: RunFolder | None, trained: TrainedModel, evaluator: Evaluator, dataset: Dataset, names: Iterable[str]
) -> dict[str, dict[str, Any]]:
    """Evaluate on the splits, with the temperature fitted on validation, and write evaluation/<split>.json.

    Args:
        folder: The run folder to write to; None writes no files.
        trained: The model.
        evaluator: Predicts the images.
        dataset: The images of the splits.
        names: The names of the splits to evaluate.

    Returns:
        The content of evaluation/<split>.json by split; see `mlops_img.evaluation.result.build_result`.
    """
    validation = evaluator.predict(trained.model, dataset.val)
    temperature = fit_temperature(validation[0])
    results = {}
    for name in names:
        images = dataset.split(name)
        predictions, skipped = validation if name == "val" else evaluator.predict(trained.model, images)
        if skipped:
            log.warning("%s: %d of %d images skipped in the evaluation", name, len(skipped), len(images))
        results[name] = {
            "split": name,
            "origin": dataset.origins[name].as_dict(),
            "skipped": [{"path": path, "reason": reason} for path, reason in skipped.items()],
            **build_result(predictions, trained.classes, list(images.paths), temperature),
        }
        if folder is not None:
            (folder.path / "evaluation").mkdir(exist_ok=True)
            write_json(folder.path / "evaluation" / f"{name}.json", results[name])
    return results


def read_pixels(images: ImageSet, row: int, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Return an image as the preprocessing decodes it, uint8 (height, width, 3), for display."""
    return preprocessing.decode(images.read(images.paths[row]))


def warn_of_few_images(result: dict[str, Any]) -> None:
    """Log a warning if top-1 was measured on few images; `result` is one value of `evaluate_splits`."""
    warning = small_split_warning(result["split"], result["n"], result["top1_interval"])
    if warning:
        log.warning("%s", warning)
