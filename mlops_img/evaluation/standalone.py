"""Evaluation of a run on another data set than the one it was trained on."""

from __future__ import annotations

import dataclasses
import filecmp
import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlops_img.config.data import DataConfig, EvaluateDataConfig, FolderConfig, Mnist5kConfig, TorchvisionConfig
from mlops_img.config.rules import validate
from mlops_img.core.files import read_json
from mlops_img.data.dataset import fingerprint
from mlops_img.data.duplicates import ContentIndex
from mlops_img.data.names import names_below
from mlops_img.data.sources.base import ImageSet, Table, read_file
from mlops_img.data.sources.registry import log_remarks, open_source
from mlops_img.data.splits import with_all_splits
from mlops_img.errors import UserError, did_you_mean
from mlops_img.evaluation.metrics import evaluation, fit_temperature
from mlops_img.evaluation.trained import TrainedRun

NAMED_CLASSES = 10
LONGEST_NAME = 100
COMPARED_FILES = 100

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StandAlone:
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


def open_standalone(run: TrainedRun, given: EvaluateDataConfig, split: str) -> StandAlone | None:
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
    config = _data_config(run, given)
    if config is None:
        return None
    validate(dataclasses.replace(run.config, data=config))
    table = open_source(config).any_splits()
    if _is_own(run, table, config):
        return None
    # use_given_test=False of the training does not apply to another data set.
    if not config.use_given_test and not isinstance(given, DataConfig):
        table = open_source(dataclasses.replace(config, use_given_test=True)).any_splits()
    log_remarks(config.root, table)
    images = _in_classes_of(run, _chosen(table, config, split), table, config)
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
    return StandAlone(
        f"{name[:LONGEST_NAME]}-{digest[:8]}", config.source, config.root, split, images, digest, identical
    )


def evaluate_standalone(run: TrainedRun, data: StandAlone) -> dict[str, Any]:
    """Evaluate the run on all images of the data set, with the temperature of the run.

    Returns:
        The result of `mlops_img.evaluation.evaluator.evaluate_splits` for one split, and `data`, which describes it.
    """
    temperature = _temperature(run)
    predictions, skipped = run.evaluator().predict(run.trained.model, data.images)
    if skipped:
        log.warning("%s: %d of %d images skipped in the evaluation", data.root, len(skipped), len(data.images))
    return {
        "split": data.split,
        "data": {
            "source": data.source,
            "root": data.root,
            "fingerprint": data.fingerprint,
            "identical_to_training": data.identical,
        },
        "skipped": [{"path": path, "reason": reason} for path, reason in skipped.items()],
        **evaluation(predictions, run.trained.classes, list(data.images.paths), temperature),
    }


def _data_config(run: TrainedRun, given: EvaluateDataConfig) -> DataConfig | None:
    """Return the configuration of the given data, or None if they are the data of the run."""
    if isinstance(given, DataConfig):
        if not given.root:
            raise UserError("data.root is not set. Set it with data.root=...")
        return None if _reads_the_same(given, run.config.data) else given
    own = run.config.data
    if given.root is None or _same_place(given.root, own.root):
        return None
    if isinstance(own, Mnist5kConfig):  # it would generate its images in an empty folder
        own = FolderConfig(**{field.name: getattr(own, field.name) for field in dataclasses.fields(DataConfig)})
        own.source = FolderConfig.source
    return dataclasses.replace(own, root=given.root)


def _reads_the_same(given: DataConfig, own: DataConfig) -> bool:
    """Return whether both configure the same source, with the same root and the same source-specific keys."""
    keys = {field.name for field in dataclasses.fields(own)} - {field.name for field in dataclasses.fields(DataConfig)}
    return (
        type(given) is type(own)
        and _same_place(given.root, own.root)
        and all(getattr(given, key) == getattr(own, key) for key in keys)
    )


def _same_place(one: str, other: str) -> bool:
    return os.path.realpath(os.path.expanduser(one)) == os.path.realpath(os.path.expanduser(other))


def _is_own(run: TrainedRun, table: Table, config: DataConfig) -> bool:
    """Return whether these are the images and splits of the run, moved to another place."""
    sources = {config.source, run.config.data.source}
    if len(sources - {Mnist5kConfig.source}) > 1:
        return False  # the data of the run are read in another way
    if "train" not in table.splits or sorted(table.classes) != sorted(run.trained.classes):
        return False
    keys = ("val_fraction", "test_fraction", "split_seed", "limit")
    as_trained = dataclasses.replace(config, **{key: getattr(run.config.data, key) for key in keys})
    number = _numbers(run, table)
    splits = {
        split: dataclasses.replace(images, labels=number[images.labels]) for split, images in table.splits.items()
    }
    contents = ContentIndex(config.root)
    try:
        whole = with_all_splits(
            dataclasses.replace(table, classes=run.trained.classes, splits=splits), as_trained, contents
        )
    except UserError:
        return False
    if fingerprint(whole, config.root, contents) != run.trained.fingerprint or _differs_from_originals(
        run, table, config
    ):
        return False
    log.info(
        "%s: names, labels and sizes match the data of the run, so it is treated as the same data set, moved",
        config.root,
    )
    return True


def _differs_from_originals(run: TrainedRun, table: Table, config: DataConfig) -> bool:
    """Return whether files of the same name at the root of the run differ in content; False if there are none.

    The fingerprint covers names, labels and sizes only, and uncompressed images of the same shape have the same size.
    """
    paths = [path for images in table.splits.values() if images.read is read_file for path in images.paths]
    names = names_below(config.root, paths)
    root = os.path.expanduser(run.config.data.root)
    step = max(1, len(paths) // COMPARED_FILES)
    for path, name in list(zip(paths, names, strict=True))[::step]:
        original = os.path.join(root, name)
        if os.path.isfile(original) and not filecmp.cmp(path, original, shallow=False):
            return True
    return False


def _chosen(table: Table, config: DataConfig, split: str) -> ImageSet:
    """Return the images to evaluate: those of the split, or all if there are no splits."""
    if list(table.splits) == ["train"]:
        return table.splits["train"]
    if split not in table.splits:
        available = ", ".join(table.splits)
        raise UserError(f"split={split}: {config.root} has no {split} split. Set split to one of: {available}")
    return table.splits[split]


def _in_classes_of(run: TrainedRun, images: ImageSet, table: Table, config: DataConfig) -> ImageSet:
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
    return dataclasses.replace(images, labels=_numbers(run, table)[images.labels])


def _numbers(run: TrainedRun, table: Table) -> NDArray[np.int64]:
    """Return the index in the run of each class of the table, int64 (classes,); -1 for unknown classes."""
    number = {name: position for position, name in enumerate(run.trained.classes)}
    return np.array([number.get(name, -1) for name in table.classes], np.int64)


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - NAMED_CLASSES} more" if len(names) > NAMED_CLASSES else ""
    return f"{', '.join(map(repr, names[:NAMED_CLASSES]))}{more}"


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


def _temperature(run: TrainedRun) -> float:
    """Return the temperature that the training fitted on the validation images of the run.

    If summary.json does not hold it, it is fitted again; without the validation images it is 1, no calibration.
    """
    try:
        stored = read_json(run.folder.summary).get("temperature")
    except ValueError:
        stored = None
    if isinstance(stored, float) and stored > 0:
        return stored
    try:
        own = run.with_data()
    except UserError as error:
        log.warning(
            "%s has no temperature, and it cannot be fitted again: the probabilities are not calibrated (%s)",
            run.folder.summary,
            re.sub(r"\s+", " ", str(error)),
        )
        return 1.0
    return fit_temperature(own.evaluator().predict(own.trained.model, own.dataset.val)[0])
