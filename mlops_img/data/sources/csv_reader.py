"""CSV files as people have them: any usual separator, encoding and compression, with the line number of each row."""

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
# For command lines, where a shell and Hydra have uses of their own for such characters.
SEPARATOR_NAMES = {"comma": ",", "semicolon": ";", "tab": "\t", "\\t": "\t", "pipe": "|", "space": " "}
# UTF-32 first: its mark begins as UTF-16's does.
BYTE_ORDER_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
    codecs.BOM_UTF8: "utf-8",
}
# What files that are no CSV begin with.
OTHER_FORMATS = {
    b"PK\x03\x04": "an Excel workbook or a zip archive",
    b"\xd0\xcf\x11\xe0": "an Excel workbook",
    b"PAR1": "a Parquet file",
}
# Marks the end of the text for `csv.reader`, which itself does not report a quote that is still open there.
END = "\0"


@dataclass(frozen=True)
class CsvRows:
    """The rows of a CSV file.

    Attributes:
        path: the file.
        columns: the names in the header, without blanks around them; a line break in one is a blank.
        cells: by row, as many strings as there are columns.
        lines: by row, the line of the file that it begins in, counted from 1 as an editor does.
    """

    path: Path
    columns: list[str]
    cells: list[list[str]]
    lines: list[int]

    def column(self, name: str, key: str, hint: str = "") -> list[str]:
        """Return the cells of the column that the configuration's `key` names.

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


def read_csv(path: Path, wanted: Sequence[str], separator: str | None = None, encoding: str | None = None) -> CsvRows:
    """Read a CSV file, compressed or not.

    Lines without any text are left out, and so are empty fields beyond those of the header.

    Args:
        path: of the file; .gz, .bz2, .xz and .zip are decompressed.
        wanted: names of columns, which tell the separator where it is not given.
        separator: one character, or its name in `SEPARATOR_NAMES`; None finds it in the header.
        encoding: of the text; None is UTF-8, or what a byte-order mark names.

    Raises:
        UserError: the file cannot be read or is not a table; names the line where there is one to name.
    """
    text = _decode(_read(path), encoding, path)
    hint = re.match(r'"?sep=(.)"?\r?\n', text)  # Excel's own way to name the separator
    if hint:
        separator, text = separator or hint[1], text[hint.end() - 1 :]  # its line still counts
    if not text.strip():
        raise UserError(f"{path} is empty. Name the columns in its first line, e.g. file,label")
    delimiter = _find_separator(text, wanted, path) if separator is None else _check_separator(separator)
    records = _records(text, delimiter, path)
    columns = _names(next(records)[1])
    if len(columns) < 2:
        raise UserError(
            f"{path} has only one column with data.separator={separator!r}. Find it with data.separator=null"
        )
    lines, cells = [], []
    for line, record in records:
        lines.append(line)
        cells.append(_fit(record, columns, f"{path}, line {line}"))
    if not cells:
        raise UserError(f"{path} has no rows. Add one for each image")
    return CsvRows(path, columns, cells, lines)


def _read(path: Path) -> bytes:
    """Return the file's content, decompressed."""
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
            raise ValueError(f"it holds {len(names)} files. Unpack it and name one of them with data.table=...")
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
        text = END  # a picture, a database
    if END in text:
        raise UserError(
            f"{path} cannot be read as a CSV table: it holds zero bytes. Save it as CSV; "
            "if it is UTF-16 without a byte-order mark, set data.encoding=utf-16-le"
        )
    return text.removeprefix("\ufeff")


def _codec(data: bytes, encoding: str | None, path: Path) -> str:
    """Return what decodes the file: what is given, or what its byte-order mark says, or UTF-8."""
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
        "Save the table as UTF-8, or set data.encoding=latin-1 (or the encoding that it has)"
    )


def _check_separator(separator: str) -> str:
    character = SEPARATOR_NAMES.get(separator, separator)
    if len(character) != 1 or character in '"\r\n':
        raise UserError(
            f"data.separator={separator!r}: it must be one character, or comma, semicolon, tab, pipe, space or null"
        )
    return character


def _find_separator(text: str, wanted: Sequence[str], path: Path) -> str:
    """Return what splits the header into most of the wanted columns, then into most columns."""
    header = next(line for line in io.StringIO(text, newline="") if line.strip()).strip("\r\n")

    def fit(separator: str) -> tuple[int, int]:
        names = _names(next(csv.reader([header], delimiter=separator)))
        return len({*names} & {_name(name) for name in wanted}), len(names)

    best = max(SEPARATORS, key=fit)
    if fit(best)[1] < 2:
        raise UserError(
            f"{path} has only one column, {header.strip()!r}: its first line has no comma, semicolon, tab or |. "
            "Set data.separator=..., or name another table with data.table=..."
        )
    return best


def _name(cell: str) -> str:
    return " ".join(cell.split())


def _names(header: list[str]) -> list[str]:
    """Return the names of the columns, without empty ones at the end."""
    names = [_name(cell) for cell in header]
    while names and not names[-1]:
        names.pop()
    return names


def _records(text: str, separator: str, path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield each row that holds any text, with the line that it begins in."""
    lines = chain(io.StringIO(text, newline=""), [END])
    # As in `a.png, "a cat"`: a quote after a blank is a quote only if the blank is skipped.
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


def _fit(cells: list[str], columns: list[str], place: str) -> list[str]:
    """Return as many cells as there are columns; only empty ones may be left over."""
    width = len(columns)
    while len(cells) > width and not cells[-1].strip():
        cells.pop()
    if len(cells) == width:
        return cells
    fields = f"{len(cells)} field{'s' * (len(cells) != 1)}"
    if any("\n" in cell or "\r" in cell for cell in cells):
        fix = "Check the double quotes from here on"
    elif len(cells) > width:
        fix = "Put a field that holds the separator into double quotes"
    else:
        fix = "Complete or delete the line"
    raise UserError(f"{place} has {fields}, but the header has {width}. {fix}")
