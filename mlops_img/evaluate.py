"""Evaluate a run's best weights: `python -m mlops_img.evaluate run=runs/latest split=test`.

Writes evaluation/<split>.json and report/index.html into the run folder and prints the metrics. Results that differ
from those of the training (another precision, changed data) are written to a subfolder of evaluation/ instead.

With data.root=... (read like the data of the run), or data=folder|csv|custom data.root=..., it evaluates another data
set: one split, or all images if there are no splits. Some classes of the run may be missing in it. The result and its
report are written to evaluation/<name>-<fingerprint>/. Probabilities are calibrated with the temperature of the run.
"""

from __future__ import annotations

from typing import Any

from hydra.core.hydra_config import HydraConfig

from mlops_img.cli import command
from mlops_img.config.commands import EvaluateConfig
from mlops_img.config.data import DataConfig, EvaluateDataConfig
from mlops_img.errors import UserError

# Printed in addition to all metrics.
PRINTED = ("precision_macro", "recall_macro", "ece", "ece_calibrated", "temperature")
# Keys of the group `data` that an evaluation does not use: the preprocessing is that of the training, and another data
# set is not split.
UNUSED_KEYS = frozenset(
    f"data.{name}"
    for name in (
        "image_size",
        "crop_pct",
        "mean",
        "std",
        "val_fraction",
        "test_fraction",
        "split_seed",
        "sixteen_bit",
        "allow_leakage",
        "allow_class_mismatch",
        "limit",
        "cache",
        "cache_gb",
    )
)


def evaluate(config: EvaluateConfig) -> float:
    """Evaluate a run as configured and return top-1.

    Raises:
        UserError: The run, its checkpoint or the split is missing, or the data contain classes unknown to the run.
    """
    _reject_unused_keys(config.data)

    from mlops_img.evaluation.external import evaluate_external, open_external
    from mlops_img.evaluation.splits import evaluate_splits, read_pixels, warn_of_few_images
    from mlops_img.evaluation.trained import open_trained
    from mlops_img.evaluation.tta import ViewAveraging
    from mlops_img.reporting.results import result_subfolder, write_result

    overrides = EvaluateDataConfig(on_bad_image=config.data.on_bad_image, workers=config.data.workers)
    run = open_trained(config.run, data=overrides, train=config.train)
    external = open_external(run, config.data, config.split)
    views = ViewAveraging(config.tta, config.tta_share) if config.tta != "none" else None
    subfolder: str | None  # below evaluation/ in the run folder
    if external is not None:
        result, images, subfolder = evaluate_external(run, external, views), external.images, external.name
        origin = f"data set {external.root}"
    else:
        run.config.data.root = config.data.root or run.config.data.root
        own = run.with_data()
        images = own.dataset.split(config.split)
        result = evaluate_splits(None, own.trained, own.evaluator(), own.dataset, [config.split], views)[config.split]
        subfolder, origin = result_subfolder(own, result), own.dataset.origins[config.split].text(config.split)
    path, report = write_result(
        run.folder, result, lambda row: read_pixels(images, row, run.trained.preprocessing), subfolder
    )
    warn_of_few_images(result)
    _print_result(config.split, result, origin)
    print(f"result: {path}")
    print(f"report: {report}")
    return float(result["top1"])


def _print_result(split: str, result: dict[str, Any], origin: str) -> None:
    """Print the number of images, where they are from, and all metrics."""
    from mlops_img.evaluation.confidence import with_interval
    from mlops_img.evaluation.metrics import METRICS

    print(f"{split}.{'n':18}{result['n']}")
    print(f"{split}.{'origin':18}{origin}")
    for name in (*METRICS, *PRINTED):
        interval = result["top1_interval"] if name == "top1" else None
        print(f"{split}.{name:18}{with_interval(result[name], interval)}")
    if "tta" in result:
        for name in METRICS:
            interval = result["tta"]["top1_interval"] if name == "top1" else None
            print(f"{split}.{f'tta.{name}':18}{with_interval(result['tta'][name], interval)}")


def _reject_unused_keys(data: EvaluateDataConfig) -> None:
    """Raise a UserError for a key on the command line that has no effect."""
    if not isinstance(data, DataConfig) or not HydraConfig.initialized():
        return
    for override in HydraConfig.get().overrides.task:
        key = override.split("=")[0].lstrip("+~")
        if key in UNUSED_KEYS:
            raise UserError(f"{key} has no effect: evaluation uses the preprocessing of the training. Remove the key")


def main() -> None:
    """Run the command line."""
    command(evaluate, "evaluate")


if __name__ == "__main__":
    main()
