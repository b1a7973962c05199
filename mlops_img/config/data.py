"""Every key of the group `data`: those of all sources, and those of each."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from omegaconf import MISSING

from mlops_img.config.rules import at_least, between, each_more_than, key, more_than, one_of, per_channel
from mlops_img.errors import UserError

RAISE_OR_SKIP = one_of("raise", "skip")


@dataclass
class EvaluateDataConfig:
    """Keys that may differ from the training's `data` in evaluation and export; null: as in the training."""

    root: str | None = key(None, path=True)
    on_bad_image: str | None = key(None, RAISE_OR_SKIP)
    workers: int | None = key(None, at_least(0))


@dataclass
class DataConfig(EvaluateDataConfig):
    """Group `data`: what every source of images shares; the sources add their own keys below."""

    # "module:Class" of the source, called with this configuration; imported when the data are listed.
    implementation: ClassVar[str]

    # Which kind of source reads the data.
    source: str = MISSING
    # The folder that holds the data.
    root: str = key(MISSING, path=True)
    # Side of the square that the model sees, in pixels.
    image_size: int = key(224, more_than(0))
    # At evaluation the shorter side is resized to image_size / crop_pct and the center is cropped.
    crop_pct: float = key(0.875, between(0, 1), more_than(0))
    # Mean and standard deviation of each RGB channel in [0, 1]; null takes those of the model.
    mean: list[float] | None = key(None, per_channel())
    std: list[float] | None = key(None, per_channel(), each_more_than(0))
    # Shares of the training images that are split off, class by class, where the data set has no val or no test
    # split. test_fraction=0: no test split then; results are those of validation, and labeled so.
    val_fraction: float = 0.1
    test_fraction: float = 0.1
    # Cross-validation: the training images, with a given val split, in so many parts, class by class; part `fold`
    # validates and the others train. A test split stays apart (test_fraction=0: there is none).
    folds: int | None = key(None, at_least(2))
    fold: int = key(0, at_least(0))
    # Images of one group, such as those of one patient, stay in one split. A regular expression that finds the group in
    # an image's name below `root` (its first group in parentheses, or the whole match); for data=csv, a column.
    group: str | None = key(None, verbatim=True)
    # false ignores a given test split, e.g. one without labels; data.test_fraction then decides whether one is split
    # off train.
    use_given_test: bool = True
    # Seed of that split alone, so that `seed` varies the training and not the data.
    split_seed: int = 0
    # White level of images with 16 bits a channel. declared: from the bit depth that the file declares (12 bits: 4095),
    # else 65535. range: each image's smallest..largest value becomes black..white; for 12-bit data in files that do
    # not declare it. Images of different exposure then look alike.
    sixteen_bit: str = key("declared", one_of("declared", "range"))
    # An image that cannot be decoded: raise stops the run; skip leaves it out, counts and lists it.
    on_bad_image: str = key("raise", RAISE_OR_SKIP)
    # Train even if the same image is in two splits, or if the splits' classes differ.
    allow_leakage: bool = False
    allow_class_mismatch: bool = False
    # Use at most this many images of each split, evenly over the classes; null uses all.
    limit: int | None = key(None, more_than(0))
    # Processes that read and decode; null: 0 when training on a CPU, else up to 8.
    workers: int | None = key(None, at_least(0))
    # What is kept of training images below ~/.cache from the first epoch on, for all runs: none; decoded, the pixels;
    # resized, the pixels of a smaller copy, whose shorter side is what the crops of `augment` need.
    cache: str = key("none", one_of("none", "decoded", "resized"))
    # Gigabytes that this cache may take, of all data sets together.
    cache_gb: float = key(20.0, more_than(0))

    def check(self, prefix: str) -> None:
        """Raise a UserError where there is no fold of this number."""
        if self.folds is None and self.fold:
            raise UserError(f"{prefix}fold={self.fold}: there are no folds. Set {prefix}folds=5, for example")
        if self.folds is not None and self.fold >= self.folds:
            raise UserError(
                f"{prefix}fold={self.fold}: with {prefix}folds={self.folds} it can be 0 to {self.folds - 1}"
            )


@dataclass
class Mnist5kConfig(DataConfig):
    """5,000 handwritten digits that come with the package; written to `root` once."""

    implementation: ClassVar[str] = "mlops_img.data.sources.mnist5k:Mnist5k"
    source: str = "mnist5k"
    root: str = key("data/mnist5k", path=True)


@dataclass
class FolderConfig(DataConfig):
    """One folder per class, either at `root` or below `root`/train, val and test."""

    implementation: ClassVar[str] = "mlops_img.data.sources.folder:Folder"
    source: str = "folder"


@dataclass
class CsvConfig(DataConfig):
    """A table with one row per image, as on Kaggle."""

    implementation: ClassVar[str] = "mlops_img.data.sources.csv_source:Csv"
    source: str = "csv"
    # The table: a path relative to `root`, an absolute one, or one below ~. Its first line names the columns.
    # It may be compressed (.gz, .bz2, .xz, .zip).
    table: str = key("labels.csv", path=True)
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
    on_missing_label: str = key("raise", RAISE_OR_SKIP)
    # Prefix and suffix of the names in the file column, e.g. "images/" and ".jpg". A backslash also separates
    # folders, if there is no file of the name as written.
    file_prefix: str = ""
    file_suffix: str = ""
    # Column that says train, val or test, in any letter case; null: the table has no splits.
    split_column: str | None = None

    def check(self, prefix: str) -> None:
        """Raise a UserError where label_column and label_columns are both given, or the columns repeat."""
        super().check(prefix)
        names = self.label_columns
        if names is None:
            return
        if self.label_column != CsvConfig.label_column:
            raise UserError(
                f"{prefix}label_column={self.label_column} and {prefix}label_columns={names}: "
                "set one of them, label_columns for one column of 0 and 1 per class"
            )
        if len(set(names)) < max(2, len(names)):
            raise UserError(f"{prefix}label_columns={names}: name at least two columns, each once")


@dataclass
class TorchvisionConfig(DataConfig):
    """Any classification data set of torchvision.datasets, by its class name."""

    implementation: ClassVar[str] = "mlops_img.data.sources.torchvision_datasets:Torchvision"
    source: str = "torchvision"
    root: str = key("data/torchvision", path=True)
    # E.g. CIFAR10, Flowers102, OxfordIIITPet, Food101.
    dataset: str = MISSING
    # Fetch what is missing under `root`.
    download: bool = True
    # Further keyword arguments of the data set's class, e.g. {split: byclass} for EMNIST.
    kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass
class CustomDataConfig(DataConfig):
    """A source of your own: `_target_` names a function that returns a mlops_img.data.sources.base.Table."""

    implementation: ClassVar[str] = "mlops_img.data.sources.custom:Custom"
    source: str = "custom"
    root: str = key("data", path=True)
    _target_: str = MISSING
    kwargs: dict[str, Any] = field(default_factory=dict)


# By the name of the source, `data.source`.
DATA_SOURCES: dict[str, type[DataConfig]] = {kind.source: kind for kind in DataConfig.__subclasses__()}
