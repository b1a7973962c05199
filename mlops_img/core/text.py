"""Format tables and lists as text."""

from __future__ import annotations

from collections.abc import Collection, Sequence


def shortened_list(items: Sequence[str], most: int, *, separator: str = ", ") -> str:
    """Return the first items, at most `most`, and how many more there are: "a, b and 1,203 more"."""
    more = len(items) - most
    return separator.join(items[:most]) + (f" and {more:,} more" if more > 0 else "")


def valid_utf8(text: str) -> str:
    """Return text with escapes for what is not valid UTF-8 in the name of a file."""
    return text.encode(errors="backslashreplace").decode()


def text_table(rows: Sequence[Sequence[str]], *, left: Collection[int] = (0,)) -> str:
    """Return rows as lines for a terminal with aligned columns.

    Args:
        rows: the header first; all of the same length.
        left: indices of left-aligned columns; the others are right-aligned.
    """
    return "\n".join("  ".join(cells).rstrip() for cells in _padded(rows, left))


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Return rows, the header first, as a Markdown table with aligned columns."""
    header, *others = _padded(rows, range(len(rows[0])), least=3)
    lines = [header, ["-" * len(cell) for cell in header], *others]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _padded(rows: Sequence[Sequence[str]], left: Collection[int], *, least: int = 0) -> list[list[str]]:
    widths = [max(least, *map(len, column)) for column in zip(*rows, strict=True)]
    return [
        [
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        for row in rows
    ]
