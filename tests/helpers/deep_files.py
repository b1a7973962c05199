"""Write files of more than 8 bits per channel that Pillow cannot write."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Row = Sequence[int]  # the samples of a row, one pixel after the other
# Of the images that `samples` and `gray_tiff` make.
WIDTH, HEIGHT = 37, 5


def packed(rows: Sequence[Row], bits: int, order: str = "<") -> list[bytes]:
    """Return the bytes of each row: packed as in TIFF, most significant bit first; 8, 16 and 32 bits as integers."""
    if bits in (8, 16, 32):
        kind = {8: "B", 16: "H", 32: "L"}[bits]
        return [struct.pack(f"{order}{len(row)}{kind}", *(value % 2**bits for value in row)) for row in rows]
    lines = ["".join(f"{value % 2**bits:0{bits}b}" for value in row) for row in rows]
    return [int(line.ljust(-(-len(line) // 8) * 8, "0"), 2).to_bytes(-(-len(line) // 8)) for line in lines]


def tiff(
    strips: Sequence[bytes],
    width: int,
    height: int,
    bits: int,
    *,
    order: str = "<",
    channels: int = 1,
    photometric: int = 1,
    sample_format: int = 1,
    extra: int | None = None,
    deflate: bool = False,
    tile: int | None = None,
    **tags: int,
) -> bytes:
    """Write a TIFF of strips or square tiles; other tags are given by number, e.g. t281=4095."""
    strips = [zlib.compress(strip) for strip in strips] if deflate else list(strips)
    offsets = [8]
    for strip in strips:
        offsets.append(offsets[-1] + len(strip))
    sizes = [stop - start for start, stop in pairwise(offsets)]
    entries: dict[int, list[int]] = {
        256: [width],
        257: [height],
        258: [bits] * channels,
        259: [8 if deflate else 1],
        262: [photometric],
        277: [channels],
        339: [sample_format] * channels,
    }
    entries |= {338: [extra]} if extra is not None else {}
    if tile:
        entries |= {322: [tile], 323: [tile], 324: offsets[:-1], 325: sizes}
    else:
        per_strip = -(-height // max(1, len(strips) // (channels if tags.get("t284") == 2 else 1)))
        entries |= {273: offsets[:-1], 278: [per_strip], 279: sizes}
    entries |= {int(name[1:]): [value] for name, value in tags.items()}
    start = offsets[-1] + offsets[-1] % 2
    offset, directory, long_values = start + 2 + 12 * len(entries) + 4, b"", b""
    for tag, values in sorted(entries.items()):
        content = struct.pack(f"{order}{len(values)}L", *values)
        if len(values) > 1:
            content, long_values = struct.pack(f"{order}L", offset + len(long_values)), long_values + content
        directory += struct.pack(f"{order}HHL", tag, 4, len(values)) + content
    header = struct.pack(f"{order}2sHL", b"II" if order == "<" else b"MM", 42, start)
    count = struct.pack(f"{order}H", len(entries))
    return header + b"".join(strips).ljust(start - 8, b"\0") + count + directory + bytes(4) + long_values


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">L", len(content)) + kind + content + struct.pack(">L", zlib.crc32(kind + content))


def deep_png(rows: Sequence[Row], width: int, color: int, bits: int = 16, **chunks: bytes) -> bytes:
    """Write a PNG of a color type (0 gray, 2 RGB, 4 gray with alpha, 6 RGBA) with more chunks before the pixels."""
    header = struct.pack(">LLBBBBB", width, len(rows), bits, color, 0, 0, 0)
    lines = b"".join(b"\0" + line for line in packed(rows, bits, ">"))
    further = b"".join(png_chunk(name.encode(), content) for name, content in chunks.items())
    pixels = png_chunk(b"IDAT", zlib.compress(lines))
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + further + pixels + png_chunk(b"IEND", b"")


def samples(bits: int, channels: int = 1, seed: int = 0) -> NDArray[np.int64]:
    """Return random samples of a bit depth, (HEIGHT, WIDTH, channels), including black and white."""
    values = np.random.default_rng(seed).integers(0, 2**bits, (HEIGHT, WIDTH, channels))
    values[0, 0], values[0, 1] = 0, 2**bits - 1
    return values


def rows_of(values: NDArray[np.int64]) -> list[list[int]]:
    return [row.ravel().tolist() for row in values]


def shown(values: NDArray[np.int64], white: int) -> NDArray[np.uint8]:
    return np.broadcast_to((values * 255 / white).round().astype(np.uint8), (HEIGHT, WIDTH, 3))


def gray_tiff(values: NDArray[np.int64], bits: int, **options: Any) -> bytes:
    lines = packed(rows_of(values), bits, options.get("order", "<"))
    return tiff([b"".join(lines[:3]), b"".join(lines[3:])], WIDTH, HEIGHT, bits, **options)


def opened(data: bytes) -> Image.Image:
    """Return the image as the service passes it: opened with given formats, and not loaded."""
    return Image.open(io.BytesIO(data), formats=["PNG", "TIFF", "GIF", "WEBP"])
