"""The interface of a source of labeled images: it lists a `Table`; images are read later, one by one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mlops_img.data.sources.left_out import LeftOut
from mlops_img.data.sources.split_origin import SplitOrigin

SPLITS = ("train", "val", "test")
WITHOUT_TEST = "data.use_given_test=false"

Read = Callable[[str], bytes | Image.Image]


def read_file(path: str) -> bytes:
    """Return the bytes of the file."""
    with open(path, "rb") as file:
        return file.read()


@dataclass(frozen=True)
class ImageSet:
    """Names and labels of images; image i is read by `read(paths[i])`.

    Attributes:
        paths: the path of each image file, or the name of each image in a data set without files.
        labels: int64 (n,), indices into the classes.
        read: returns the bytes of a file or a Pillow image, given an element of `paths`.
        groups: the group of each image, which splits keep whole; None: each image is its own.
    """

    paths: Sequence[str]
    labels: NDArray[np.int64]
    read: Read = read_file
    groups: Sequence[str] | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def select(self, rows: NDArray[np.intp]) -> ImageSet:
        """Return the images at these positions, in this order."""
        groups = None if self.groups is None else [self.groups[row] for row in rows]
        return ImageSet([self.paths[row] for row in rows], self.labels[rows], self.read, groups)


@dataclass(frozen=True)
class Table:
    """The result of a source: the classes, and the images of each split.

    A source without splits returns all images as "train"; `mlops_img.data.splits` creates the other splits.
    """

    classes: list[str]
    splits: Mapping[str, ImageSet]
    # Differences between the classes of the splits; dataset.py decides whether they are errors.
    class_mismatches: list[str] = field(default_factory=list)
    # Files that are not in the data set, by reason; logged and reported by the audit.
    left_out: list[LeftOut] = field(default_factory=list)
    # Continuation of the error message for wrong classes, starting with ". ": a possible fix.
    hint: str = ""
    # Ambiguities in the structure of the data set; logged as warnings.
    doubts: list[str] = field(default_factory=list)
    # Origin of each split of the source. `mlops_img.data.splits` adds those of the other splits.
    origins: Mapping[str, SplitOrigin] = field(default_factory=dict)


class Source(Protocol):
    """A source of labeled images."""

    def table(self) -> Table:
        """List the images.

        Raises:
            UserError: the data are missing or malformed.
        """
        ...
