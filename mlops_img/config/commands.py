"""Every key of the small commands: evaluate, soup, audit, store, benchmark."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from mlops_img.config.augment import AugmentConfig
from mlops_img.config.data import DataConfig, EvaluateDataConfig
from mlops_img.config.rules import between, each_more_than, key, more_than, not_empty, one_from, one_of
from mlops_img.config.train import PRECISION


@dataclass
class EvaluateTrainConfig:
    """Keys that may differ from the training's `train`; null: as in the training."""

    device: str | None = None
    precision: str | None = key(None, PRECISION)
    eval_batch_size: int | None = key(None, more_than(0))


@dataclass
class EvaluateConfig:
    """The configuration of `python -m mlops_img.evaluate`."""

    # The run folder whose best checkpoint is evaluated.
    run: str = key("runs/latest", path=True)
    # train, val or test. Other data without splits are evaluated as a whole.
    split: str = key("test", one_of("train", "val", "test"))
    # Other images than the run's own: data.root=... alone reads them as the run's data were read; data=folder,
    # csv, custom and so on, with the keys that they have in training, reads them in that way.
    data: EvaluateDataConfig = field(default_factory=EvaluateDataConfig)
    # Options of the group `data` may set it; evaluation does not use it.
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    train: EvaluateTrainConfig = field(default_factory=EvaluateTrainConfig)
    # Test-time augmentation, whose figures are shown beside those without: none, flip (each image and its mirror
    # image), flip+shift (those, also moved by 1/32 of the side each way).
    tta: str = key("none", one_from("mlops_img.preprocessing.views:VIEWS"))
    # Share of the images that get it, the least certain ones.
    tta_share: float = key(1.0, more_than(0), between(0, 1))
    # Modules to import besides those of the run, which register metrics of your own (docs/extending.md).
    plugins: list[str] = field(default_factory=list)


@dataclass
class AuditConfig:
    """The configuration of `python -m mlops_img.audit`."""

    data: DataConfig = MISSING
    # Options of the group `data` may set it; the audit does not use it.
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    # Two images are near duplicates when at most this many of the 64 bits of their hashes differ: 3 finds close
    # copies, 6 looser ones.
    near_duplicate_bits: int = key(6, between(0, 8))
    # Where the findings are written as JSON; null: <root>.audit.json beside the root, or here if that is read-only.
    output: str | None = key(None, path=True)


@dataclass
class SoupConfig:
    """The configuration of `python -m mlops_img.soup`."""

    # The folder of a multirun, or a list of run folders.
    runs: Any = MISSING
    # The new run folder; null: <runs_dir>/soup-<time>.
    output: str | None = key(None, path=True)
    runs_dir: str = key("runs", path=True)
    # Training images from which the statistics of batch norm are estimated for each average.
    images: int = key(2048, more_than(0))
    train: EvaluateTrainConfig = field(default_factory=EvaluateTrainConfig)


@dataclass
class StoreConfig:
    """The configuration of `python -m mlops_img.store`."""

    # The folder of the bundle.
    bundle: str = key("bundles/latest", path=True)


@dataclass
class BenchmarkConfig:
    """The configuration of `python -m mlops_img.benchmark`."""

    bundle: str = key("bundles/latest", path=True)
    # Images per call.
    batches: list[int] = key([1, 8, 16, 32], not_empty("number of images"), each_more_than(0))
    # For each program and batch size, in so many turns.
    seconds: float = key(6.0, more_than(0))
    rounds: int = key(3, more_than(0))
    device: str = "auto"
    # Where the figures go, without ending; null: beside the bundle.
    output: str | None = key(None, path=True)
