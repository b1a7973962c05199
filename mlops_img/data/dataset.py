"""A checked data set: classes agree, no image is in two splits; and its fingerprint."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np

from mlops_img.config.data import DataConfig
from mlops_img.data.duplicates import ContentIndex, groups_of_several
from mlops_img.data.names import names_below
from mlops_img.data.sources.base import WITHOUT_TEST, ImageSet, Table, read_file
from mlops_img.data.sources.registry import open_source
from mlops_img.data.sources.split_origin import SplitOrigin, describe_splits
from mlops_img.data.splits import with_all_splits
from mlops_img.errors import UserError


@dataclass(frozen=True)
class Dataset:
    """A checked data set.

    Attributes:
        classes: names; a label is an index into them.
        splits: the images of train, val and, unless data.test_fraction=0 leaves it out, test.
        origins: where the images of train, val and test come from; also for a missing test split.
        fingerprint: md5 over every image's name, label and size; it differs if the data differ.
    """

    classes: list[str]
    splits: Mapping[str, ImageSet]
    origins: Mapping[str, SplitOrigin]
    fingerprint: str

    @property
    def train(self) -> ImageSet:
        """The images to train on."""
        return self.splits["train"]

    @property
    def val(self) -> ImageSet:
        """The images that choose the best epoch, calibrate probabilities and measure an export."""
        return self.splits["val"]

    @property
    def test(self) -> ImageSet:
        """The images that no choice depends on; raises a UserError if there are none."""
        return self.split("test")

    @property
    def headline(self) -> str:
        """The split of the headline figures: test, or val if there is no test split."""
        return "test" if "test" in self.splits else "val"

    def split(self, name: str) -> ImageSet:
        """Return the split of this name: train, val or test.

        Raises:
            UserError: the data set has no such split.
        """
        if name not in self.splits:
            raise UserError(
                f"split={name}: this data set has no {name} split (data.{name}_fraction=0). Use split={self.headline}"
            )
        return self.splits[name]

    def describe_splits(self) -> str:
        """Return one line on where validation and test come from."""
        return describe_splits(self.origins, {name: len(images) for name, images in self.splits.items()})

    def provenance(self) -> dict[str, dict[str, Any]]:
        """Return by split how many images it has and where they come from, in JSON types."""
        return {
            name: {"images": len(self.splits.get(name, ())), **origin.as_dict()}
            for name, origin in self.origins.items()
        }


def load_dataset(config: DataConfig, *, classes: Sequence[str] | None = None) -> Dataset:
    """List, split and check the data set that the configuration names.

    Args:
        config: of the data.
        classes: of a model that was trained before; if they are the data's own in another order, the labels follow
            their order.

    Raises:
        UserError: data missing or malformed, fewer than two classes, classes that differ between splits,
            or one image in two splits.
    """
    source = _in_order_of(classes, open_source(config).table())
    if len(source.classes) < 2:
        raise UserError(
            f"{config.root} has only the class {source.classes[0]!r}: a classifier needs two at least. "
            "Put the images of each class into a folder of its own; data.root=... is the folder above them"
            f"{source.hint}"
        )
    mismatches = source.class_mismatches or _classes_without_images(source)
    if mismatches and not config.allow_class_mismatch:
        raise UserError(
            f"{mismatches[0]}{_and_more(mismatches)}. "
            f"Add its images, or train anyway with data.allow_class_mismatch=true{_hint_at_test(source)}"
        )
    contents = ContentIndex(config.root)
    table = with_all_splits(source, config, contents)
    if not config.allow_leakage:
        leaks = find_leaks(table, contents)
        if leaks:
            one, other = leaks[0]
            raise UserError(
                f"the same image is in two splits: {one} and {other}{_and_more(leaks)}. "
                "Delete one of each, or train anyway with data.allow_leakage=true; "
                "`python -m mlops_img.audit` lists all"
            )
    return Dataset(table.classes, table.splits, table.origins, fingerprint(table, config.root, contents))


def _in_order_of(classes: Sequence[str] | None, table: Table) -> Table:
    """Return the table with its classes in this order; unchanged if they are not the same classes."""
    if classes is None or sorted(classes) != sorted(table.classes) or len(set(classes)) < len(classes):
        return table
    number = {name: position for position, name in enumerate(classes)}
    new = np.array([number[name] for name in table.classes], np.int64)
    splits = {split: replace(images, labels=new[images.labels]) for split, images in table.splits.items()}
    return replace(table, classes=list(classes), splits=splits)


def find_leaks(table: Table, contents: ContentIndex | None = None) -> list[tuple[str, str]]:
    """Return the pairs of files that hold the same bytes and lie in different splits.

    The splits of data sets that are not files (torchvision's) are trusted; the audit checks those too.
    """
    splits = list(table.splits.values())
    paths = [path for images in splits for path in images.paths]
    # Only files have bytes to compare, so all images must be files.
    read = next((images.read for images in splits if images.read is not read_file), read_file)
    groups = (contents or ContentIndex()).groups(ImageSet(paths, np.zeros(len(paths), np.int64), read))
    split_of = np.repeat(np.arange(len(splits)), [len(images) for images in splits])
    leaks = []
    for rows in groups_of_several(groups):
        first = rows[0]
        leaks += [(paths[first], paths[row]) for row in rows[1:] if split_of[row] != split_of[first]]
    return leaks


def fingerprint(table: Table, root: str = ".", contents: ContentIndex | None = None) -> str:
    """Return an md5 over the classes and each image's name below `root`, label and size, split by split."""
    digest = hashlib.md5("\n".join(table.classes).encode(errors="surrogateescape"), usedforsecurity=False)
    paths = [path for images in table.splits.values() for path in images.paths]
    names = iter(names_below(root, paths))
    contents = contents or ContentIndex()
    for split, images in table.splits.items():
        # islice, not zip: zip would take one name too many from the iterator.
        lines = [
            f"{split} {name} {label} {size}\n"
            for name, label, size in zip(
                islice(names, len(images)), images.labels.tolist(), contents.sizes(images).tolist(), strict=True
            )
        ]
        digest.update(os.fsencode("".join(lines)))
    return digest.hexdigest()


def _classes_without_images(table: Table) -> list[str]:
    return [
        f"class {table.classes[label]!r} has no image in split {split}"
        for split, images in table.splits.items()
        for label in np.setdiff1d(np.arange(len(table.classes)), images.labels).tolist()
    ]


def _hint_at_test(table: Table) -> str:
    """Return how to leave the test split out, if it has classes that no other split has: it may have no labels."""
    given = {split: set(images.labels.tolist()) for split, images in table.splits.items()}
    unknown = given.pop("test", set()).difference(*given.values())
    return f". If the test images have no labels, leave them out with {WITHOUT_TEST}" if unknown else ""


def _and_more(items: list[tuple[str, str]] | list[str]) -> str:
    return f" (and {len(items) - 1} more)" if len(items) > 1 else ""
