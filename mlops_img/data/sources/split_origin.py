"""Describe where the images of each split come from: given by the data source, or split off train."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class SplitOrigin:
    """The origin of the images of one split.

    Attributes:
        kind: "given" by the source, "split off train", a "fold" of it, or "none" if there is no such split.
        place: location of a given split, e.g. its folder; empty if the source does not give one.
        fraction, seed: data.<split>_fraction and data.split_seed of a split that was split off train.
        fold, folds: data.fold and data.folds.
    """

    kind: Literal["given", "split off train", "fold", "none"] = "given"
    place: str = ""
    fraction: float | None = None
    seed: int | None = None
    fold: int | None = None
    folds: int | None = None

    def text(self, split: str) -> str:
        """Return the origin as part of a sentence, with its configuration keys."""
        if self.kind == "none":
            return f"none (data.{split}_fraction=0)"
        if self.kind == "split off train":
            return f"split off train (data.{split}_fraction={self.fraction}, data.split_seed={self.seed})"
        if self.kind == "fold":
            return f"of train (data.fold={self.fold}, data.folds={self.folds}, data.split_seed={self.seed})"
        return f"given in {self.place}" if self.place else "given"

    def as_dict(self) -> dict[str, Any]:
        """Return the attributes that are set, as JSON-serializable values; the inverse of `SplitOrigin(**values)`."""
        return {name: value for name, value in asdict(self).items() if value not in (None, "")}


def describe_splits(origins: Mapping[str, SplitOrigin], images: Mapping[str, int]) -> str:
    """Return one line about the origin of the validation and test splits.

    Args:
        origins: the origin of each split.
        images: the number of images of each split.
    """
    return "; ".join(
        f"{split}: {origins[split].text(split)}"
        if split not in images
        else f"{split}: {images[split]:,} image{'s' * (images[split] != 1)} {origins[split].text(split)}"
        for split in ("val", "test")
        if split in origins
    )


def noted_splits(provenance: Mapping[str, Any]) -> dict[str, tuple[int, str]]:
    """Return the number of images and the origin of each split in the provenance.json of a run.

    Empty for runs of versions that did not record them. A test split that the run did not have has 0 images.
    """
    noted = (provenance.get("data") or {}).get("splits") or {}
    return {
        split: (about["images"], SplitOrigin(**{key: about[key] for key in about if key != "images"}).text(split))
        for split, about in noted.items()
    }
