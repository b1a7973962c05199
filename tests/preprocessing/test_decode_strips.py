"""Large images are converted in strips, with the same result as in one piece."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from mlops_img.preprocessing import decode
from mlops_img.preprocessing.decode import BadImageError, decode_rgb

WIDTH, HEIGHT = 37, 23
STRIPS = (1, WIDTH, 5 * WIDTH + 3)  # one row, one row, five rows


def _noise(*shape: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def _palette_with_transparency() -> Image.Image:
    image = Image.fromarray(_noise(HEIGHT, WIDTH, 3)).quantize(16)
    image.info["transparency"] = bytes(range(0, 256, 16))
    return image


IMAGES: dict[str, Callable[[], Image.Image]] = {
    "1": lambda: Image.fromarray(_noise(HEIGHT, WIDTH)).convert("1"),
    "L": lambda: Image.fromarray(_noise(HEIGHT, WIDTH)),
    "L with one transparent gray": lambda: _transparent(Image.fromarray(_noise(HEIGHT, WIDTH) // 64), 2),
    "LA": lambda: Image.fromarray(_noise(HEIGHT, WIDTH, 4), "RGBA").convert("LA"),
    "P with transparency": _palette_with_transparency,
    "RGB": lambda: Image.fromarray(_noise(HEIGHT, WIDTH, 3)),
    "RGBA": lambda: Image.fromarray(_noise(HEIGHT, WIDTH, 4)),
    "CMYK": lambda: Image.fromarray(_noise(HEIGHT, WIDTH, 3)).convert("CMYK"),
    "YCbCr": lambda: Image.fromarray(_noise(HEIGHT, WIDTH, 3)).convert("YCbCr"),
    "I": lambda: Image.fromarray(_noise(HEIGHT, WIDTH).astype(np.int32) * 257),
    "I;16": lambda: Image.fromarray(_noise(HEIGHT, WIDTH, 2).view("<u2")[:, :, 0]),
    "I;16B": lambda: Image.fromarray(_noise(HEIGHT, WIDTH, 2).view(">u2")[:, :, 0]),
}


def _transparent(image: Image.Image, value: int) -> Image.Image:
    image.info["transparency"] = value
    return image


@pytest.mark.parametrize("kind", IMAGES)
def test_images_converted_in_strips_have_the_same_pixels(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    image = IMAGES[kind]()
    whole = decode_rgb(image)
    assert whole.shape == (HEIGHT, WIDTH, 3)
    assert len(np.unique(whole)) > 1
    for strip in STRIPS:
        monkeypatch.setattr(decode, "STRIP", strip)
        np.testing.assert_array_equal(decode_rgb(image), whole)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "GIF", "WEBP"])
def test_files_converted_in_strips_have_the_same_pixels(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.BytesIO()
    Image.fromarray(_noise(HEIGHT, WIDTH, 4)).save(file, kind)
    whole = decode_rgb(file.getvalue())
    monkeypatch.setattr(decode, "STRIP", WIDTH)
    np.testing.assert_array_equal(decode_rgb(file.getvalue()), whole)


def test_value_outside_16_bits_is_found_in_the_last_strip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "STRIP", WIDTH)
    values = np.zeros((HEIGHT, WIDTH), np.int32)
    values[-1, -1] = 65536
    with pytest.raises(BadImageError, match="65536 do not fit into 16 bits"):
        decode_rgb(Image.fromarray(values))


def test_every_16_bit_value_is_rounded() -> None:
    values = np.arange(2**16, dtype=np.uint16).reshape(256, 256)
    expected = (values.astype(np.float64) / 257).round()
    np.testing.assert_array_equal(decode_rgb(Image.fromarray(values))[:, :, 0], expected)
