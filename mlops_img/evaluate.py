"""Evaluate a run's best weights on a split: `python -m mlops_img.evaluate run=runs/latest split=test`.

Writes evaluation/<split>.json and report/index.html into the run folder and prints the figures.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from mlops_img.cli import command
from mlops_img.config import EvaluateConfig
from mlops_img.errors import UserError

SHOWN = (
    "n",
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
        UserError: no such run, no checkpoint, other data than it was trained on, or an unknown split.
    """
    from mlops_img.validation import check_choice

    check_choice("split", config.split, ("train", "val", "test"))
    folder = Path(config.run)
    if not (folder / "config.yaml").is_file():
        raise UserError(f"run={config.run}: there is no run. Name a run folder, e.g. run=runs/latest")

    from mlops_img.data.checks import load_dataset
    from mlops_img.data.loader import default_workers
    from mlops_img.report import write_report
    from mlops_img.run_folder import RunFolder, load_config
    from mlops_img.training.evaluation import Evaluator, evaluate_split, load_trained, read_pixels
    from mlops_img.training.precision import choose_device, choose_precision

    run = RunFolder(folder.resolve())
    data = load_config(run.config).data
    if config.data_root is not None:
        data = dataclasses.replace(data, root=config.data_root)
    device = choose_device(config.device)
    trained = load_trained(run.checkpoints / "best.pt", choose_precision(config.precision, device))
    dataset = load_dataset(data)
    if dataset.classes != trained.classes:
        raise UserError(
            f"data.root={data.root} has other classes than {folder} was trained on. Name that data with data_root=..."
        )
    workers = default_workers(device) if config.workers is None else config.workers
    evaluator = Evaluator(
        trained.preprocessing,
        choose_precision(config.precision, device),
        config.batch_size,
        workers,
        skip_bad=data.on_bad_image == "skip",
    )
    images = dataset.split(config.split)
    result = evaluate_split(run, trained, evaluator, config.split, images, dataset.val)
    report = write_report(run.path, result, lambda row: read_pixels(images, row))
    for name in SHOWN:
        print(
            f"{config.split}.{name:18}{result[name]:.4f}" if name != "n" else f"{config.split}.{name:18}{result[name]}"
        )
    print(f"report: {report}")
    return float(result["top1"])


def main() -> None:
    """Run the command line."""
    command(evaluate, "evaluate")


if __name__ == "__main__":
    main()
