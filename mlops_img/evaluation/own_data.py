"""Decide whether a given data set is the one that a run was trained on, possibly moved."""

from __future__ import annotations

import dataclasses
import filecmp
import logging
import os

import numpy as np
from numpy.typing import NDArray

from mlops_img.config.data import DataConfig, EvaluateDataConfig, FolderConfig, Mnist5kConfig
from mlops_img.data.dataset import fingerprint
from mlops_img.data.duplicates import ContentIndex
from mlops_img.data.names import names_below
from mlops_img.data.sources.base import Table, read_file
from mlops_img.data.splits import with_all_splits
from mlops_img.errors import UserError
from mlops_img.evaluation.trained import TrainedRun

COMPARED_FILES = 100

log = logging.getLogger(__name__)


def external_config(run: TrainedRun, given: EvaluateDataConfig) -> DataConfig | None:
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


def is_own_data(run: TrainedRun, table: Table, config: DataConfig) -> bool:
    """Return whether these are the images and splits of the run, moved to another place."""
    sources = {config.source, run.config.data.source}
    if len(sources - {Mnist5kConfig.source}) > 1:
        return False  # the data of the run are read in another way
    if "train" not in table.splits or sorted(table.classes) != sorted(run.trained.classes):
        return False
    keys = ("val_fraction", "test_fraction", "split_seed", "limit")
    as_trained = dataclasses.replace(config, **{key: getattr(run.config.data, key) for key in keys})
    number = class_indices(run, table)
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


def class_indices(run: TrainedRun, table: Table) -> NDArray[np.int64]:
    """Return the index in the run of each class of the table, int64 (classes,); -1 for unknown classes."""
    number = {name: position for position, name in enumerate(run.trained.classes)}
    return np.array([number.get(name, -1) for name in table.classes], np.int64)
