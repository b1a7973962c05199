"""The canvas around a first frame that is smaller becomes white, as in image viewers."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from PIL import Image

from mlops_img.preprocessing.decode import decode_rgb

CANVAS, FRAME = (8, 6), (2, 2, 4, 3)  # width and height; left, top, width and height
RED, BLUE = [255, 0, 0], [0, 0, 255]


def gif(*, transparent: int | None = None, background: int = 1, own_palette: bool = False) -> bytes:
    """Write a GIF of a red frame on a larger canvas; the palette is red and blue."""
    palette = bytes(RED + BLUE)
    data = b"GIF89a" + struct.pack("<HHBBB", *CANVAS, 0 if own_palette else 0x80, background, 0)
    data += b"" if own_palette else palette
    if transparent is not None:
        data += b"\x21\xf9\x04\x01\0\0" + bytes([transparent]) + b"\0"
    data += b"\x2c" + struct.pack("<HHHHB", *FRAME, 0x80 if own_palette else 0) + (palette if own_palette else b"")
    # LZW codes of 3 bits: a clear code (4) before each pixel (0) keeps the table from growing; the end code is 5.
    codes = [code for _ in range(FRAME[2] * FRAME[3]) for code in (4, 0)] + [5]
    number = sum(code << 3 * index for index, code in enumerate(codes))
    stream = number.to_bytes(-(-3 * len(codes) // 8), "little")
    return data + b"\x02" + bytes([len(stream)]) + stream + b"\0;"


def webp(*, alpha: bool) -> bytes:
    """Write an animated WebP of one red frame on a larger canvas."""
    left, top, width, height = FRAME
    file = io.BytesIO()
    Image.new("RGB", (width, height), tuple(RED)).save(file, "WEBP", lossless=True)
    pixels = file.getvalue()[12:]

    def chunk(kind: bytes, content: bytes) -> bytes:
        return kind + struct.pack("<L", len(content)) + content + b"\0" * (len(content) % 2)

    def number(value: int) -> bytes:
        return value.to_bytes(3, "little")

    canvas = bytes([0x12 if alpha else 2, 0, 0, 0]) + number(CANVAS[0] - 1) + number(CANVAS[1] - 1)
    position = number(left // 2) + number(top // 2) + number(width - 1) + number(height - 1) + number(100) + b"\0"
    chunks = chunk(b"VP8X", canvas) + chunk(b"ANIM", b"\0\0\xff\xff\0\0") + chunk(b"ANMF", position + pixels)
    return b"RIFF" + struct.pack("<L", 4 + len(chunks)) + b"WEBP" + chunks


@pytest.mark.parametrize(
    "data",
    [
        gif(),
        gif(background=0),
        gif(transparent=1),
        gif(own_palette=True),
        webp(alpha=False),
        webp(alpha=True),
    ],
    ids=["GIF", "GIF, red background", "GIF, transparent", "GIF, own palette", "WebP", "WebP, alpha"],
)
def test_canvas_around_the_first_frame_is_white(data: bytes) -> None:
    expected = np.full((CANVAS[1], CANVAS[0], 3), 255, np.uint8)
    left, top, width, height = FRAME
    expected[top : top + height, left : left + width] = RED
    np.testing.assert_array_equal(decode_rgb(data), expected)
    np.testing.assert_array_equal(decode_rgb(Image.open(io.BytesIO(data))), expected)
