"""Any classification data set of torchvision, by its class name."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torchvision import datasets

from mlops_img.config import TorchvisionConfig
from mlops_img.data.sources import ImageSet, Table
from mlops_img.errors import UserError, did_you_mean

# How torchvision's classes ask for a split, and where they keep the labels: it has no one way.
SPLIT_NAMES = {"train": ("train", "trainval"), "val": ("val", "valid"), "test": ("test",)}
LABEL_ATTRIBUTES = ("targets", "labels", "_labels", "y")


@dataclass(frozen=True)
class Torchvision:
    """The splits that a class of torchvision.datasets offers; what it lacks is split off its train part."""

    config: TorchvisionConfig

    def table(self) -> Table:
        build = self._dataset_class()
        parts = {
            split: part for split, options in _split_options(build) if (part := self._open(build, options))
        }
        labels = {split: _labels(part) for split, part in parts.items()}
        count = 1 + max(int(values.max()) for values in labels.values())
        names = getattr(parts["train"], "classes", None) or [str(number) for number in range(count)]
        sets = {
            split: ImageSet(
                [f"{self.config.dataset}/{split}/{row}" for row in range(len(labels[split]))],
                labels[split],
                DatasetReader(part),
            )
            for split, part in parts.items()
        }
        return Table([_class_name(name) for name in names], sets)

    def _dataset_class(self) -> Any:
        known = {name: getattr(datasets, name) for name in datasets.__all__}
        if self.config.dataset not in known:
            raise UserError(
                f"data.dataset: torchvision has no data set {self.config.dataset!r}."
                f"{did_you_mean(self.config.dataset, known)}"
            )
        return known[self.config.dataset]

    def _open(self, build: Any, options: dict[str, Any]) -> Any:
        options = {**options, **self.config.kwargs}
        if "download" in inspect.signature(build).parameters:
            options["download"] = self.config.download
        try:
            return build(self.config.root, **options)
        except ValueError:
            return None  # torchvision's way of saying that this data set has no such split
        except (RuntimeError, OSError) as error:
            hint = "" if self.config.download else " Let it be fetched with data.download=true"
            reason = str(error).splitlines()[0]
            raise UserError(
                f"data.dataset: {self.config.dataset} under {self.config.root}: {reason}.{hint}"
            ) from None


@dataclass(frozen=True)
class DatasetReader:
    """Reads image i of a data set by the name ".../i"."""

    dataset: Any

    def __call__(self, name: str) -> Image.Image:
        image: Image.Image = self.dataset[int(name.rsplit("/", 1)[1])][0]
        return image


def _split_options(build: Any) -> list[tuple[str, dict[str, Any]]]:
    """Return the keyword arguments that ask `build` for each split it may have."""
    parameters = inspect.signature(build).parameters
    if "train" in parameters:
        return [("train", {"train": True}), ("test", {"train": False})]
    if "split" in parameters:
        default = parameters["split"].default
        names = {split: default if default in many else many[0] for split, many in SPLIT_NAMES.items()}
        return [(split, {"split": name}) for split, name in names.items()]
    return [("train", {})]


def _labels(dataset: Any) -> NDArray[np.int64]:
    for attribute in LABEL_ATTRIBUTES:
        values = getattr(dataset, attribute, None)
        if values is not None and len(values) == len(dataset):
            return np.asarray(values, np.int64)
    return np.array([dataset[row][1] for row in range(len(dataset))], np.int64)


def _class_name(name: Any) -> str:
    return name if isinstance(name, str) else "/".join(name)
