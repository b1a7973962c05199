"""CSV files written by spreadsheets, pandas and people; errors are one line and give the line number."""

from __future__ import annotations

import bz2
import codecs
import csv
import gzip
import lzma
import zipfile
from pathlib import Path
from typing import Any

import pytest

from mlops_img.data.sources.csv_reader import CsvRows, read_csv
from mlops_img.errors import UserError

WANTED = ("file", "label")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "labels.csv"


def rows_of(path: Path, content: str | bytes, **options: Any) -> CsvRows:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_csv(path, WANTED, **options)


def error_message(path: Path, content: str | bytes, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        rows_of(path, content, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


# Separators.


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_the_separator_is_detected(path: Path, separator: str) -> None:
    rows = rows_of(path, f"file{separator}label\na b.png{separator}x\n")
    assert rows.columns == ["file", "label"]
    assert rows.cells == [["a b.png", "x"]]


@pytest.mark.parametrize(
    ("header", "separator"),
    [
        ("file;label;size, mm;hue, deg;x, y", ";"),  # more commas than semicolons
        ('"note; by hand; in a hurry",file,label', ","),
        ("file|label;other|x", "|"),
        ("image;breed", ";"),  # no wanted name
    ],
)
def test_the_separator_is_detected_by_the_wanted_columns(path: Path, header: str, separator: str) -> None:
    columns = next(csv.reader([header], delimiter=separator))
    assert rows_of(path, f"{header}\n{separator.join('x' for _ in columns)}\n").columns == columns


def test_the_separator_can_be_set(path: Path) -> None:
    assert rows_of(path, "file:label\na:x\n", separator=":").cells == [["a", "x"]]
    for name, character in (("comma", ","), ("semicolon", ";"), ("pipe", "|")):
        assert rows_of(path, f"file{character}label\na b{character}x\n", separator=name).cells == [["a b", "x"]]
    for name in ("tab", "\\t", "\t"):
        assert rows_of(path, "file\tlabel\na b\tx\n", separator=name).cells == [["a b", "x"]]
    assert rows_of(path, "file label\na x\n", separator="space").cells == [["a", "x"]]


@pytest.mark.parametrize("separator", ["", ";;", '"', "\n", "colon"])
def test_invalid_separators_are_rejected(path: Path, separator: str) -> None:
    message = error_message(path, "file,label\na,x\n", separator=separator)
    assert "it must be one character, or comma, semicolon, tab" in message


def test_a_separator_that_does_not_occur_is_rejected(path: Path) -> None:
    message = error_message(path, "file;label\na;x\n", separator="tab")
    assert message.endswith("has only one column with data.separator='tab'. Use data.separator=null to detect it")


def test_the_separator_line_of_excel_is_read(path: Path) -> None:
    rows = rows_of(path, "sep=;\r\nfile;label\r\na,b;x\r\n")
    assert (rows.columns, rows.cells, rows.lines) == (["file", "label"], [["a,b", "x"]], [3])


def test_one_column_without_a_separator_is_rejected(path: Path) -> None:
    message = error_message(path, "file label\na.png x\n")
    assert "has only one column, 'file label': its first line has no comma, semicolon, tab or |" in message
    assert "data.separator=" in message


# Encodings and compression.


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_unicode_encodings_are_detected(path: Path, encoding: str) -> None:
    assert rows_of(path, "file,label\na,café\n".encode(encoding)).cells == [["a", "café"]]


def test_utf16_is_detected_in_both_byte_orders(path: Path) -> None:
    for mark, encoding in ((codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be")):
        content = mark + "file,label\na,café\n".encode(encoding)
        assert rows_of(path, content).cells == [["a", "café"]]
        assert rows_of(path, content, encoding=encoding).columns == ["file", "label"]


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "utf-16-le"])
def test_the_encoding_can_be_set(path: Path, encoding: str) -> None:
    content = "file,label\na,café\n".encode(encoding)
    assert rows_of(path, content, encoding=encoding).cells == [["a", "café"]]


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_text_that_is_not_utf8_is_rejected_with_line_and_byte(path: Path, newline: str) -> None:
    content = newline.join(["file,label", "a,ok", "", "b,café", "c,café"]).encode("latin-1")
    message = error_message(path, content)
    assert message.startswith(f"{path}, line 4: byte 0xe9 is not valid utf-8. ")
    assert "data.encoding=latin-1" in message
    assert "line 4: byte 0x81 is not valid cp1252" in error_message(
        path, content.replace(b"\xe9", b"\x81"), encoding="cp1252"
    )


@pytest.mark.parametrize("encoding", ["latin-7x", "rot13", "base64", "undefined"])
def test_an_unknown_encoding_is_rejected(path: Path, encoding: str) -> None:
    assert f"data.encoding={encoding}: Python has no such text encoding" in error_message(
        path, "a,b\n1,2\n", encoding=encoding
    )


def test_an_encoding_that_contradicts_the_byte_order_mark_is_rejected(path: Path) -> None:
    message = error_message(path, "file,label\na,x\n".encode("utf-8-sig"), encoding="latin-1")
    assert "begins with the byte-order mark of utf-8. Set data.encoding=null" in message


def test_utf16_without_byte_order_mark_is_rejected_with_the_setting(path: Path) -> None:
    assert "data.encoding=utf-16-le" in error_message(path, "file,label\na,x\n".encode("utf-16-le"))


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"PK\x03\x04\x14\0\x06\0", "an Excel workbook or a zip archive"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1", "an Excel workbook"),
        (b"PAR1\x15\x04\x15", "a Parquet file"),
        (b"\x89PNG\r\n\x1a\n\0\0", "it contains zero bytes"),
        (b"SQLite format 3\0\x10", "it contains zero bytes"),
    ],
)
def test_other_file_formats_are_named(path: Path, content: bytes, kind: str) -> None:
    message = error_message(path, content)
    assert "cannot be read as a CSV table: it " in message
    assert kind in message
    assert "Save it as CSV" in message


@pytest.mark.parametrize(
    ("suffix", "compress"), [(".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress)]
)
def test_compressed_tables_are_read_and_damaged_tables_rejected(path: Path, suffix: str, compress: Any) -> None:
    path = path.with_suffix(f".csv{suffix}")
    content = compress(b"file,label\na,x\n")
    assert rows_of(path, content).cells == [["a", "x"]]
    assert f"{path} cannot be read: " in error_message(path, content[:-9])
    assert f"{path} cannot be read: " in error_message(path, b"file,label\na,x\n")


def test_a_zip_archive_of_one_table_is_read(path: Path) -> None:
    path = path.with_suffix(".csv.zip")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("folder/", "")
        archive.writestr("folder/train.csv", "file,label\na,x\n")
        archive.writestr("__MACOSX/train.csv", "resource fork")
    assert read_csv(path, WANTED).cells == [["a", "x"]]
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("test.csv", "file\n")
    with pytest.raises(UserError, match="it contains 2 files"):
        read_csv(path, WANTED)
    assert f"{path} cannot be read: " in error_message(path, b"PK\x03\x04 cut off")


# Lines and fields.


def test_line_numbers_are_those_of_a_text_editor(path: Path) -> None:
    rows = rows_of(path, '\n\nfile,label\n\na,x\r\n"b\nb",y\n  \n,,,\nc,z\rd,z')
    assert rows.cells == [["a", "x"], ["b\nb", "y"], ["c", "z"], ["d", "z"]]
    assert rows.lines == [5, 6, 10, 11]


def test_separators_at_the_end_of_lines_are_ignored(path: Path) -> None:
    assert rows_of(path, "file,label\na,x,\nb,y,, \nc,\n").cells == [["a", "x"], ["b", "y"], ["c", ""]]
    rows = rows_of(path, "file,label,,\na,x,,\nb,y\n")
    assert (rows.columns, rows.cells) == (["file", "label"], [["a", "x"], ["b", "y"]])


def test_quoted_fields(path: Path) -> None:
    rows = rows_of(path, 'file,label\n"a,b.png","say ""x"""\nb, "y, z"\n5" pipe,w\n')
    assert rows.cells == [["a,b.png", 'say "x"'], ["b", "y, z"], ['5" pipe', "w"]]


def test_blanks_around_column_names_are_ignored(path: Path) -> None:
    rows = rows_of(path, ' file ; label;"size\n(mm)"\na;x;3\n')
    assert rows.columns == ["file", "label", "size (mm)"]
    assert rows.column("label", "label_column") == ["x"]


def test_a_column_without_a_name_is_kept(path: Path) -> None:
    rows = rows_of(path, ",file,label\n0,a,x\n")  # pandas writes its index like this
    assert rows.column("file", "file_column") == ["a"]


def test_a_column_name_that_occurs_twice_is_rejected_on_access(path: Path) -> None:
    rows = rows_of(path, "file,label,note,note,label\na,x,1,2,y\n")
    assert rows.column("file", "file_column") == ["a"]
    with pytest.raises(UserError, match="has 2 columns named 'label'"):
        rows.column("label", "label_column")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty. Name the columns in its first line"),
        ("\n \n", "is empty"),
        ("file,label\n\n", "has no rows"),
        ("file,label\na,x\n\nb\n", "line 4 has 1 field, but the header has 2. Complete or delete the line"),
        ("file,label\na,x\nb,y,z\n", "line 3 has 3 fields, but the header has 2. Put fields that contain"),
        ('file,label\na,x\n"b,y\nc,z\n', "line 3: a double quote that opens here is never closed"),
        ('file,label\na,x\n"b,y', "line 3: a double quote that opens here is never closed"),
        ('file,label\n"a,x\nb",x,y\n', "line 2 has 3 fields, but the header has 2. Check the double quotes"),
        ('file,label\n"a,x\n' + "b,y\n" * 50_000, "line 2: a double quote that opens here is never closed"),
    ],
)
def test_malformed_tables_are_rejected_with_the_line(path: Path, content: str, message: str) -> None:
    assert message in error_message(path, content)
