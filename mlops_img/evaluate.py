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
        UserError: no such run, no checkpoint, other classes than it was trained on, or no such split.
    """
    from mlops_img.validation import check_choice

    check_choice("split", config.split, ("train", "val", "test"))

    from mlops_img.confidence import with_interval
    from mlops_img.report import write_report
    from mlops_img.training.evaluation import evaluate_splits, read_pixels, warn_of_few_images
    from mlops_img.training.finished import open_run

    run = open_run(config.run, data=config.data, train=config.train)
    images = run.dataset.split(config.split)
    result = evaluate_splits(run.folder, run.trained, run.evaluator(), run.dataset, [config.split])[config.split]
    report = write_report(run.folder.path, result, lambda row: read_pixels(images, row))
    warn_of_few_images(result)
    print(f"{config.split}.{'n':18}{result['n']}")
    print(f"{config.split}.{'origin':18}{run.dataset.origins[config.split].text(config.split)}")
    for name in SHOWN:
        interval = result["top1_interval"] if name == "top1" else None
        print(f"{config.split}.{name:18}{with_interval(result[name], interval)}")
    print(f"report: {report}")
    return float(result["top1"])


def main() -> None:
    """Run the command line."""
    command(evaluate, "evaluate")


if __name__ == "__main__":
    main()
