"""Evaluation of a model on splits of its data, shared by training and the evaluate command."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlops_img.core.files import write_json
from mlops_img.data.dataset import Dataset
from mlops_img.data.sources.base import ImageSet
from mlops_img.evaluation.calibration import fit_temperature
from mlops_img.evaluation.confidence import small_split_warning
from mlops_img.evaluation.evaluator import Evaluator, TrainedModel
from mlops_img.evaluation.per_image import write_predictions
from mlops_img.evaluation.result import build_result
from mlops_img.evaluation.tta import ViewAveraging
from mlops_img.preprocessing.transforms import Preprocessing
from mlops_img.runs.folder import RunFolder

log = logging.getLogger(__name__)


def evaluate_splits(
    folder: RunFolder | None,
    trained: TrainedModel,
    evaluator: Evaluator,
    dataset: Dataset,
    names: Iterable[str],
    views: ViewAveraging | None = None,
) -> dict[str, dict[str, Any]]:
    """Evaluate on the splits, with the temperature fitted on validation, and write evaluation/<split>.json.

    Args:
        folder: The run folder to write to; None writes no files.
        trained: The model.
        evaluator: Predicts the images.
        dataset: The images of the splits.
        names: The names of the splits to evaluate.
        views: Test-time augmentation; its metrics are then in each result beside those without, as `tta`.

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
        if views is not None:
            results[name]["tta"] = views.evaluate(evaluator, trained.model, images, predictions)
        if folder is not None:
            (folder.path / "evaluation").mkdir(exist_ok=True)
            write_json(folder.path / "evaluation" / f"{name}.json", results[name])
            if dataset.origins[name].kind == "fold":
                path = folder.path / "evaluation" / f"{name}_predictions.csv"
                write_predictions(path, predictions, trained.classes, images.paths)
    return results


def read_pixels(images: ImageSet, row: int, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Return an image as the preprocessing decodes it, uint8 (height, width, 3), for display."""
    return preprocessing.decode(images.read(images.paths[row]))


def warn_of_few_images(result: dict[str, Any]) -> None:
    """Log a warning if top-1 was measured on few images; `result` is one value of `evaluate_splits`."""
    warning = small_split_warning(result["split"], result["n"], result["top1_interval"])
    if warning:
        log.warning("%s", warning)
