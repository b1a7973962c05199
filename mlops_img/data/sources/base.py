"""What a source of labeled images is: it lists a `Table`, and nothing is read before an image is asked for."""

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
    # Classes that a split names but train does not, or the other way round; judged in dataset.py.
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
    """Anything that can list labeled images."""

    def table(self) -> Table:
        """List the images.

        Raises:
            UserError: the data are missing or malformed.
        """
        ...
