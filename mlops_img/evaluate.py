"""Evaluate a run's best weights on a split: `python -m mlops_img.evaluate run=runs/latest split=test`.

Writes evaluation/<split>.json and report/index.html into the run folder and prints the figures.
"""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

from mlops_img.cli import command
from mlops_img.config import EvaluateConfig
from mlops_img.errors import UserError

log = logging.getLogger(__name__)

SHOWN = (
    "loss",
    "top1",
    "top5",
    "precision_macro",
    "recall_macro",
    "f1_macro",
    "ece",
    "ece_calibrated",
    "temperature",
)


def evaluate(config: EvaluateConfig) -> float:
    """Evaluate as configured and return top-1.

    Raises:
        UserError: no such run, no checkpoint, other classes than it was trained on, or an unknown split.
    """
    from mlops_img.validation import check_choice, validate

    check_choice("split", config.split, ("train", "val", "test"))
    folder = Path(config.run)
    if not (folder / "config.yaml").is_file():
        raise UserError(f"run={config.run}: there is no run. Name a run folder, e.g. run=runs/latest")

    from mlops_img.data.checks import load_dataset
    from mlops_img.data.loader import default_workers
    from mlops_img.report import write_report
    from mlops_img.run_folder import RunFolder, load_config
    from mlops_img.training.evaluation import Evaluator, evaluate_splits, load_trained, read_pixels
    from mlops_img.training.precision import choose_device, choose_precision, set_tf32

    run = RunFolder(folder.resolve())
    settings = load_config(run.config)
    for part, given in ((settings.data, config.data), (settings.train, config.train)):
        for name, value in dataclasses.asdict(given).items():
            if value is not None:
                setattr(part, name, value)
    validate(settings)
    data, train = settings.data, settings.train
    device = choose_device(train.device)
    precision = choose_precision(train.precision, device)
    set_tf32(train.tf32)
    trained = load_trained(run.checkpoints / "best.pt", precision)
    dataset = load_dataset(data)
    if dataset.classes != trained.classes:
        raise UserError(
            f"data.root={data.root} has other classes than {folder} was trained on. Name that data with data.root=..."
        )
    if dataset.fingerprint != trained.fingerprint:
        log.warning(
            "%s has changed since the training: images that were trained on may lie in %s now", data.root, config.split
        )
    evaluator = Evaluator(
        trained.preprocessing,
        precision,
        train.eval_batch_size or 2 * train.batch_size,
        default_workers(device) if data.workers is None else data.workers,
        skip_bad=data.on_bad_image == "skip",
    )
    result = evaluate_splits(run, trained, evaluator, dataset, [config.split])[config.split]
    images = dataset.split(config.split)
    report = write_report(run.path, result, lambda row: read_pixels(images, row))
    print(f"{config.split}.{'n':18}{result['n']}")
    for name in SHOWN:
        print(f"{config.split}.{name:18}{result[name]:.4f}")
    print(f"report: {report}")
    return float(result["top1"])


def main() -> None:
    """Run the command line."""
    command(evaluate, "evaluate")


if __name__ == "__main__":
    main()
