"""What the types of the configuration cannot say: choices, ranges and what goes together."""

from __future__ import annotations

import re
from typing import Any

from mlops_img.config.data import SIXTEEN_BIT, CsvConfig, DataConfig
from mlops_img.config.export import BenchmarkConfig, ExportConfig
from mlops_img.config.train import Config
from mlops_img.errors import UserError, did_you_mean

CHOICES: dict[str, tuple[str, ...]] = {
    "data.on_bad_image": ("raise", "skip"),
    "augment.crop": ("random_resized", "pad", "none"),
    "augment.policy": ("none", "randaugment", "trivialaugment"),
    "schedule.name": ("cosine", "one_cycle", "step", "constant"),
    "loss.name": ("cross_entropy", "bce"),
    "train.precision": ("auto", "fp32", "bf16", "fp16"),
    "train.select": ("best", "last"),
    "tracking.name": ("none", "wandb"),
    "tracking.mode": ("auto", "online", "offline"),
    "optimized_metric": ("val.top1", "val.top5", "val.f1_macro", "val.loss"),
}

# Key: the least value, and whether that value itself is allowed.
LEAST: dict[str, tuple[float, bool]] = {
    "seed": (0, True),
    "data.image_size": (0, False),
    "data.limit": (0, False),
    "data.workers": (0, True),
    "augment.padding": (0, True),
    "augment.randaugment_ops": (0, True),
    "augment.mixup": (0, True),
    "augment.cutmix": (0, True),
    "augment.color_jitter": (0, True),
    "optim.lr": (0, False),
    "optim.weight_decay": (0, True),
    "optim.layer_decay": (0, False),
    "train.epochs": (0, False),
    "train.max_steps": (0, False),
    "train.batch_size": (0, False),
    "train.eval_batch_size": (0, False),
    "train.accumulate": (0, False),
    "train.grad_clip": (0, False),
    "train.checkpoint_every_steps": (0, True),
    "train.keep_checkpoints": (0, False),
    "train.log_every_steps": (0, True),
    "train.early_stopping_patience": (0, False),
    "train.profile_steps": (0, True),
}

PROBABILITIES = (
    "data.crop_pct",
    "model.drop_rate",
    "model.drop_path_rate",
    "augment.hflip",
    "augment.vflip",
    "augment.random_erasing",
    "augment.mix_prob",
    "loss.label_smoothing",
    "schedule.final_fraction",
    "train.ema_decay",
)


def validate(config: Config) -> None:
    """Check the whole configuration.

    Raises:
        UserError: the first key that cannot be; says what it may be.
    """
    for key, valid in CHOICES.items():
        check_choice(key, _value(config, key), valid)
    for key, (least, included) in LEAST.items():
        value = _value(config, key)
        if value is not None and not (value >= least if included else value > least):
            raise UserError(f"{key}={value}: it must be {'at least' if included else 'more than'} {least}")
    for key in PROBABILITIES:
        value = _value(config, key)
        if value is not None and not 0 <= value <= 1:
            raise UserError(f"{key}={value}: it must lie between 0 and 1")
    validate_data(config.data)
    if not 0 <= config.augment.randaugment_magnitude <= 30:
        raise UserError(f"augment.randaugment_magnitude={config.augment.randaugment_magnitude}: it must lie in 0..30")
    if config.augment.hue_jitter > 0.5:
        raise UserError(f"augment.hue_jitter={config.augment.hue_jitter}: it must be at most 0.5")
    for key in ("augment.scale", "augment.ratio", "augment.zoom"):
        value = _value(config, key)
        if len(value) != 2 or not 0 < value[0] <= value[1]:
            raise UserError(f"{key}={value}: it takes two numbers above 0, the smaller first, e.g. [0.5, 1.0]")


def validate_data(config: DataConfig) -> None:
    """Check the group `data`.

    Raises:
        UserError: the first key that cannot be; says what it may be.
    """
    check_choice("data.sixteen_bit", config.sixteen_bit, SIXTEEN_BIT)
    if config.crop_pct <= 0:
        raise UserError(f"data.crop_pct={config.crop_pct}: it must be more than 0")
    for key in ("mean", "std"):
        value = getattr(config, key)
        if value is not None and len(value) != 3:
            raise UserError(f"data.{key}={value}: it takes one number for each of red, green and blue")
    if config.std is not None and min(config.std) <= 0:
        raise UserError(f"data.std={config.std}: each must be more than 0")
    if isinstance(config, CsvConfig):
        _validate_csv(config)


def _validate_csv(config: CsvConfig) -> None:
    check_choice("data.on_missing_label", config.on_missing_label, ("raise", "skip"))
    names = config.label_columns
    if names is None:
        return
    if config.label_column != CsvConfig.label_column:
        raise UserError(
            f"data.label_column={config.label_column} and data.label_columns={names}: "
            "set one of them, label_columns for one column of 0 and 1 per class"
        )
    if len(set(names)) < max(2, len(names)):
        raise UserError(f"data.label_columns={names}: name at least two columns, each once")


def check_choice(key: str, value: str, valid: tuple[str, ...]) -> None:
    """Raise a UserError that names the nearest choice if `value` is none of them."""
    if value not in valid:
        raise UserError(f"{key}={value}: it can be {', '.join(valid)}.{did_you_mean(value, valid)}")


def _value(config: Config | ExportConfig, key: str) -> Any:
    value: Any = config
    for name in key.split("."):
        value = getattr(value, name)
    return value


def validate_export(config: ExportConfig) -> None:
    """Check the configuration of an export.

    Raises:
        UserError: the first key that cannot be; says what it may be.
    """
    check_choice("quantize.name", config.quantize.name, ("auto", "none", "bf16", "dynamic", "static"))
    check_choice("prune.name", config.prune.name, ("none", "channels"))
    for key, least in (
        ("quantize.calibration_images", 1),
        ("export.max_accuracy_drop", 0),
        ("export.max_batch", 2),
        ("export.drift_sample", 1),
        ("export.samples", 0),
    ):
        value = _value(config, key)
        if value < least:
            raise UserError(f"{key}={value}: it must be at least {least}")
    if config.name is not None and not re.fullmatch(r"[A-Za-z0-9][\w.-]*", config.name):
        raise UserError(f"name={config.name}: it names a folder; use letters, digits, '.', '_' and '-'")


def validate_benchmark(config: BenchmarkConfig) -> None:
    """Check the configuration of a benchmark.

    Raises:
        UserError: the first key that cannot be; says what it may be.
    """
    if not config.batches or min(config.batches) < 1:
        raise UserError(f"batches={config.batches}: name at least one number of images, each at least 1")
    if config.seconds <= 0 or config.rounds < 1:
        raise UserError(f"seconds={config.seconds} and rounds={config.rounds} must be more than 0")
