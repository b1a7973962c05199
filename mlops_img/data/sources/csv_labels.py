"""Clean the labels of a table, decode one-hot columns and sort the classes."""

from __future__ import annotations

import logging
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from decimal import Decimal
from pathlib import Path

import numpy as np

from mlops_img.core.text import shortened_list
from mlops_img.data.sources.csv_reader import CsvRows
from mlops_img.errors import UserError

NUMBER = re.compile(r"[-+]?[0-9]+(\.[0-9]+)?")
WHOLE_AS_FLOAT = re.compile(r"[-+]?[0-9]+\.0+")
NAMED_LABELS = 3

log = logging.getLogger(__name__)


def clean_labels(labels: Sequence[str], rows: CsvRows) -> list[str]:
    """Return the labels without surrounding blanks; log changes and possible mistakes.

    If all labels are numbers and some are written as 1 and others as 1.0, all are written as 1, because many programs
    convert a column of integers with missing values to floats.

    Args:
        labels: the labels in the table; empty labels stay empty.
        rows: the table, for errors and the log.

    Raises:
        UserError: a label contains a line break.
    """
    stripped = [label.strip() for label in labels]
    for line, label in zip(rows.lines, stripped, strict=True):
        if "\n" in label or "\r" in label:
            reason = f"there is a line break in the label {label!r:.40}"
            raise UserError(f"{rows.path}, line {line}: {reason}. Check its double quotes")
    padded = Counter(label for label in labels if label.strip() and label != label.strip())
    if padded:
        log.warning("%s: blanks around labels are ignored: %s", rows.path, _counts(padded))
    whole = _whole_numbers(stripped, rows.path)
    _warn_of_similar(Counter(filter(None, whole)), rows.path)
    return whole


def _whole_numbers(labels: list[str], path: Path) -> list[str]:
    counts = Counter(filter(None, labels))
    floats = Counter({label: count for label, count in counts.items() if WHOLE_AS_FLOAT.fullmatch(label)})
    if not floats or len(floats) == len(counts) or not all(map(NUMBER.fullmatch, counts)):
        return labels
    log.warning("%s: labels are read as integers, 1.0 as 1: %s", path, _counts(floats))
    return [label.split(".")[0] if label in floats else label for label in labels]


def sorted_classes(labels: Iterable[str]) -> list[str]:
    """Return the distinct labels, sorted as numbers if all are numbers, else as text."""
    names = set(labels)
    if all(map(NUMBER.fullmatch, names)):
        return sorted(names, key=lambda name: (Decimal(name), name))
    return sorted(names)


def one_hot_labels(rows: CsvRows, names: Sequence[str]) -> list[str]:
    """Return for each row the name of the column that contains 1; empty if there is none.

    Raises:
        UserError: a column is missing or contains other values than 0 and 1, or a row has several ones.
    """
    columns = [rows.column(name, "label_columns") for name in names]
    flags = np.array([_flags(column) for column in columns], np.int8)  # (columns, rows)
    if (flags < 0).any():
        row, column = np.argwhere(flags.T < 0)[0].tolist()
        raise UserError(
            f"{rows.path}, line {rows.lines[row]}: column {names[column]!r} contains {columns[column][row]!r}. "
            "The columns of data.label_columns must contain 0 and 1"
        )
    several = np.flatnonzero(flags.sum(axis=0, dtype=np.int64) > 1).tolist()
    if several:
        marked = " and ".join(names[column] for column in np.flatnonzero(flags[:, several[0]]).tolist())
        raise UserError(
            f"{rows.path}, line {rows.lines[several[0]]}: there is a 1 for {marked} ({len(several)} such "
            f"row{'s' * (len(several) != 1)}). Keep one label per image: several are not supported"
        )
    column_of = np.where(flags.any(axis=0), flags.argmax(axis=0), -1).tolist()
    return [names[column] if column >= 0 else "" for column in column_of]


def one_hot_hint(rows: CsvRows, others: Sequence[str | None]) -> str:
    """Suggest data.label_columns if all columns except these contain only 0 and 1; else return an empty string."""
    names = [name for name in rows.columns if name not in others]
    numbers = [number for number, name in enumerate(rows.columns) if name not in others]
    if len(names) < 2 or any(min(_flags([row[number] for row in rows.cells])) < 0 for number in numbers):
        return ""
    listed = ",".join(names[:NAMED_LABELS] + ["..."] * (len(names) > NAMED_LABELS))
    return f" Its other columns contain 0 and 1. With one column per class, set data.label_columns=[{listed}]; else set"


def _flags(cells: list[str]) -> list[int]:
    """Return 1 or 0 for each cell, and -1 for other values."""
    known = {cell: _flag(cell.strip().lower()) for cell in set(cells)}
    return [known[cell] for cell in cells]


def _flag(text: str) -> int:
    if text in ("", "false"):
        return 0
    if text == "true":
        return 1
    return int(Decimal(text)) if NUMBER.fullmatch(text) and Decimal(text) in (0, 1) else -1


def _warn_of_similar(counts: Counter[str], path: Path) -> None:
    """Log labels that differ only in letter case, inner blanks or the encoding of accents."""
    groups: dict[str, Counter[str]] = {}
    for label, count in counts.items():
        key = " ".join(unicodedata.normalize("NFC", label).casefold().split())
        groups.setdefault(key, Counter())[label] = count
    similar = [group for group in groups.values() if len(group) > 1]
    if similar:
        more = f" (and {len(similar) - 1} more such groups)" if len(similar) > 1 else ""
        log.warning(
            "%s: these labels differ only in letter case or blanks and are different classes: %s%s. "
            "If they are the same class, make them equal",
            path,
            _counts(similar[0]),
            more,
        )


def _counts(counts: Counter[str]) -> str:
    return shortened_list([f"{label!r} ({count})" for label, count in counts.most_common()], NAMED_LABELS)
