"""Where the images of each split come from: given by the data source, or split off train."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class SplitOrigin:
    """Where the images of one split come from.

    Attributes:
        kind: "given" by the source, "split off train", or "none" where there is no such split.
        place: where a given split was found, e.g. its folder; empty where the source does not say.
        fraction, seed: data.<split>_fraction and data.split_seed of a split that was split off train.
    """

    kind: Literal["given", "split off train", "none"] = "given"
    place: str = ""
    fraction: float | None = None
    seed: int | None = None

    def text(self, split: str) -> str:
        """Return it as part of a sentence, with the keys that decide it."""
        if self.kind == "none":
            return f"none (data.{split}_fraction=0)"
        if self.kind == "split off train":
            return f"split off train (data.{split}_fraction={self.fraction}, data.split_seed={self.seed})"
        return f"given in {self.place}" if self.place else "given"

    def as_dict(self) -> dict[str, Any]:
        """Return what applies, in types that JSON knows; `SplitOrigin(**values)` reads it back."""
        return {name: value for name, value in asdict(self).items() if value not in (None, "")}


def describe_splits(origins: Mapping[str, SplitOrigin], images: Mapping[str, int]) -> str:
    """Return one line on where validation and test come from.

    Args:
        origins: by split.
        images: how many each split has.
    """
    return "; ".join(
        f"{split}: {origins[split].text(split)}"
        if split not in images
        else f"{split}: {images[split]:,} image{'s' * (images[split] != 1)} {origins[split].text(split)}"
        for split in ("val", "test")
        if split in origins
    )


def noted_splits(provenance: Mapping[str, Any]) -> dict[str, tuple[int, str]]:
    """Return by split how many images it has and where they come from, as a run's provenance.json notes it.

    Empty for a run of a version that did not note it. A test split that the run did without has 0 images.
    """
    noted = (provenance.get("data") or {}).get("splits") or {}
    return {
        split: (about["images"], SplitOrigin(**{key: about[key] for key in about if key != "images"}).text(split))
        for split, about in noted.items()
    }
