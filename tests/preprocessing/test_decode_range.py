"""Decoding of more than 8 bits per channel, scaled by the range of the image."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from mlops_img.preprocessing import decode
from mlops_img.preprocessing.decode import decode_rgb
from tests.helpers.deep_files import WIDTH, deep_png, gray_tiff, opened, rows_of, samples, shown

# pytest resets the warning filters for each test, which removes the filter that decode.py sets.
pytestmark = pytest.mark.filterwarnings("ignore:::PIL")


def stretched(values: NDArray[np.int64]) -> NDArray[np.uint8]:
    return shown(values - values.min(), int(values.max() - values.min()))


@pytest.mark.parametrize(("color", "channels"), [(0, 1), (2, 3)])
def test_range_stretches_a_png_from_its_smallest_to_its_largest_value(color: int, channels: int) -> None:
    values = samples(12, channels) // 2 + 300
    data = deep_png(rows_of(values), WIDTH, color)
    np.testing.assert_array_equal(decode_rgb(data, "range"), stretched(values))
    np.testing.assert_array_equal(decode_rgb(opened(data), "range"), stretched(values))
    assert decode_rgb(data).max() <= 10


@pytest.mark.parametrize(("color", "channels"), [(4, 2), (6, 4)])
def test_range_does_not_change_the_alpha_of_a_png(color: int, channels: int) -> None:
    values = samples(12, channels)
    values[:, :, -1] = 65_535
    values[1, 1, -1] = 0
    decoded = decode_rgb(deep_png(rows_of(values), WIDTH, color), "range")
    expected = stretched(values[:, :, :-1]).copy()
    expected[1, 1] = 255
    np.testing.assert_array_equal(decoded, expected)


@pytest.mark.parametrize(
    ("bits", "options"),
    [(16, {}), (16, {"order": ">"}), (12, {}), (16, {"sample_format": 2}), (16, {"t281": 4095})],
    ids=str,
)
def test_range_stretches_a_gray_tiff(bits: int, options: dict[str, Any]) -> None:
    values = samples(10) + 100
    np.testing.assert_array_equal(decode_rgb(gray_tiff(values, bits, **options), "range"), stretched(values))


def test_range_stretches_a_color_tiff() -> None:
    values = samples(10, 3) + 100
    data = gray_tiff(values, 16, channels=3, photometric=2)
    np.testing.assert_array_equal(decode_rgb(data, "range"), stretched(values))


def test_range_stretches_an_image_in_memory() -> None:
    values = samples(10) + 100
    image = Image.fromarray(values[:, :, 0].astype(np.uint16))
    np.testing.assert_array_equal(decode_rgb(image, "range"), stretched(values))


def test_range_makes_an_image_of_a_single_value_black() -> None:
    assert not decode_rgb(Image.fromarray(np.full((3, 3), 900, np.uint16)), "range").any()


def test_range_does_not_change_8_bit_images() -> None:
    image = Image.fromarray(np.array([[10, 20]], np.uint8))
    assert decode_rgb(image, "range")[0, :, 0].tolist() == [10, 20]


@pytest.mark.parametrize("how", ["declared", "range"])
def test_deep_images_converted_in_strips_have_the_same_pixels(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    values = samples(12, 3)
    files = [gray_tiff(samples(12), 12), deep_png(rows_of(values), WIDTH, 2, tRNS=bytes(6))]
    whole = [decode_rgb(data, how) for data in files]
    monkeypatch.setattr(decode, "STRIP", 2 * WIDTH)
    for data, expected in zip(files, whole, strict=True):
        np.testing.assert_array_equal(decode_rgb(data, how), expected)


@pytest.mark.parametrize("bits", [2, 4])
def test_range_does_not_change_images_of_less_than_8_bits(bits: int) -> None:
    png = deep_png([[1, 2]], 2, 0, bits, tRNS=struct.pack(">H", 3))
    for data in (png, gray_tiff(samples(5) // 2, 5), gray_tiff(samples(7) // 2 - 64, 8, sample_format=2)):
        np.testing.assert_array_equal(decode_rgb(data, "range"), decode_rgb(data))
