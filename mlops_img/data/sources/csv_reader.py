"""Read CSV files with any common separator, encoding and compression, and the line number of each row."""

from __future__ import annotations

import bz2
import codecs
import csv
import gzip
import io
import lzma
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from mlops_img.errors import UserError, did_you_mean

SEPARATORS = (",", ";", "\t", "|")
# Names for command lines, because these characters have a meaning for the shell or Hydra.
SEPARATOR_NAMES = {"comma": ",", "semicolon": ";", "tab": "\t", "\\t": "\t", "pipe": "|", "space": " "}
# UTF-32 first, because its byte-order mark starts with that of UTF-16.
BYTE_ORDER_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
    codecs.BOM_UTF8: "utf-8",
}
# First bytes of files that are not CSV.
OTHER_FORMATS = {
    b"PK\x03\x04": "an Excel workbook or a zip archive",
    b"\xd0\xcf\x11\xe0": "an Excel workbook",
    b"PAR1": "a Parquet file",
}
# Appended to the text to detect an unclosed quote, which `csv.reader` does not report.
END = "\0"


@dataclass(frozen=True)
class CsvRows:
    """The rows of a CSV file.

    Attributes:
        path: the file.
        columns: the names in the header without surrounding blanks, with line breaks replaced by blanks.
        cells: the cells of each row, as many as there are columns.
        lines: the number, from 1, of the first line of each row in the file.
    """

    path: Path
    columns: list[str]
    cells: list[list[str]]
    lines: list[int]

    def column(self, name: str, key: str, hint: str = "") -> list[str]:
        """Return the cells of a column.

        Args:
            name: name of the column.
            key: the configuration key of the name, for the error message.
            hint: replaces the suggested fix of the error message.

        Raises:
            UserError: there is no such column, or more than one.
        """
        name = _name(name)
        if name not in self.columns:
            raise UserError(
                f"{self.path} has no column {name!r}; it has {', '.join(self.columns)}."
                f"{hint or did_you_mean(name, self.columns) + ' Set'} data.{key}=..."
            )
        if self.columns.count(name) > 1:
            raise UserError(f"{self.path} has {self.columns.count(name)} columns named {name!r}. Rename all but one")
        number = self.columns.index(name)
        return [row[number] for row in self.cells]


def read_csv(
    path: Path,
    wanted: Sequence[str],
    separator: str | None = None,
    encoding: str | None = None,
    *,
    least_columns: int = 2,
) -> CsvRows:
    """Read a CSV file, compressed or not.

    Blank lines are skipped, and empty fields beyond those of the header are removed.

    Args:
        path: the file; .gz, .bz2, .xz and .zip are decompressed.
        wanted: names of columns, used to detect the separator.
        separator: one character, or its name in `SEPARATOR_NAMES`; None detects it from the header.
        encoding: text encoding; None means UTF-8 or the encoding of the byte-order mark.
        least_columns: with 1, a table of files alone is accepted.

    Raises:
        UserError: the file cannot be read or is not a table; the message gives the line if there is one.
    """
    text = _decode(_read(path), encoding, path)
    hint = re.match(r'"?sep=(.)"?\r?\n', text)  # Excel's notation for the separator
    if hint:
        separator, text = separator or hint[1], text[hint.end() - 1 :]  # keep the line break for line numbers
    if not text.strip():
        raise UserError(f"{path} is empty. Name the columns in its first line, e.g. file,label")
    delimiter = _find_separator(text, wanted, path, least_columns) if separator is None else _check_separator(separator)
    records = _records(text, delimiter, path)
    columns = _names(next(records)[1])
    if len(columns) < least_columns:
        raise UserError(
            f"{path} has only one column with data.separator={separator!r}. Use data.separator=null to detect it"
        )
    lines, cells = [], []
    for line, record in records:
        lines.append(line)
        cells.append(_fit(record, columns, f"{path}, line {line}"))
    if not cells:
        raise UserError(f"{path} has no rows. Add one for each image")
    return CsvRows(path, columns, cells, lines)


def read_lines(path: Path, encoding: str | None = None) -> list[str]:
    """Return the lines of a text file, compressed or not, without blank ones.

    Raises:
        UserError: the file cannot be read or is not text.
    """
    text = _decode(_read(path), encoding, path)
    return [line.rstrip("\r\n") for line in io.StringIO(text, newline="") if line.strip()]


def _read(path: Path) -> bytes:
    """Return the decompressed content of the file."""
    decompress: dict[str, Callable[[bytes], bytes]] = {
        ".gz": gzip.decompress,
        ".bz2": bz2.decompress,
        ".xz": lzma.decompress,
        ".zip": _unzip,
    }
    try:
        data = path.read_bytes()
        if path.suffix.lower() in decompress:
            data = decompress[path.suffix.lower()](data)
    except (OSError, EOFError, ValueError, RuntimeError, zlib.error, lzma.LZMAError, zipfile.BadZipFile) as error:
        reason = (isinstance(error, OSError) and error.strerror) or str(error)
        raise UserError(f"{path} cannot be read: {' '.join(reason.split())}") from None
    return data


def _unzip(data: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        names = [name for name in archive.namelist() if not name.endswith("/") and not name.startswith("__MACOSX/")]
        if len(names) != 1:
            raise ValueError(f"it contains {len(names)} files. Unpack it and name one of them")
        return archive.read(names[0])


def _decode(data: bytes, encoding: str | None, path: Path) -> str:
    """Return the text without a byte-order mark."""
    for start, kind in OTHER_FORMATS.items():
        if data.startswith(start):
            raise UserError(f"{path} cannot be read as a CSV table: it is {kind}. Save it as CSV")
    codec = _codec(data, encoding, path)
    try:
        text = data.decode(codec)
    except UnicodeDecodeError as error:
        if codec != "utf-8" or b"\0" not in data:
            raise _wrong_encoding(data, codec, error, path) from None
        text = END  # a binary file
    if END in text:
        raise UserError(
            f"{path} cannot be read as a CSV table: it contains zero bytes. Save it as CSV; "
            "if it is UTF-16 without a byte-order mark, set data.encoding=utf-16-le"
        )
    return text.removeprefix("\ufeff")


def _codec(data: bytes, encoding: str | None, path: Path) -> str:
    """Return the encoding of the file: the given one, that of the byte-order mark, or UTF-8."""
    marked = next((name for mark, name in BYTE_ORDER_MARKS.items() if data.startswith(mark)), None)
    if encoding is None:
        return marked or "utf-8"
    try:
        b" ".decode(encoding, "ignore")
    except (LookupError, UnicodeError):
        raise UserError(
            f"data.encoding={encoding}: Python has no such text encoding. Set for example utf-8, latin-1 or utf-16"
        ) from None
    if marked and not codecs.lookup(encoding).name.startswith(marked):
        raise UserError(
            f"data.encoding={encoding}: {path} begins with the byte-order mark of {marked}. Set data.encoding=null"
        )
    return encoding


def _wrong_encoding(data: bytes, codec: str, error: UnicodeDecodeError, path: Path) -> UserError:
    line = len(re.findall(r"\r\n|\r|\n", data[: error.start].decode(codec, "ignore"))) + 1
    return UserError(
        f"{path}, line {line}: byte 0x{data[error.start]:02x} is not valid {codec}. "
        "Save the table as UTF-8, or set data.encoding=latin-1 (or its actual encoding)"
    )


def _check_separator(separator: str) -> str:
    character = SEPARATOR_NAMES.get(separator, separator)
    if len(character) != 1 or character in '"\r\n':
        raise UserError(
            f"data.separator={separator!r}: it must be one character, or comma, semicolon, tab, pipe, space or null"
        )
    return character


def _find_separator(text: str, wanted: Sequence[str], path: Path, least_columns: int) -> str:
    """Return the separator that gives the most wanted columns in the header, then the most columns."""
    header = next(line for line in io.StringIO(text, newline="") if line.strip()).strip("\r\n")

    def fit(separator: str) -> tuple[int, int]:
        names = _names(next(csv.reader([header], delimiter=separator)))
        return len({*names} & {_name(name) for name in wanted}), len(names)

    best = max(SEPARATORS, key=fit)
    if fit(best)[1] < least_columns:
        raise UserError(
            f"{path} has only one column, {header.strip()!r}: its first line has no comma, semicolon, tab or |. "
            "Set data.separator=..., or data.table=... to another table"
        )
    return best


def _name(cell: str) -> str:
    return " ".join(cell.split())


def _names(header: list[str]) -> list[str]:
    """Return the names of the columns without empty names at the end."""
    names = [_name(cell) for cell in header]
    while names and not names[-1]:
        names.pop()
    return names


def _records(text: str, separator: str, path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield each row that is not blank, with the number of its first line."""
    lines = chain(io.StringIO(text, newline=""), [END])
    # In `a.png, "a cat"`, the quote is recognized only if the blank before it is skipped.
    blanks = separator != " " and f'{separator} "' in text
    reader = csv.reader(lines, delimiter=separator, skipinitialspace=blanks)
    line = 1
    try:
        for cells in reader:
            if cells and cells[-1].endswith(END):
                if cells == [END]:
                    return
                break
            if any(map(str.strip, cells)):
                yield line, cells
            line = reader.line_num + 1
    except csv.Error:  # a field of more than 128 kB
        pass
    raise UserError(f"{path}, line {line}: a double quote that opens here is never closed. Close or delete it")


def _fit(cells: list[str], columns: list[str], where: str) -> list[str]:
    """Return as many cells as there are columns; extra cells must be empty."""
    width = len(columns)
    while len(cells) > width and not cells[-1].strip():
        cells.pop()
    if len(cells) == width:
        return cells
    fields = f"{len(cells)} field{'s' * (len(cells) != 1)}"
    if any("\n" in cell or "\r" in cell for cell in cells):
        fix = "Check the double quotes from this line on"
    elif len(cells) > width:
        fix = "Put fields that contain the separator into double quotes"
    else:
        fix = "Complete or delete the line"
    raise UserError(f"{where} has {fields}, but the header has {width}. {fix}")
