"""Cross-validation: the folds of a multirun, `-m data.folds=5 'data.fold=range(5)'`, put together."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from mlops_img.core.files import write_atomically

FOLD = re.compile(r"\+{0,2}data\.fold=")
PREDICTIONS = Path("evaluation", "val_predictions.csv")


@dataclass(frozen=True)
class CrossValidation:
    """Finished jobs of a multirun that differ in their fold alone.

    Attributes:
        settings: the overrides that set them apart from other jobs with folds, as text.
        jobs: their rows of the ranking.
    """

    settings: str
    jobs: list[dict[str, Any]]

    def describe(self) -> str:
        """Return mean and standard deviation of the metric, and of test top-1, over the folds."""
        named = f"{len(self.jobs)} folds{f' of {self.settings}' if self.settings else ''}"
        parts = [_spread(self.jobs[0]["metric"], [job["value"] for job in self.jobs])]
        test = [job["test.top1"] for job in self.jobs if job["test.top1"] is not None]
        if len(test) == len(self.jobs):
            parts.append(_spread("test.top1", test))
        return f"{named}: {'; '.join(parts)}"


def cross_validations(rows: Sequence[dict[str, Any]]) -> list[CrossValidation]:
    """Return the cross-validations among the ranked jobs of a multirun, those with two finished folds or more."""
    by_settings: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in rows:
        overrides = row["overrides"].split(" ")
        if row["status"] == "ok" and any(map(FOLD.match, overrides)):
            settings = tuple(override for override in overrides if not FOLD.match(override))
            by_settings.setdefault(settings, []).append(row)
    shared = set.intersection(*map(set, by_settings)) if by_settings else set()
    return [
        CrossValidation(" ".join(override for override in settings if override not in shared), jobs)
        for settings, jobs in by_settings.items()
        if len(jobs) > 1
    ]


def summarize_folds(folder: Path, rows: Sequence[dict[str, Any]]) -> list[str]:
    """Write the out-of-fold predictions of each cross-validation in a multirun, with their confusion matrix.

    They are `out_of_fold.csv` and `out_of_fold.png` in the multirun's folder, with a number from the second
    cross-validation on.

    Returns:
        A line for each: mean and standard deviation over the folds, and the accuracy of all predictions together.
    """
    lines = []
    for number, found in enumerate(cross_validations(rows), start=1):
        lines.append(found.describe())
        tables = [folder / job["job"] / PREDICTIONS for job in found.jobs]
        if all(table.is_file() for table in tables):
            lines.append(_put_together(folder / f"out_of_fold{'' if number == 1 else f'-{number}'}.csv", tables))
    return lines


def _put_together(path: Path, tables: Sequence[Path]) -> str:
    """Write the rows of all tables into one, and its confusion matrix beside it; returns what it says."""
    from mlops_img.evaluation.confidence import top1_interval, with_interval
    from mlops_img.evaluation.confusion import count_confusion, store_confusion
    from mlops_img.evaluation.per_image import COLUMNS
    from mlops_img.reporting.figures import confusion_figure
    from mlops_img.reporting.style import png_bytes

    texts = [table.read_text(encoding="utf-8").splitlines(keepends=True) for table in tables]
    lines = [texts[0][0], *(line for text in texts for line in text[1:])]
    write_atomically(path, lambda file: file.write("".join(lines).encode()))
    head, *rows = csv.reader(lines)
    classes = head[len(COLUMNS) :]
    index = {name: number for number, name in enumerate(classes)}
    labels, predicted = ([index[row[COLUMNS.index(name)]] for row in rows] for name in ("label", "predicted"))
    confusion = store_confusion(count_confusion(labels, predicted, len(classes)))
    figure = png_bytes(confusion_figure(confusion, classes))
    write_atomically(path.with_suffix(".png"), lambda file: file.write(figure))
    top1 = sum(label == guess for label, guess in zip(labels, predicted, strict=True)) / len(rows)
    reached = with_interval(top1, top1_interval(top1, len(rows)))
    return f"out of fold: top-1 {reached} on {len(rows):,} images: {path}"


def _spread(name: str, values: Sequence[float]) -> str:
    return f"{name} mean {mean(values):.4f}, sd {stdev(values):.4f}"
