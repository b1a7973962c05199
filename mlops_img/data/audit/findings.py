"""What an audit finds in a data set."""

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
class Place:
    """Where an image stands: its name, its split and its class."""

    path: str
    split: str
    label: str


@dataclass(frozen=True)
class Unreadable:
    """An image that cannot be decoded, and why."""

    image: Place
    reason: str


@dataclass(frozen=True)
class Duplicates:
    """Images that are the same, or nearly.

    Attributes:
        kind: "bytes" (the files are equal), "pixels" (only what they decode to is) or "near" (look the same).
        crosses_splits: they lie in two splits or more, so that an evaluation would ask what training saw.
        labels_differ: they lie in two classes or more, so that one label at least is wrong.
        images: all of them.
    """

    kind: str
    crosses_splits: bool
    labels_differ: bool
    images: list[Place]


@dataclass(frozen=True)
class Range:
    """Smallest, middle and largest of a number of pixels."""

    min: int
    median: float
    max: int


@dataclass(frozen=True)
class SplitFindings:
    """One split in numbers.

    Attributes:
        images: how many are listed, unreadable ones included.
        per_class: images of each class, 0 where there are none.
        imbalance: images of the largest class per image of the smallest; None where a class has none.
        width, height: in pixels, over the readable images; None where there are none.
        smallest: the name of the image with the fewest pixels.
        formats, modes: readable images by file format and by Pillow mode, most frequent first.
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
    """The images of more than 8 bits a channel.

    Attributes:
        images: how many there are.
        used: the share of the range that their files declare from the smallest value of all to the largest.
        sixteen_bit: how they were decoded, `data.sixteen_bit`.
    """

    images: int
    used: float
    sixteen_bit: str


@dataclass(frozen=True)
class Findings:
    """All that was found; `ok` is False where training refuses the data, skips images or misleads.

    Attributes:
        origins: where the images of each split come from.
        refusals: other reasons why training does not start with these data.
        missing_classes: (class, split) without a single image.
        duplicates: exact ones first (a group whose files are equal, or whose pixels are), then near ones.
        too_plain: images with too little detail for a search of near duplicates, the plainest first.
        deep: None where each image has 8 bits a channel.
        left_out: files that are not among the images, by reason and name.
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
    too_plain: list[Place]
    deep: DeepImages | None
    left_out: list[LeftOut] = field(default_factory=list)
    ok: bool = field(init=False)

    def __post_init__(self) -> None:
        problems = (self.refusals, self.missing_classes, self.unreadable, self.leaks())
        object.__setattr__(self, "ok", not any(problems))

    def leaks(self) -> list[Duplicates]:
        """Return the groups of one and the same image in several splits."""
        return [group for group in self.duplicates if group.crosses_splits and group.kind != "near"]

    def as_dict(self) -> dict[str, Any]:
        """Return all of it in types that JSON knows."""
        return asdict(self) | {"origins": {split: origin.as_dict() for split, origin in self.origins.items()}}


def find(
    table: Table,
    pictures: Sequence[Picture],
    *,
    source: str,
    root: str,
    near_duplicate_bits: int,
    sixteen_bit: str = "declared",
    refusals: Sequence[str] = (),
) -> Findings:
    """Compare and count.

    Args:
        table: the images by split.
        pictures: one for each image of the table, split by split.
        source, root: where the table comes from; only repeated.
        near_duplicate_bits: how many of 64 hash bits near duplicates may differ in.
        sixteen_bit: how the images were decoded; only repeated.
        refusals: reasons found before why training does not start with these data.
    """
    places = [
        Place(path, split, table.classes[label])
        for split, images in table.splits.items()
        for path, label in zip(images.paths, images.labels.tolist(), strict=True)
    ]
    splits = {
        split: _describe_split(
            table.classes,
            [(place, picture) for place, picture in zip(places, pictures, strict=True) if place.split == split],
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
            Unreadable(place, picture.fault)
            for place, picture in zip(places, pictures, strict=True)
            if picture.fault is not None
        ],
        duplicates=[_duplicates(_exact_kind(pictures, rows), rows, places) for rows in exact if len(rows) > 1]
        + [_duplicates("near", rows, places) for rows in near],
        too_plain=[places[row] for row in too_plain],
        deep=_describe_deep([picture.used for picture in pictures if picture.used], sixteen_bit),
        left_out=table.left_out,
    )


def _describe_split(classes: Sequence[str], images: Sequence[tuple[Place, Picture]]) -> SplitFindings:
    counts = Counter(place.label for place, _ in images)
    per_class = {name: counts[name] for name in classes}
    smallest_class = min(per_class.values())
    readable = [(place, picture) for place, picture in images if picture.fault is None]
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
    """Return the positions of each different image: same pixels, or same bytes where they are no image."""
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
    """Return groups of different images that look the same, and the images that are too plain to tell."""
    # Copies stand for each other: only the first of them is compared.
    smalls = [(rows, small) for rows in exact if (small := pictures[rows[0]].small) is not None]
    if not smalls:
        return [], []
    different = [rows for rows, _ in smalls]
    groups, too_plain = near_groups(np.stack([small for _, small in smalls]), bits)
    return (
        [sorted(row for one in group for row in different[one]) for group in groups],
        [row for one in too_plain for row in different[one]],
    )


def _duplicates(kind: str, rows: Sequence[int], places: Sequence[Place]) -> Duplicates:
    images = [places[row] for row in rows]
    return Duplicates(
        kind,
        crosses_splits=len({image.split for image in images}) > 1,
        labels_differ=len({image.label for image in images}) > 1,
        images=images,
    )
