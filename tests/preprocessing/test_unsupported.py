"""Unsupported kinds of images are rejected by name and not reported as damaged."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from PIL import Image

from mlops_img.preprocessing.decode import BadImageError, UnsupportedImageError, decode_rgb
from tests.helpers.shapes import draw_shape
from tests.preprocessing.test_decode import encoded

# pytest resets the warning filters for each test, which removes the filter that decode.py sets.
pytestmark = pytest.mark.filterwarnings("ignore:::PIL")

FRAME = b"\xff\xc0"


def jpeg_with_frame(marker: int = 0xC0, bits: int = 8) -> bytes:
    """Return a JPEG whose frame header is changed to that of another kind."""
    data = bytearray(encoded(draw_shape("circle", 0), "JPEG"))
    start = data.index(FRAME)
    data[start + 1], data[start + 4] = marker, bits
    return bytes(data)


def tiff(bits: tuple[int, ...], sample_format: int = 1, photometric: int = 1, compression: int = 1) -> bytes:
    """Return a TIFF of one row of two pixels, all zeros."""
    pixels = bytes(2 * len(bits) * 8)
    tags: list[tuple[int, tuple[int, ...]]] = [
        (256, (2,)),
        (257, (1,)),
        (258, bits),
        (259, (compression,)),
        (262, (photometric,)),
        (273, (8,)),
        (277, (len(bits),)),
        (278, (1,)),
        (279, (2 * sum(bits) // 8,)),
        (339, (sample_format,) * len(bits)),
    ]
    start = 8 + len(pixels)
    extra_at, extra, entries = start + 2 + 12 * len(tags) + 4, b"", b""
    for tag, values in tags:
        packed = struct.pack(f"<{len(values)}H", *values)
        if len(packed) > 4:
            packed, extra = struct.pack("<L", extra_at + len(extra)), extra + packed
        entries += struct.pack("<HHL", tag, 3, len(values)) + packed.ljust(4, b"\0")
    directory = struct.pack("<H", len(tags)) + entries + struct.pack("<L", 0) + extra
    return struct.pack("<2sHL", b"II", 42, start) + pixels + directory


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (jpeg_with_frame(bits=12), "12-bit JPEG"),
        (jpeg_with_frame(0xC3, bits=16), "16-bit JPEG"),
        (jpeg_with_frame(0xC5), "hierarchical JPEG"),
        (jpeg_with_frame(0xCB), "lossless arithmetic-coded JPEG"),
        (jpeg_with_frame(0xF7), "JPEG-LS image"),
        (tiff((32,), 3), "TIFF of 32-bit floating-point pixels"),
        (tiff((64,), 3), "TIFF of 64-bit floating-point pixels"),
        (tiff((16,), 3), "TIFF of 16-bit floating-point pixels"),
        (tiff((32, 32, 32), 3, photometric=2), "TIFF of 32-bit floating-point pixels with 3 channels"),
        (tiff((64,), 1), "TIFF of 64-bit unsigned integer pixels"),
        (tiff((8,), compression=50_002), "TIFF with compression 50002"),
        (tiff((16,), photometric=32_803), "TIFF of raw camera pixels (color filter array)"),
        (b"\0\0\0\x18ftypheic" + bytes(100), "HEIC image"),
        (b"\xff\x0a" + bytes(100), "JPEG XL image"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_unsupported_kind_is_named(data: bytes, kind: str) -> None:
    with pytest.raises(UnsupportedImageError) as exc_info:
        decode_rgb(data)
    reason = str(exc_info.value)
    assert reason.startswith((f"{kind}: not supported. Convert it", f"{kind}, which have no defined white: not"))


def test_floating_point_image_in_memory_is_not_supported() -> None:
    with pytest.raises(UnsupportedImageError, match="floating-point pixels"):
        decode_rgb(Image.fromarray(np.zeros((2, 2), np.float32)))


@pytest.mark.parametrize("fraction", [0.02, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_damaged_file_of_a_supported_kind_is_not_reported_as_unsupported(kind: str, fraction: float) -> None:
    data = encoded(draw_shape("circle", 0), kind)
    with pytest.raises(BadImageError) as exc_info:
        decode_rgb(data[: int(len(data) * fraction)])
    assert not isinstance(exc_info.value, UnsupportedImageError)


def test_jpeg_header_of_fill_bytes_only_is_reported_as_damaged() -> None:
    with pytest.raises(BadImageError) as exc_info:
        decode_rgb(b"\xff\xd8" + b"\xff" * 100)
    assert not isinstance(exc_info.value, UnsupportedImageError)


# 8 x 2 pixels: a lossless gray JPEG by libjpeg-turbo 3, all 100 except the first and the last pixel; and an
# arithmetic-coded RGB JPEG, all 100.
LOSSLESS = bytes.fromhex(
    "ffd8ffe000104a46494600010100000100010000ffc3000b080002000801011100ffc400160001010100000000000000000000000000000708"
    "ffda0008010100010000835740ae81a5bfffd9"
)
ARITHMETIC = bytes.fromhex(
    "ffd8ffe000104a46494600010100000100010000ffdb004300080606070605080707070909080a0c140d0c0b0b0c1912130f141d1a1f1e1d1a"
    "1c1c20242e2720222c231c1c2837292c30313434341f27393d38323c2e333432ffdb0043010909090c0b0c180d0d1832211c21323232323232"
    "3232323232323232323232323232323232323232323232323232323232323232323232323232323232323232ffc90011080002000803012200"
    "021101031101ffcc000a0010100501101105ffda000c03010002110311003f00ff004608ffd9"
)


def test_lossless_and_arithmetic_coded_jpegs_are_decoded() -> None:
    assert decode_rgb(LOSSLESS)[:, :, 1].tolist() == [[7] + 7 * [100], 7 * [100] + [250]]
    assert np.unique(decode_rgb(ARITHMETIC)).tolist() == [100]
