"""The summary of an output: rows, errors by reason and predicted classes, counted in its parts."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from mlops_img.core.text import shortened_list
from mlops_img.prediction.output import PartFiles

NAMED_CLASSES = 10
NAMED_ERRORS = 5


@dataclass
class Summary:
    """Counts of the rows of the parts that are there."""

    rows: int = 0
    classes: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)  # the first image of each error

    def add(self, paths: list[str], labels: list[str | None], errors: list[str | None]) -> None:
        """Count the rows of a part."""
        self.rows += len(paths)
        self.classes.update(label for label in labels if label is not None)
        for path, error in zip(paths, errors, strict=True):
            if error is not None:
                self.errors[error] += 1
                self.examples.setdefault(error, path)

    def lines(self) -> list[str]:
        """Return the summary as lines of text."""
        unread = self.errors.total()
        lines = [f"rows: {self.rows:,}, {self.rows - unread:,} with a prediction and {unread:,} with an error"]
        if unread:
            found = [f"{reason} ({count:,}, e.g. {self.examples[reason]})" for reason, count in _most(self.errors)]
            lines.append(f"errors: {shortened_list(found, NAMED_ERRORS, separator='; ')}")
            lines.append(
                "An image that cannot be read or predicted has its reason in the column error; the exit code is 0."
            )
        if self.classes:
            counts = [f"{label} {count:,}" for label, count in _most(self.classes)]
            lines.append(f"predicted classes: {shortened_list(counts, NAMED_CLASSES)}")
        return lines


def summarize(files: PartFiles) -> Summary:
    """Count the rows of all parts that are there.

    Raises:
        UserError: a part cannot be read.
    """
    summary = Summary()
    for part in files.present():
        columns = files.read(part, ["path", "label_1", "error"])
        summary.add(columns["path"], columns["label_1"], columns["error"])
    return summary


def _most(counts: Counter[str]) -> list[tuple[str, int]]:
    """Return the counts, the largest first, equal ones in the order of their names."""
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))
