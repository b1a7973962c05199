"""The findings of an audit of a data set, and how they are collected."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from mlops_img.data.audit.near_duplicates import near_groups
from mlops_img.data.audit.scan import Picture
from mlops_img.data.sources.base import Table
from mlops_img.data.sources.left_out import LeftOut
from mlops_img.data.sources.split_origin import SplitOrigin


@dataclass(frozen=True, slots=True)
class ImageRef:
    """Identify an image by its name, split and class."""

    path: str
    split: str
    label: str


@dataclass(frozen=True)
class Unreadable:
    """An image that cannot be decoded, and the reason."""

    image: ImageRef
    reason: str


@dataclass(frozen=True)
class Duplicates:
    """A group of exact or near duplicates.

    Attributes:
        kind: "bytes" (equal files), "pixels" (equal decoded pixels, different files) or "near" (look the same).
        crosses_splits: the images are in two or more splits: the evaluation would use images seen in training.
        labels_differ: the images are in two or more classes: at least one label is wrong.
        images: all images of the group.
    """

    kind: str
    crosses_splits: bool
    labels_differ: bool
    images: list[ImageRef]


@dataclass(frozen=True)
class Range:
    """Minimum, median and maximum of a width or height in pixels."""

    min: int
    median: float
    max: int


@dataclass(frozen=True)
class SplitFindings:
    """Statistics of one split.

    Attributes:
        images: number of images, including unreadable ones.
        per_class: number of images of each class, including classes with 0.
        imbalance: images of the largest class divided by images of the smallest; None if a class has no image.
        width, height: range over the readable images, in pixels; None if there are none.
        smallest: the name of the image with the fewest pixels.
        formats, modes: number of readable images by file format and by Pillow mode, most frequent first.
    """

    images: int
    per_class: dict[str, int]
    imbalance: float | None
    width: Range | None
    height: Range | None
    smallest: str | None
    formats: dict[str, int]
    modes: dict[str, int]


@dataclass(frozen=True)
class DeepImages:
    """The images of more than 8 bits per channel.

    Attributes:
        images: number of images.
        used: the largest value of all images minus the smallest, as a fraction of the range that the files declare.
        sixteen_bit: how they were decoded, the value of `data.sixteen_bit`.
    """

    images: int
    used: float
    sixteen_bit: str


@dataclass(frozen=True)
class Findings:
    """All findings; `ok` is False if training refuses the data, skips images or gives a misleading result.

    Attributes:
        origins: where the images of each split come from.
        refusals: other reasons why training does not start with these data.
        missing_classes: pairs (class, split) without an image.
        duplicates: groups of exact duplicates (equal files or equal pixels), then groups of near duplicates.
        too_plain: images with too little detail for the search for near duplicates, least detail first.
        deep: None if every image has 8 bits per channel.
        left_out: files that are not in the data set, by reason and name.
    """

    source: str
    root: str
    classes: list[str]
    splits: dict[str, SplitFindings]
    origins: dict[str, SplitOrigin]
    refusals: list[str]
    missing_classes: list[tuple[str, str]]
    unreadable: list[Unreadable]
    duplicates: list[Duplicates]
    too_plain: list[ImageRef]
    deep: DeepImages | None
    left_out: list[LeftOut] = field(default_factory=list)
    ok: bool = field(init=False)

    def __post_init__(self) -> None:
        problems = (self.refusals, self.missing_classes, self.unreadable, self.leaks())
        object.__setattr__(self, "ok", not any(problems))

    def leaks(self) -> list[Duplicates]:
        """Return the groups of exact duplicates in several splits."""
        return [group for group in self.duplicates if group.crosses_splits and group.kind != "near"]

    def as_dict(self) -> dict[str, Any]:
        """Return all findings as JSON-serializable values."""
        return asdict(self) | {"origins": {split: origin.as_dict() for split, origin in self.origins.items()}}


def collect_findings(
    table: Table,
    pictures: Sequence[Picture],
    *,
    source: str,
    root: str,
    near_duplicate_bits: int,
    sixteen_bit: str = "declared",
    refusals: Sequence[str] = (),
) -> Findings:
    """Count the images, compare them and collect all findings.

    Args:
        table: the images by split.
        pictures: the properties of each image of the table, split by split.
        source, root: the source of the table, copied to the result.
        near_duplicate_bits: the maximum number of bits, of 64, in which the hashes of near duplicates differ.
        sixteen_bit: how the images were decoded, copied to the result.
        refusals: reasons, already known, why training does not start with these data.
    """
    refs = [
        ImageRef(path, split, table.classes[label])
        for split, images in table.splits.items()
        for path, label in zip(images.paths, images.labels.tolist(), strict=True)
    ]
    splits = {
        split: _describe_split(
            table.classes,
            [(ref, picture) for ref, picture in zip(refs, pictures, strict=True) if ref.split == split],
        )
        for split in table.splits
    }
    exact = _exact_groups(pictures)
    near, too_plain = _near_groups(pictures, exact, near_duplicate_bits)
    return Findings(
        source=source,
        root=root,
        classes=table.classes,
        splits=splits,
        origins=dict(table.origins),
        refusals=list(refusals),
        missing_classes=[
            (name, split) for split, found in splits.items() for name, count in found.per_class.items() if not count
        ],
        unreadable=[
            Unreadable(ref, picture.fault)
            for ref, picture in zip(refs, pictures, strict=True)
            if picture.fault is not None
        ],
        duplicates=[_duplicates(_exact_kind(pictures, rows), rows, refs) for rows in exact if len(rows) > 1]
        + [_duplicates("near", rows, refs) for rows in near],
        too_plain=[refs[row] for row in too_plain],
        deep=_describe_deep([picture.used for picture in pictures if picture.used], sixteen_bit),
        left_out=table.left_out,
    )


def _describe_split(classes: Sequence[str], images: Sequence[tuple[ImageRef, Picture]]) -> SplitFindings:
    counts = Counter(ref.label for ref, _ in images)
    per_class = {name: counts[name] for name in classes}
    smallest_class = min(per_class.values())
    readable = [(ref, picture) for ref, picture in images if picture.fault is None]
    smallest = min(readable, key=lambda pair: pair[1].width * pair[1].height, default=None)
    return SplitFindings(
        images=len(images),
        per_class=per_class,
        imbalance=round(max(per_class.values()) / smallest_class, 3) if smallest_class else None,
        width=_range([picture.width for _, picture in readable]),
        height=_range([picture.height for _, picture in readable]),
        smallest=smallest[0].path if smallest else None,
        formats=_most_frequent(picture.format for _, picture in readable),
        modes=_most_frequent(picture.mode for _, picture in readable),
    )


def _describe_deep(used: Sequence[tuple[float, float]], sixteen_bit: str) -> DeepImages | None:
    if not used:
        return None
    return DeepImages(len(used), round(max(most for _, most in used) - min(least for least, _ in used), 6), sixteen_bit)


def _range(values: Sequence[int]) -> Range | None:
    return Range(min(values), float(np.median(values)), max(values)) if values else None


def _most_frequent(names: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(names).items(), key=lambda item: (-item[1], item[0])))


def _exact_groups(pictures: Sequence[Picture]) -> list[list[int]]:
    """Return the positions of each distinct image: equal pixels, or equal bytes if it cannot be decoded."""
    groups: dict[bytes | int, list[int]] = {}
    for row, picture in enumerate(pictures):
        groups.setdefault(picture.pixels or picture.content or row, []).append(row)
    return list(groups.values())


def _exact_kind(pictures: Sequence[Picture], rows: Sequence[int]) -> str:
    contents = {pictures[row].content for row in rows}
    return "bytes" if len(contents) == 1 and None not in contents else "pixels"


def _near_groups(
    pictures: Sequence[Picture], exact: Sequence[list[int]], bits: int
) -> tuple[list[list[int]], list[int]]:
    """Return the groups of near duplicates, and the images with too little detail to be compared."""
    # Exact duplicates have equal thumbnails: only the first of each group is compared.
    smalls = [(rows, small) for rows in exact if (small := pictures[rows[0]].small) is not None]
    if not smalls:
        return [], []
    different = [rows for rows, _ in smalls]
    groups, too_plain = near_groups(np.stack([small for _, small in smalls]), bits)
    return (
        [sorted(row for one in group for row in different[one]) for group in groups],
        [row for one in too_plain for row in different[one]],
    )


def _duplicates(kind: str, rows: Sequence[int], refs: Sequence[ImageRef]) -> Duplicates:
    images = [refs[row] for row in rows]
    return Duplicates(
        kind,
        crosses_splits=len({image.split for image in images}) > 1,
        labels_differ=len({image.label for image in images}) > 1,
        images=images,
    )
