"""Classification data sets of torchvision, by class name, as a source."""

from __future__ import annotations

import inspect
import operator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torchvision import datasets

from mlops_img.config.data import TorchvisionConfig
from mlops_img.data.sources.base import ImageSet, Table
from mlops_img.data.sources.split_origin import SplitOrigin
from mlops_img.errors import UserError, did_you_mean

# Names of splits, in order of preference, and of the attributes with labels and class names; they differ between
# torchvision's data sets.
SPLIT_NAMES = {"train": ("train", "trainval"), "val": ("val", "valid"), "test": ("test",)}
LABEL_ATTRIBUTES = ("targets", "labels", "_labels", "y")
CLASS_ATTRIBUTES = ("classes", "categories")


@dataclass(frozen=True)
class Torchvision:
    """The splits of a data set of torchvision.datasets; missing splits are later split off train."""

    config: TorchvisionConfig

    def table(self) -> Table:
        build = self._dataset_class()
        parts = self._parts(build)
        labels = {split: self._labels(part) for split, part in parts.items()}
        names = _class_names(parts["train"], count=1 + max(int(values.max()) for values in labels.values()))
        sets = {
            split: ImageSet(
                [f"{self.config.dataset}/{split}/{row}" for row in range(len(labels[split]))],
                labels[split],
                DatasetReader(part),
            )
            for split, part in parts.items()
        }
        origins = {split: SplitOrigin(place=f"torchvision's {self.config.dataset}") for split in sets}
        return Table(names, sets, origins=origins)

    def _dataset_class(self) -> Any:
        exported = {name: getattr(datasets, name) for name in datasets.__all__}
        known = {name: value for name, value in exported.items() if isinstance(value, type)}
        if self.config.dataset not in known:
            raise UserError(
                f"data.dataset: torchvision has no data set {self.config.dataset!r}."
                f"{did_you_mean(self.config.dataset, known)}"
            )
        return known[self.config.dataset]

    def _parts(self, build: Any) -> dict[str, Any]:
        """Open the splits of the data set; train is always one of them."""
        parts: dict[str, Any] = {}
        reason = ""
        for split, alternatives in _split_options(build, self.config.kwargs).items():
            if split == "test" and not self.config.use_given_test:
                continue
            for options in alternatives:
                try:
                    parts[split] = self._open(build, options)
                    break
                except ValueError as error:  # torchvision raises this for an unknown split
                    reason = reason or str(error)
        if "train" not in parts:
            raise self._error(reason)
        # Some data sets have test images without labels.
        return {split: part for split, part in parts.items() if split == "train" or _is_for_classification(part)}

    def _open(self, build: Any, options: dict[str, Any]) -> Any:
        options = {**options, **self.config.kwargs}
        parameters = _parameters(build)
        if "root" in parameters:
            options["root"] = self.config.root
        if "download" in parameters:
            options["download"] = self.config.download
        try:
            return build(**options)
        except TypeError as error:  # an argument that is missing or unknown
            raise self._error(f"{error}. Set its arguments with data.kwargs") from None
        except (RuntimeError, OSError, ImportError) as error:
            reason = (str(error) or type(error).__name__).partition(" You can use download=True")[0]
            fetch = "download" in parameters and not self.config.download
            hint = ". Download it with data.download=true" if fetch else ""
            raise self._error(f"{reason}{hint}") from None

    def _labels(self, dataset: Any) -> NDArray[np.int64]:
        labels = _stored_labels(dataset) if _is_for_classification(dataset) else np.empty(0)
        if labels.ndim != 1 or not len(labels) or labels.min() < 0:
            raise self._error("its items are not images with one class each")
        return labels.astype(np.int64)

    def _error(self, reason: str) -> UserError:
        line = " ".join(reason.split()).replace("..", ".")
        return UserError(f"data.dataset: {self.config.dataset} under {self.config.root}: {line}")


@dataclass(frozen=True)
class DatasetReader:
    """Read image i of a data set by its name ".../i"."""

    dataset: Any

    def __call__(self, name: str) -> Image.Image:
        image: Image.Image = self.dataset[int(name.rsplit("/", 1)[1])][0]
        return image


def _parameters(build: Any) -> set[str]:
    """Return the names of the arguments of a class, including those passed to its base classes."""
    names: set[str] = set()
    for base in build.__mro__:
        parameters = inspect.signature(base.__init__).parameters
        names |= set(parameters) - {"self", "args", "kwargs"}
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
            break
    return names


def _split_options(build: Any, given: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Return for each split the keyword arguments with which `build` may open it, in order of preference.

    Arguments that the user has given are not varied: they may name the only part to train on.
    """
    parameters = _parameters(build) - set(given)
    if "train" in parameters:
        return {"train": [{"train": True}], "test": [{"train": False}]}
    if "split" in parameters:
        return {split: [{"split": name} for name in names] for split, names in SPLIT_NAMES.items()}
    return {"train": [{}]}


def _stored_labels(dataset: Any) -> NDArray[Any]:
    for attribute in LABEL_ATTRIBUTES:
        values = getattr(dataset, attribute, None)
        if values is not None and len(values) == len(dataset):
            return np.asarray(values)
    samples = getattr(dataset, "_samples", None)  # of (path, label)
    if samples is not None and len(samples) == len(dataset):
        return np.array([label for _, label in samples])
    return np.array([dataset[row][1] for row in range(len(dataset))])


def _is_for_classification(dataset: Any) -> bool:
    try:
        image, label = dataset[0]
        operator.index(label)
    except OSError:
        return True  # a damaged image, which is reported when it is decoded
    except (TypeError, ValueError, LookupError, NotImplementedError):
        return False
    return isinstance(image, Image.Image)


def _class_names(dataset: Any, count: int) -> list[str]:
    """Return the names of the classes; numbers if the data set has no names or too few."""
    for attribute in CLASS_ATTRIBUTES:
        names = getattr(dataset, attribute, None)
        if isinstance(names, list) and len(names) >= count:
            # Imagenette has several names for each class.
            return [name if isinstance(name, str) else "/".join(name) for name in names]
    return [str(number) for number in range(count)]
