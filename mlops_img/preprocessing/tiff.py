"""Read the samples of TIFFs that Pillow cannot read or reads incorrectly.

These are samples of 3, 5, 6, 7 and 9 to 15 bits; signed samples; 16-bit samples where 0 is white, of gray with alpha or
in separate planes; and 32-bit samples. Pillow and libtiff still read the file, with a new directory that describes the
same strips or tiles as 8-bit gray pixels. The result is the decompressed bytes of the file.
"""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin

WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, FILL_ORDER = 256, 257, 258, 259, 262, 266
STRIP_OFFSETS, SAMPLES, ROWS_PER_STRIP, STRIP_BYTES, MAX_VALUE, PLANES = 273, 277, 278, 279, 281, 284
PREDICTOR, TILE_WIDTH, TILE_HEIGHT, TILE_OFFSETS, TILE_BYTES, EXTRA, FORMAT = 317, 322, 323, 324, 325, 338, 339
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB = 0, 1, 2
UNSIGNED, SIGNED = 1, 2
SEPARATE = 2  # planes
HORIZONTAL = 2  # predictor
UNCOMPRESSED, PADDED_TO_16_BITS = 1, 32771
ASSOCIATED, UNASSOCIATED = 1, 2  # alpha
# A raw mode that does not exist: Pillow opens the files that have an entry in its table, but cannot decode these.
NOT_FOR_PILLOW = "read by mlops_img"
UNPACKED_AT_ONCE = 2**22  # bytes
DEPTHS = (*range(1, 17), 32)


def register_deep_tiffs() -> None:
    """Make `Image.open` accept the files that `read_samples` reads, to get their size and tags."""
    table: dict[Any, tuple[str, str]] = TiffImagePlugin.OPEN_INFO
    for prefix, fill_order, bits in product((b"II", b"MM"), (1, 2), DEPTHS):
        for photometric, sample_format in product((WHITE_IS_ZERO, BLACK_IS_ZERO), (UNSIGNED, SIGNED)):
            key = (prefix, photometric, (sample_format,), fill_order)
            table.setdefault((*key, (bits,), ()), ("I;16", NOT_FOR_PILLOW))
            for extra in (0, ASSOCIATED, UNASSOCIATED):
                table.setdefault((*key, (bits, bits), (extra,)), ("LA", NOT_FOR_PILLOW))
        key = (prefix, RGB, (UNSIGNED,), fill_order)
        table.setdefault((*key, (bits,) * 3, ()), ("RGB", NOT_FOR_PILLOW))
        for extra in (0, ASSOCIATED, UNASSOCIATED):
            table.setdefault((*key, (bits,) * 4, (extra,)), ("RGBA", NOT_FOR_PILLOW))


@dataclass(frozen=True)
class Layout:
    """The sample layout of a TIFF.

    Attributes:
        bits: bits per sample.
        signed: whether samples are in two's complement.
        channels: samples per pixel, including the extra channel.
        photometric: `WHITE_IS_ZERO`, `BLACK_IS_ZERO` or `RGB`.
        extra: `ASSOCIATED`, `UNASSOCIATED` or 0 (unspecified) for the channel after the colors; None without one.
        separate: whether each channel is stored in its own plane.
        compressed: whether the samples are compressed, by any method.
        most: the largest value that the tags declare; None if they do not.
    """

    bits: int
    signed: bool
    channels: int
    photometric: int
    extra: int | None
    separate: bool
    compressed: bool
    most: int | None

    @property
    def is_read_by_pillow(self) -> bool:
        """Whether Pillow reads the correct values, or at least their 8 most significant bits."""
        if self.bits in (1, 2, 4):
            return not self.signed and self.channels == 1
        if self.bits == 8:
            return not self.signed
        gray = self.channels == 1 and self.photometric == BLACK_IS_ZERO
        planes = self.separate and not self.compressed  # read incorrectly by Pillow
        return self.bits == 16 and not self.signed and (gray or (self.photometric == RGB and not planes))

    @property
    def declared_range(self) -> tuple[int, int]:
        """The smallest and the largest value that the file declares; for 32 bits, those of 16 bits."""
        if self.bits == 32:
            return 0, 2**16 - 1
        if self.signed:
            return -(2 ** (self.bits - 1)), 2 ** (self.bits - 1) - 1
        return 0, self.most or 2**self.bits - 1


def layout(tags: TiffImagePlugin.ImageFileDirectory_v2) -> Layout | None:
    """Return the layout of a gray or RGB TIFF of integers; None for others."""
    photometric = tags.get(PHOTOMETRIC, -1)
    colors = {WHITE_IS_ZERO: 1, BLACK_IS_ZERO: 1, RGB: 3}.get(photometric)
    bits = tags.get(BITS, (1,))
    formats = tags.get(FORMAT, (UNSIGNED,))
    channels = tags.get(SAMPLES, 1)
    extra = tags.get(EXTRA, ())
    if colors is None or channels - colors != len(extra) or len(extra) > 1:
        return None
    if len(set(bits)) != 1 or len(set(formats)) != 1 or bits[0] not in DEPTHS or formats[0] not in (UNSIGNED, SIGNED):
        return None
    return Layout(
        bits=bits[0],
        signed=formats[0] == SIGNED,
        channels=channels,
        photometric=photometric,
        extra=extra[0] if extra else None,
        separate=tags.get(PLANES, 1) == SEPARATE and channels > 1,
        compressed=tags.get(COMPRESSION, UNCOMPRESSED) != UNCOMPRESSED,
        most=_declared_most(tags.get(MAX_VALUE), bits[0]),
    )


def _declared_most(value: Any, bits: int) -> int | None:
    """Return MaxSampleValue if it declares a bit depth, such as 4095 for 12 bits stored in 16; else None.

    Other values are statistics of the pixels, which must not change how the image looks (TIFF 6.0, section 8).
    """
    most = value[0] if isinstance(value, tuple) else value
    if isinstance(most, int) and 8 < most.bit_length() < bits and most & (most + 1) == 0:
        return most
    return None


def read_samples(data: bytes, tags: TiffImagePlugin.ImageFileDirectory_v2, form: Layout) -> NDArray[Any]:
    """Read the samples of a TIFF.

    Args:
        data: the bytes of the file.
        tags: the tags of its first image.
        form: `layout(tags)`.

    Returns:
        The samples as stored, without the orientation applied: (height, width, channels), uint16, or int16, int8,
        uint32 or int32 according to the file.

    Raises:
        Exception: of many types, if the file is damaged.
    """
    if form.separate:
        return np.concatenate([_read_plane(data, tags, form, plane) for plane in range(form.channels)], axis=2)
    return _read_plane(data, tags, form, None)


def _read_plane(
    data: bytes, tags: TiffImagePlugin.ImageFileDirectory_v2, form: Layout, plane: int | None
) -> NDArray[Any]:
    """Read one plane; or all channels, stored pixel by pixel, if `plane` is None."""
    width, height = tags[WIDTH], tags[HEIGHT]
    channels = form.channels if plane is None else 1
    bits = 16 if _fills_words(tags, form) else form.bits
    tiled = TILE_OFFSETS in tags
    across = tags[TILE_WIDTH] if tiled else width
    if tiled and across * channels * bits % 8:
        raise ValueError("rows of its tiles do not end at a byte boundary")
    row = (across * channels * bits + 7) // 8  # bytes
    described: dict[int, tuple[int, ...]] = {
        HEIGHT: (height,),
        BITS: (8,),
        COMPRESSION: (UNCOMPRESSED if bits != form.bits else tags.get(COMPRESSION, UNCOMPRESSED),),
        PHOTOMETRIC: (BLACK_IS_ZERO,),
        FILL_ORDER: (tags.get(FILL_ORDER, 1),),
        SAMPLES: (1,),
    }
    if tiled:
        described[WIDTH] = (-(-width // across) * row,)
        described |= {TILE_WIDTH: (row,), TILE_HEIGHT: (tags[TILE_HEIGHT],)}
    else:
        described[WIDTH] = (row,)
        described[ROWS_PER_STRIP] = (min(tags.get(ROWS_PER_STRIP, height), height),)
    for tag in (TILE_OFFSETS, TILE_BYTES) if tiled else (STRIP_OFFSETS, STRIP_BYTES):
        if tag in tags:
            parts = len(tags[tag]) // form.channels if plane is not None else len(tags[tag])
            described[tag] = tags[tag][(plane or 0) * parts :][:parts]
    image = Image.open(io.BytesIO(_redescribed(data, tags.prefix, described)), formats=["TIFF"])
    stored = np.asarray(image).reshape(height, -1, row)  # (height, tiles across, bytes of a tile's row)
    values = _numbers(stored, bits, form.signed, "<" if tags.prefix == b"II" else ">")
    values = values[:, :, : across * channels].reshape(height, -1, across, channels)
    if tags.get(PREDICTOR) == HORIZONTAL and form.compressed:
        values = values.cumsum(axis=2, dtype=values.dtype)
    return values.reshape(height, -1, channels)[:, :width]


def _fills_words(tags: TiffImagePlugin.ImageFileDirectory_v2, form: Layout) -> bool:
    """Return whether samples of 9 to 15 bits take 16 bits each instead of being packed as TIFF requires."""
    if not 8 < form.bits < 16:
        return False
    if tags.get(COMPRESSION) == PADDED_TO_16_BITS:
        return True
    held = sum(tags.get(STRIP_BYTES, (0,)))
    return not form.compressed and held >= tags[WIDTH] * tags[HEIGHT] * form.channels * 2


def _numbers(stored: NDArray[np.uint8], bits: int, signed: bool, order: str) -> NDArray[Any]:
    """Convert the bytes of rows, uint8 (height, tiles, n), to numbers, (height, tiles, n * 8 // bits)."""
    if bits in (8, 16, 32):
        kind = f"{order}{'i' if signed else 'u'}{bits // 8}"
        return np.ascontiguousarray(stored).view(kind).astype(kind.replace(order, "="))
    at_once = max(1, UNPACKED_AT_ONCE // max(1, stored[0].size))
    parts = [_unpacked(stored[top : top + at_once], bits) for top in range(0, len(stored), at_once)]
    values = np.concatenate(parts)
    return (values << (16 - bits)).view(np.int16) >> (16 - bits) if signed else values


def _unpacked(stored: NDArray[np.uint8], bits: int) -> NDArray[np.uint16]:
    single: NDArray[Any] = np.unpackbits(stored, axis=-1)
    single = single[..., : single.shape[-1] // bits * bits].reshape(*stored.shape[:-1], -1, bits)
    values: NDArray[np.uint16] = np.zeros(single.shape[:-1], np.uint16)
    for index in range(bits):
        values <<= 1
        values |= single[..., index]
    return values


def _redescribed(data: bytes, prefix: bytes, described: dict[int, tuple[int, ...]]) -> bytes:
    """Return the file with a new directory of these tags appended to its data."""
    order = "<" if prefix == b"II" else ">"
    start = len(data) + len(data) % 2
    offset = start + 2 + 12 * len(described) + 4  # of the values that do not fit into their entries
    entries, long_values = b"", b""
    for tag, values in sorted(described.items()):
        packed = struct.pack(f"{order}{len(values)}L", *values)
        if len(values) > 1:
            packed, long_values = struct.pack(f"{order}L", offset + len(long_values)), long_values + packed
        entries += struct.pack(f"{order}HHL", tag, 4, len(values)) + packed
    header = prefix + struct.pack(f"{order}HL", 42, start)
    directory = struct.pack(f"{order}H", len(described)) + entries + bytes(4) + long_values
    return header + data[8:].ljust(start - 8, b"\0") + directory


register_deep_tiffs()
