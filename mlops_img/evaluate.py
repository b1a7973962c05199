"""Evaluate a run's best weights on a split: `python -m mlops_img.evaluate run=runs/latest split=test`.

Writes evaluation/<split>.json and report/index.html into the run folder and prints the figures.
"""

from __future__ import annotations

from mlops_img.cli import command
from mlops_img.config import EvaluateConfig

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
    from mlops_img.validation import check_choice

    check_choice("split", config.split, ("train", "val", "test"))

    from mlops_img.report import write_report
    from mlops_img.training.evaluation import evaluate_splits, read_pixels
    from mlops_img.training.finished import open_run

    run = open_run(config.run, data=config.data, train=config.train)
    result = evaluate_splits(run.folder, run.trained, run.evaluator(), run.dataset, [config.split])[config.split]
    images = run.dataset.split(config.split)
    report = write_report(run.folder.path, result, lambda row: read_pixels(images, row, run.trained.preprocessing))
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
