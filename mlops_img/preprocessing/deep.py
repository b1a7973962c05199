"""Convert images of more than 8 bits per channel to 8 bits, by the declared bit depth or by their own range."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile, PngImagePlugin, TiffImagePlugin

from mlops_img.preprocessing import tiff

# Modes of more than 8 bits per channel; Pillow's own conversion clips values above 255 to white.
DEEP_MODES = frozenset({"I", "I;16", "I;16L", "I;16B", "I;16N"})
WHITE_16 = 65535
# Pillow's raw modes of PNGs with gray values of 2 and 4 bits, and the factor by which it scales the values.
GRAY_STEPS = {"L;2": 85, "L;4": 17}


@dataclass(frozen=True)
class Samples:
    """The samples of an image and how to interpret them.

    Attributes:
        height, width: in pixels, as stored.
        rows: returns the samples of the rows [top, bottom) without alpha, integers (rows, width, channels).
        black, white: the values of black and white; white is less than black if 0 is white.
        alpha: returns the alpha of the rows [top, bottom), uint16 (rows, width); None without an alpha channel.
        opaque: the alpha value of opaque pixels.
        associated: whether the colors are premultiplied by alpha.
        transparent: the transparent color, one value per channel; None if there is none.
        orientation: the EXIF orientation still to be applied; None if Pillow has to be asked for it.
        is_checked: whether all samples are known to fit into 16 bits.
    """

    height: int
    width: int
    rows: Callable[[int, int], NDArray[Any]]
    black: int
    white: int
    alpha: Callable[[int, int], NDArray[Any]] | None = None
    opaque: int = WHITE_16
    associated: bool = False
    transparent: tuple[int, ...] | None = None
    orientation: int | None = None
    is_checked: bool = True

    @property
    def is_deep(self) -> bool:
        """Whether there are more than 8 bits per channel."""
        return abs(self.white - self.black) > 255

    @property
    def declares_less_than_16_bits(self) -> bool:
        """Whether 16-bit samples can exceed the white that the file declares."""
        return abs(self.white - self.black) < WHITE_16

    def range(self, at_once: int) -> tuple[int, int]:
        """Return the smallest and the largest sample, reading `at_once` rows at a time."""
        parts = [self.rows(top, min(top + at_once, self.height)) for top in range(0, self.height, at_once)]
        return min(int(part.min()) for part in parts), max(int(part.max()) for part in parts)

    def with_range(self, least: int, most: int) -> Samples:
        """Return the samples with `least` as black and `most` as white, or the reverse if 0 is white."""
        if self.white < self.black:
            return replace(self, black=most, white=least)
        return replace(self, black=least, white=most)

    def with_room_for(self, most: int) -> Samples:
        """Return the samples as 16-bit samples if the largest one, `most`, exceeds the declared bit depth."""
        is_right = most <= max(self.black, self.white)
        return self if is_right else self.with_range(min(self.black, self.white), WHITE_16)

    def to_rgb(self, top: int, bottom: int) -> NDArray[np.uint8]:
        """Return the rows as RGB composited on white, uint8 (rows, width, 3)."""
        values = self.rows(top, bottom).astype(np.int32)
        colors = _in_8_bits(self.black, self.white)[values - min(self.black, self.white)]
        if self.alpha is not None:
            share = (self.alpha(top, bottom) / np.float32(self.opaque))[:, :, None]
            seen = colors if self.associated else colors * share
            colors = (seen + 255 * (1 - share)).round().clip(0, 255).astype(np.uint8)
        if self.transparent is not None:
            colors[(values == self.transparent).all(2)] = 255
        return np.broadcast_to(colors, (*colors.shape[:2], 3))


@lru_cache(maxsize=8)
def _in_8_bits(black: int, white: int) -> NDArray[np.uint8]:
    """Return a lookup table from the values between `black` and `white` to 8 bits; a single value becomes black."""
    values = np.arange(abs(white - black) + 1)
    shades = (values * (255 / max(1, abs(white - black)))).round().astype(np.uint8)
    return shades if white >= black else shades[::-1]


def deep_samples(image: Image.Image, data: bytes | None, how: str) -> Samples | None:
    """Return the samples of an image that Pillow does not convert to 8 bits as image viewers do; None for others.

    Args:
        image: an opened image, loaded or not.
        data: the bytes of its file if it is not loaded.
        how: which value is white: "declared" or "range", see `decode.decode_rgb`.
    """
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        form = tiff.layout(image.tag_v2)
        if form is not None:
            return _of_tiff(image, data, form, how)
    if isinstance(image, PngImagePlugin.PngImageFile) and image.tile and data is not None:
        return _of_png(image, data, how)
    return _of_mode(image) if image.mode in DEEP_MODES else None


def _of_mode(image: Image.Image, white: int = WHITE_16) -> Samples:
    """Return the samples of a gray image as loaded by Pillow, with the value that is transparent, if any."""

    def rows(top: int, bottom: int) -> NDArray[Any]:
        return np.asarray(image.crop((0, top, image.width, bottom)))[:, :, None]

    image.load()
    key = image.info.get("transparency")
    transparent = (key,) if isinstance(key, int) else None
    return Samples(
        image.height, image.width, rows, black=0, white=white, transparent=transparent, is_checked=image.mode != "I"
    )


def _of_tiff(image: TiffImagePlugin.TiffImageFile, data: bytes | None, form: tiff.Layout, how: str) -> Samples | None:
    is_known = not image.tile or _raw_mode(image) != tiff.NOT_FOR_PILLOW
    black, white = form.declared_range
    if form.photometric == tiff.WHITE_IS_ZERO:
        black, white = white, black
    if data is None or (is_known and form.is_read_by_pillow):
        if image.mode in DEEP_MODES:
            return replace(_of_mode(image), black=black, white=white, is_checked=form.bits <= 16)
        if data is None or form.bits <= 8 or (how == "declared" and form.most is None):
            return None
    values = tiff.read_samples(data, image.tag_v2, form)
    colors = values if form.extra is None else values[:, :, :-1]
    has_alpha = form.extra in (tiff.ASSOCIATED, tiff.UNASSOCIATED)
    return Samples(
        values.shape[0],
        values.shape[1],
        rows=lambda top, bottom: colors[top:bottom],
        black=black,
        white=white,
        alpha=(lambda top, bottom: values[top:bottom, :, -1]) if has_alpha else None,
        opaque=2**form.bits - 1,
        associated=form.extra == tiff.ASSOCIATED,
        orientation=image.tag_v2.get(ExifTags.Base.Orientation, 1),
        is_checked=form.bits <= 16,
    )


def _of_png(image: PngImagePlugin.PngImageFile, data: bytes, how: str) -> Samples | None:
    raw_mode, key = _raw_mode(image), image.info.get("transparency")
    if raw_mode == "I;16B":
        return _of_mode(image)
    if raw_mode in GRAY_STEPS and key is not None:
        # Pillow scales the values to 0 to 255, but not the transparent value.
        return replace(_of_mode(image, 255), transparent=(key * GRAY_STEPS[raw_mode],))
    if not raw_mode.endswith(";16B") or (how == "declared" and key is None):
        return None
    if raw_mode == "LA;16B":
        values = _png_as(data, "RGBA").view(">u2").astype(np.uint16)
    else:  # each decoding gives one byte of each sample
        high, low = _png_as(data, raw_mode), _png_as(data, raw_mode.replace(";16B", ";16L"))
        values = high.astype(np.uint16)
        values <<= 8
        values |= low
    has_alpha = values.shape[2] in (2, 4)
    colors = values[:, :, :-1] if has_alpha else values
    return Samples(
        image.height,
        image.width,
        rows=lambda top, bottom: colors[top:bottom],
        black=0,
        white=WHITE_16,
        alpha=(lambda top, bottom: values[top:bottom, :, -1]) if has_alpha else None,
        transparent=key,
    )


def _raw_mode(image: ImageFile.ImageFile) -> str:
    """Return the raw mode in which Pillow will decode a file that is not loaded yet."""
    arguments = image.tile[0].args
    return str(arguments[0]) if isinstance(arguments, tuple) else str(arguments)


def _png_as(data: bytes, raw_mode: str) -> NDArray[np.uint8]:
    """Decode a PNG with another raw mode than Pillow's choice."""
    image = Image.open(io.BytesIO(data), formats=["PNG"])
    image.tile = [part._replace(args=raw_mode) for part in image.tile]
    return np.asarray(image)
