"""Evaluation of a run on an external data set: one that it was not trained on."""

from __future__ import annotations

import dataclasses
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mlops_img.config.data import DataConfig, EvaluateDataConfig, TorchvisionConfig
from mlops_img.config.rules import validate
from mlops_img.core.text import shortened_list
from mlops_img.data.dataset import fingerprint
from mlops_img.data.duplicates import ContentIndex
from mlops_img.data.sources.base import ImageSet, Table, read_file
from mlops_img.data.sources.registry import log_remarks, open_source
from mlops_img.data.splits import with_all_splits
from mlops_img.errors import UserError, did_you_mean
from mlops_img.evaluation.own_data import class_indices, external_config, is_own_data
from mlops_img.evaluation.result import build_result
from mlops_img.evaluation.trained import TrainedRun
from mlops_img.evaluation.tta import ViewAveraging

NAMED_CLASSES = 10
LONGEST_NAME = 100

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ExternalData:
    """A labeled data set other than that of the run.

    Attributes:
        name: The name of the result folder: the name of the root and the first digits of the fingerprint.
        source, root: The source of the images.
        split: The requested split. If the data set has no splits, `images` are all of its images.
        images: The images to evaluate; labels are indices into the classes of the run.
        fingerprint: The fingerprint of all images; see `mlops_img.data.dataset.fingerprint`.
        identical: The number of images that are byte-identical to a training image; None if the training images cannot
            be compared.
    """

    name: str
    source: str
    root: str
    split: str
    images: ImageSet
    fingerprint: str
    identical: int | None


def open_external(run: TrainedRun, given: EvaluateDataConfig, split: str) -> ExternalData | None:
    """List the given data set, or return None if it is the data set of the run.

    It is the data set of the run if no other source or root is given, or if its images, labels and splits are the same,
    because it was moved.

    Args:
        run: The run, with the configuration of the training.
        given: An option of the group `data` (a DataConfig), or the keys that differ from the data of the run.
        split: The split to evaluate, if the data set has splits.

    Raises:
        UserError: The data are missing or malformed, lack the split, or contain classes unknown to the run.
    """
    config = external_config(run, given)
    if config is None:
        return None
    validate(dataclasses.replace(run.config, data=config))
    table = open_source(config).any_splits()
    if is_own_data(run, table, config):
        return None
    # use_given_test=False of the training does not apply to another data set.
    if not config.use_given_test and not isinstance(given, DataConfig):
        table = open_source(dataclasses.replace(config, use_given_test=True)).any_splits()
    log_remarks(config.root, table)
    images = _with_run_labels(run, _images_of(table, config, split), table, config)
    identical = _count_identical(run, images)
    if identical:
        log.warning(
            "%s: %d of the %d images are byte-identical to training images, so the figures are optimistic",
            config.root,
            identical,
            len(images),
        )
    digest = fingerprint(table, config.root)
    name = Path(config.root).expanduser().resolve().name or "root"
    return ExternalData(
        f"{name[:LONGEST_NAME]}-{digest[:8]}", config.source, config.root, split, images, digest, identical
    )


def evaluate_external(run: TrainedRun, data: ExternalData, views: ViewAveraging | None = None) -> dict[str, Any]:
    """Evaluate the run on all images of the data set, with the temperature of the run.

    Returns:
        The result of `mlops_img.evaluation.splits.evaluate_splits` for one split, and `data`, which describes it.
    """
    temperature, evaluator = run.temperature(), run.evaluator()
    predictions, skipped = evaluator.predict(run.trained.model, data.images)
    if skipped:
        log.warning("%s: %d of %d images skipped in the evaluation", data.root, len(skipped), len(data.images))
    tta = {} if views is None else {"tta": views.evaluate(evaluator, run.trained.model, data.images, predictions)}
    return {
        "split": data.split,
        "data": {
            "source": data.source,
            "root": data.root,
            "fingerprint": data.fingerprint,
            "identical_to_training": data.identical,
        },
        "skipped": [{"path": path, "reason": reason} for path, reason in skipped.items()],
        **build_result(predictions, run.trained.classes, list(data.images.paths), temperature),
        **tta,
    }


def _images_of(table: Table, config: DataConfig, split: str) -> ImageSet:
    """Return the images to evaluate: those of the split, or all if there are no splits."""
    if list(table.splits) == ["train"]:
        return table.splits["train"]
    if split not in table.splits:
        available = ", ".join(table.splits)
        raise UserError(f"split={split}: {config.root} has no {split} split. Set split to one of: {available}")
    return table.splits[split]


def _with_run_labels(run: TrainedRun, images: ImageSet, table: Table, config: DataConfig) -> ImageSet:
    """Return the images with labels that index the classes of the run; warn about classes without images."""
    known = run.trained.classes
    present = [table.classes[label] for label in np.unique(images.labels).tolist()]
    unknown = [name for name in present if name not in known]
    if unknown:
        raise UserError(
            f"data.root={config.root} has classes that {run.folder.path} was not trained on: {_listed(unknown)}. "
            f"The classes of the run are {_listed(known)}.{did_you_mean(unknown[0], known)}{table.hint}"
        )
    absent = [name for name in known if name not in present]
    if absent:
        log.warning("%s: no images for %d classes of the run: %s", config.root, len(absent), _listed(absent))
    return dataclasses.replace(images, labels=class_indices(run, table)[images.labels])


def _listed(names: list[str]) -> str:
    return shortened_list([repr(name) for name in names], NAMED_CLASSES)


def _count_identical(run: TrainedRun, images: ImageSet) -> int | None:
    """Count the images that are byte-identical to a training image; None if they cannot be compared."""
    config = run.config.data
    # Torchvision would download its data, which are not files; the default data would be generated.
    if isinstance(config, TorchvisionConfig) or not os.path.exists(os.path.expanduser(config.root)):
        log.info("%s does not exist, so the images are not compared with the training images", config.root)
        return None
    contents = ContentIndex(config.root)
    try:
        train = with_all_splits(open_source(config).any_splits(), config, contents).splits["train"]
    except (UserError, OSError, KeyError) as error:
        log.info("the images are not compared with the training images: %s", error)
        return None
    if train.read is not read_file or images.read is not read_file:
        return None
    paths = [*train.paths, *images.paths]
    groups = contents.groups(ImageSet(paths, np.zeros(len(paths), np.int64)))
    return int(np.isin(groups[len(train) :], groups[: len(train)]).sum())
