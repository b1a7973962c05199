"""File formats of the parts; a further one is an entry of `FORMATS`."""

from __future__ import annotations

import csv
import importlib.util
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from mlops_img.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

# The values of each column by its name: str, int, float or None.
Columns = Mapping[str, Sequence[Any]]
EXTRA = 'pip install "mlops_img[predict]"'


class Format(NamedTuple):
    """How parts are written and read; a part's file ends in the name of its format.

    Attributes:
        write: writes columns of equal length.
        read: returns the columns of these names; raises OSError or ValueError where the file is damaged.
        package: that both need; None: the standard library.
    """

    write: Callable[[IO[bytes], Columns], None]
    read: Callable[[Path, Sequence[str]], dict[str, list[Any]]]
    package: str | None = None


def _write_csv(file: IO[bytes], columns: Columns) -> None:
    """Write UTF-8 with a header; None is an empty cell, and a float is the shortest text that reads back equal."""
    text = io.TextIOWrapper(file, encoding="utf-8", newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    text.detach()  # flushes, and leaves the file open


def _read_csv(path: Path, names: Sequence[str]) -> dict[str, list[Any]]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = csv.reader(file, strict=True)
            header = next(rows, [])
            places = [header.index(name) for name in names]
            cells = [[row[place] or None for place in places] for row in rows]
    except (csv.Error, IndexError) as error:
        raise ValueError(f"a row is cut off ({error})") from None
    return {name: [row[number] for row in cells] for number, name in enumerate(names)}


def _write_parquet(file: IO[bytes], columns: Columns) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([(name, _parquet_type(name)) for name in columns])
    pq.write_table(pa.table(dict(columns), schema=schema), file)


def _read_parquet(path: Path, names: Sequence[str]) -> dict[str, list[Any]]:
    import pyarrow.parquet as pq

    with path.open("rb") as file:
        columns: dict[str, list[Any]] = pq.read_table(file, columns=list(names)).to_pydict()
    return columns


def _parquet_type(column: str) -> pa.DataType:
    # By the name, because a part without a prediction or an error has nothing to infer the type from.
    import pyarrow as pa

    if column == "row":
        return pa.int64()
    return pa.float32() if column.startswith("probability_") else pa.string()


FORMATS: dict[str, Format] = {
    "parquet": Format(_write_parquet, _read_parquet, "pyarrow"),
    "csv": Format(_write_csv, _read_csv),
}


def is_installed(name: str) -> bool:
    """Return whether the package that a format needs can be imported."""
    package = FORMATS[name].package
    return package is None or importlib.util.find_spec(package) is not None


def choose_format(wanted: str, begun: str | None) -> str:
    """Return the name of the format of the parts.

    Args:
        wanted: the configuration's; auto is that of the output, and of a new output parquet where it can be written.
        begun: that of the output; None for a new one.

    Raises:
        UserError: the package of the format is not installed.
    """
    name = wanted if wanted != "auto" else begun or ("parquet" if is_installed("parquet") else "csv")
    if not is_installed(name):
        where = "" if wanted == name else ", the format of the output"
        raise UserError(
            f"format={name}{where}: {FORMATS[name].package} is not installed. Install it with: {EXTRA}"
            + (", or set format=csv" if begun is None else "")
        )
    return name
