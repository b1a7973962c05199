"""Decoding of more than 8 bits per channel, scaled by the declared bit depth."""

from __future__ import annotations

import io
import itertools
import struct
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mlops_img.preprocessing.decode import BadImageError, UnsupportedImageError, decode_rgb
from tests.helpers.deep_files import HEIGHT, WIDTH, deep_png, gray_tiff, opened, packed, rows_of, samples, shown, tiff

# pytest resets the warning filters for each test, which removes the filter that decode.py sets.
pytestmark = pytest.mark.filterwarnings("ignore:::PIL")

DEPTHS = (2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16)


def product(*choices: Any) -> list[tuple[Any, ...]]:
    return list(itertools.product(*choices))


# TIFF.


@pytest.mark.parametrize(("order", "deflate"), product("<>", [False, True]))
@pytest.mark.parametrize("bits", DEPTHS)
def test_gray_tiff_of_any_bit_depth_is_scaled_by_its_bit_depth(bits: int, order: str, deflate: bool) -> None:
    values = samples(bits)
    data = gray_tiff(values, bits, order=order, deflate=deflate)
    np.testing.assert_array_equal(decode_rgb(data), shown(values, 2**bits - 1))
    np.testing.assert_array_equal(decode_rgb(opened(data)), shown(values, 2**bits - 1))


@pytest.mark.parametrize(("order", "bits"), product("<>", [1, 4, 8, 12, 14, 16]))
def test_gray_tiff_where_zero_is_white_is_inverted(order: str, bits: int) -> None:
    values = samples(bits)
    decoded = decode_rgb(gray_tiff(values, bits, order=order, photometric=0))
    np.testing.assert_array_equal(decoded, 255 - shown(values, 2**bits - 1))


@pytest.mark.parametrize(("order", "deflate", "bits"), product("<>", [False, True], [8, 12, 16]))
def test_signed_tiff_is_black_at_its_lowest_value_and_white_at_its_highest(
    order: str, deflate: bool, bits: int
) -> None:
    values = samples(bits)
    data = gray_tiff(values - 2 ** (bits - 1), bits, order=order, deflate=deflate, sample_format=2)
    np.testing.assert_array_equal(decode_rgb(data), shown(values, 2**bits - 1))


@pytest.mark.parametrize(("order", "bits"), product("<>", [10, 12, 14]))
def test_samples_padded_to_16_bits_are_read(order: str, bits: int) -> None:
    values = samples(bits)
    lines = packed(rows_of(values), 16, order)
    decoded = decode_rgb(tiff([b"".join(lines)], WIDTH, HEIGHT, bits, order=order))
    np.testing.assert_array_equal(decoded, shown(values, 2**bits - 1))


@pytest.mark.parametrize("order", "<>")
def test_max_sample_value_declares_12_bits_in_16(order: str) -> None:
    values = samples(12)
    decoded = decode_rgb(gray_tiff(values, 16, order=order, t281=4095))
    np.testing.assert_array_equal(decoded, shown(values, 4095))


def test_max_sample_value_declares_12_bits_of_each_color() -> None:
    values = samples(12, 3)
    data = gray_tiff(values, 16, channels=3, photometric=2, t281=4095)
    np.testing.assert_array_equal(decode_rgb(data), shown(values, 4095))


@pytest.mark.parametrize("most", [4000, 65_535, 255, 100_000])
def test_max_sample_value_that_is_a_statistic_is_ignored(most: int) -> None:
    values = samples(12)
    np.testing.assert_array_equal(decode_rgb(gray_tiff(values, 16, t281=most)), shown(values, 65_535))


def test_max_sample_value_below_the_largest_pixel_is_ignored() -> None:
    values = samples(16)
    np.testing.assert_array_equal(decode_rgb(gray_tiff(values, 16, t281=4095)), shown(values, 65_535))


@pytest.mark.parametrize(("order", "bits", "deflate"), product("<>", [4, 10, 12, 14, 16], [False, True]))
def test_color_tiff_of_any_bit_depth_keeps_its_colors(order: str, bits: int, deflate: bool) -> None:
    values = samples(bits, 3)
    decoded = decode_rgb(gray_tiff(values, bits, order=order, channels=3, photometric=2, deflate=deflate))
    np.testing.assert_allclose(decoded.astype(int), shown(values, 2**bits - 1), atol=bits == 16)


@pytest.mark.parametrize(("order", "bits", "deflate"), product("<>", [8, 12, 16], [False, True]))
def test_color_tiff_of_separate_planes_is_read(order: str, bits: int, deflate: bool) -> None:
    values = samples(bits, 3)
    planes = [b"".join(packed(rows_of(values[:, :, [channel]]), bits, order)) for channel in range(3)]
    data = tiff(planes, WIDTH, HEIGHT, bits, order=order, channels=3, photometric=2, deflate=deflate, t284=2)
    np.testing.assert_allclose(decode_rgb(data).astype(int), shown(values, 2**bits - 1), atol=bits == 16)


@pytest.mark.parametrize(("deflate", "bits"), product([False, True], [12, 16]))
def test_tiled_tiff_is_read(deflate: bool, bits: int) -> None:
    values = samples(bits)
    whole = np.zeros((16, 48, 1), np.int64)
    whole[:HEIGHT, :WIDTH] = values
    tiles = [b"".join(packed(rows_of(whole[:, left : left + 16]), bits)) for left in (0, 16, 32)]
    data = tiff(tiles, WIDTH, HEIGHT, bits, photometric=0, deflate=deflate, tile=16)
    np.testing.assert_array_equal(decode_rgb(data), 255 - shown(values, 2**bits - 1))


@pytest.mark.parametrize(("order", "channels"), product("<>", [1, 3]))
def test_horizontal_predictor_is_applied(order: str, channels: int) -> None:
    values = samples(16, channels)
    steps = np.diff(values, axis=1, prepend=0)
    photometric = {1: 0, 3: 2}[channels]
    data = gray_tiff(steps, 16, order=order, channels=channels, photometric=photometric, deflate=True, t317=2)
    expected = shown(values, 65_535) if channels == 3 else 255 - shown(values, 65_535)
    np.testing.assert_allclose(decode_rgb(data).astype(int), expected, atol=channels == 3)
    least, most = values.min(), values.max()
    stretched = shown(values - least, most - least) if channels == 3 else shown(most - values, most - least)
    np.testing.assert_array_equal(decode_rgb(data, "range"), stretched)


@pytest.mark.parametrize(("order", "bits", "associated"), product("<>", [8, 16], [False, True]))
def test_gray_tiff_with_alpha_is_composited_on_white(order: str, bits: int, associated: bool) -> None:
    most = 2**bits - 1
    gray, alpha = samples(bits)[:, :, 0], samples(bits, seed=1)[:, :, 0]
    stored = (gray * alpha / most).round().astype(np.int64) if associated else gray
    data = gray_tiff(np.stack([stored, alpha], 2), bits, order=order, channels=2, extra=1 if associated else 2)
    expected = 255 * (gray * alpha / most + most - alpha) / most
    np.testing.assert_allclose(decode_rgb(data)[:, :, 0], expected, atol=2)


def test_unspecified_extra_channel_is_ignored() -> None:
    gray, other = samples(12), samples(12, seed=1)
    data = gray_tiff(np.concatenate([gray, other], 2), 12, channels=2, extra=0)
    np.testing.assert_array_equal(decode_rgb(data), shown(gray, 4095))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("bits", "photometric"), [(12, 1), (16, 1), (16, 0)])
def test_orientation_of_a_deep_tiff_is_applied_once(bits: int, photometric: int, orientation: int) -> None:
    values = samples(bits)
    data = gray_tiff(values, bits, photometric=photometric, t274=orientation)
    stored = shown(values, 2**bits - 1) if photometric else 255 - shown(values, 2**bits - 1)
    as_8_bits = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(stored)).save(as_8_bits, "TIFF", tiffinfo={274: orientation})
    np.testing.assert_array_equal(decode_rgb(data), decode_rgb(as_8_bits.getvalue()))
    np.testing.assert_array_equal(decode_rgb(opened(data)), decode_rgb(as_8_bits.getvalue()))


@pytest.mark.parametrize(("order", "deflate", "sample_format"), product("<>", [False, True], [1, 2]))
def test_32_bit_tiff_is_rejected_unless_its_values_fit_into_16_bits(
    order: str, deflate: bool, sample_format: int
) -> None:
    values = samples(16)
    options: dict[str, Any] = {"order": order, "deflate": deflate, "sample_format": sample_format}
    np.testing.assert_array_equal(decode_rgb(gray_tiff(values, 32, **options)), shown(values, 65_535))
    with pytest.raises(UnsupportedImageError, match="do not fit into 16 bits"):
        decode_rgb(gray_tiff(values + 1, 32, **options))


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.9])
@pytest.mark.parametrize(("bits", "deflate"), product([12, 16], [False, True]))
def test_truncated_deep_tiff_is_reported_as_damaged(bits: int, deflate: bool, fraction: float) -> None:
    whole = gray_tiff(samples(bits), bits, deflate=deflate, photometric=0)
    # The directory is at the end of the file. Move it before the pixels, so that truncation removes pixels.
    (start,) = struct.unpack("<L", whole[4:8])
    data = bytearray(whole[:8] + whole[start:].ljust(start, b"\0") + whole[8:start])
    moved = len(data) - (start - 8)
    with pytest.raises(BadImageError) as exc_info:
        decode_rgb(bytes(data[: moved + int((start - 8) * fraction)]))
    assert not isinstance(exc_info.value, UnsupportedImageError)


def test_tiff_of_a_false_size_is_rejected() -> None:
    with pytest.raises(BadImageError):
        decode_rgb(tiff([bytes(100)], 30_000, 30_000, 12))


# PNG.


def test_transparent_value_of_a_16_bit_gray_png_becomes_white_as_for_8_bits() -> None:
    gray = samples(8)
    gray[2, 3] = gray[3, 4] = 77
    twin = deep_png(rows_of(gray), WIDTH, 0, bits=8, tRNS=struct.pack(">H", 77))
    deep = deep_png(rows_of(gray * 257), WIDTH, 0, tRNS=struct.pack(">H", 77 * 257))
    decoded = decode_rgb(deep)
    assert decoded[2, 3].tolist() == decoded[3, 4].tolist() == [255] * 3
    np.testing.assert_array_equal(decoded, decode_rgb(twin))
    np.testing.assert_array_equal(decode_rgb(opened(deep)), decode_rgb(twin))


def test_values_next_to_the_transparent_value_are_opaque() -> None:
    decoded = decode_rgb(deep_png([[1000, 1001, 999]], 3, 0, tRNS=struct.pack(">H", 1000)))
    assert decoded[0, :, 0].tolist() == [255, 4, 4]


def test_only_the_exact_transparent_color_of_a_16_bit_png_becomes_white() -> None:
    data = deep_png([[1000, 2000, 3000, 1000, 2000, 3001]], 2, 2, tRNS=struct.pack(">HHH", 1000, 2000, 3000))
    assert decode_rgb(data)[0].tolist() == [[255, 255, 255], [4, 8, 12]]


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_transparent_value_of_a_png_of_less_than_8_bits_becomes_white(bits: int) -> None:
    most = 2**bits - 1
    values = list(range(most + 1))
    decoded = decode_rgb(deep_png([values], len(values), 0, bits, tRNS=struct.pack(">H", most - 1)))
    expected = [255 if value == most - 1 else round(value * 255 / most) for value in values]
    assert decoded[0, :, 0].tolist() == expected


def test_significant_bits_of_a_png_are_ignored() -> None:
    # Samples are scaled to the full 16 bits, independent of sBIT (PNG, third edition, 11.3.2.7 and 12.4).
    values = np.array([0, 0x800, 0xFFF]) << 4
    assert decode_rgb(deep_png([values.tolist()], 3, 0, sBIT=b"\x0c"))[0, :, 0].tolist() == [0, 128, 255]


def test_loaded_tiff_where_zero_is_white_decodes_as_before_loading() -> None:
    values = samples(16)
    image = opened(gray_tiff(values, 16, photometric=0, t274=1))
    twin = decode_rgb(image)
    image.load()
    np.testing.assert_array_equal(decode_rgb(image), twin)
