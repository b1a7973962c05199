"""Images of more than 8 bits a channel, brought to 8 bits: by the depth that the file declares, or their own range."""

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

# Modes that hold more than 8 bits a channel and that Pillow's own conversion would clip to white.
DEEP_MODES = frozenset({"I", "I;16", "I;16L", "I;16B", "I;16N"})
WHITE_16 = 65535
# How Pillow understands PNG's gray values of 2 and 4 bits, and what it multiplies them by.
GRAY_STEPS = {"L;2": 85, "L;4": 17}


@dataclass(frozen=True)
class Samples:
    """The samples of an image, and what they mean.

    Attributes:
        height, width: in pixels, as stored.
        rows: the samples of the rows from one to before another: integers (rows, width, channels), alpha left out.
        black, white: the values that are shown as such; white is the smaller one where 0 is white.
        alpha: the same rows' alpha, uint16 (rows, width); None where there is none.
        opaque: the alpha of what is opaque.
        associated: the colors are multiplied by alpha already.
        transparent: a color, one value a channel, that is transparent; None where there is none.
        orientation: EXIF's, where the samples are as stored; None where it is to be asked of Pillow.
        is_checked: no sample can lie outside 16 bits.
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
        """Whether there are more than 8 bits a channel."""
        return abs(self.white - self.black) > 255

    @property
    def declares_less_than_16_bits(self) -> bool:
        """Whether there may be samples beyond the white that the file declares."""
        return abs(self.white - self.black) < WHITE_16

    def range(self, at_once: int) -> tuple[int, int]:
        """Return the smallest and the largest sample, looking at so many rows at once."""
        parts = [self.rows(top, min(top + at_once, self.height)) for top in range(0, self.height, at_once)]
        return min(int(part.min()) for part in parts), max(int(part.max()) for part in parts)

    def with_range(self, least: int, most: int) -> Samples:
        """Return the samples with these values as black and white, or as white and black where 0 is white."""
        if self.white < self.black:
            return replace(self, black=most, white=least)
        return replace(self, black=least, white=most)

    def with_room_for(self, most: int) -> Samples:
        """Return the samples as 16-bit ones if the largest shows that the declared depth is wrong."""
        is_right = most <= max(self.black, self.white)
        return self if is_right else self.with_range(min(self.black, self.white), WHITE_16)

    def to_rgb(self, top: int, bottom: int) -> NDArray[np.uint8]:
        """Return the rows as RGB on white, uint8 (rows, width, 3)."""
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
    """Return what the values from the smaller to the larger of both become; of one value alone, black."""
    values = np.arange(abs(white - black) + 1)
    shades = (values * (255 / max(1, abs(white - black)))).round().astype(np.uint8)
    return shades if white >= black else shades[::-1]


def deep_samples(image: Image.Image, data: bytes | None, how: str) -> Samples | None:
    """Return the samples of an image that Pillow does not bring to 8 bits as a viewer does; None of others.

    Args:
        image: opened, and loaded or not.
        data: of its file, where it is not loaded.
        how: what white is: "declared" or "range".
    """
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        form = tiff.layout(image.tag_v2)
        if form is not None:
            return _of_tiff(image, data, form, how)
    if isinstance(image, PngImagePlugin.PngImageFile) and image.tile and data is not None:
        return _of_png(image, data, how)
    return _of_mode(image) if image.mode in DEEP_MODES else None


def _of_mode(image: Image.Image, white: int = WHITE_16) -> Samples:
    """Return the samples that Pillow holds of a gray image, laid on white where one value is transparent."""

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
        # Pillow spreads the values over 0 to 255, and forgets the transparent one.
        return replace(_of_mode(image, 255), transparent=(key * GRAY_STEPS[raw_mode],))
    if not raw_mode.endswith(";16B") or (how == "declared" and key is None):
        return None
    if raw_mode == "LA;16B":
        values = _png_as(data, "RGBA").view(">u2").astype(np.uint16)
    else:  # the decoder gives one byte of each sample at a time
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
    """Return how Pillow is going to understand the bytes of a file that is not loaded yet."""
    arguments = image.tile[0].args
    return str(arguments[0]) if isinstance(arguments, tuple) else str(arguments)


def _png_as(data: bytes, raw_mode: str) -> NDArray[np.uint8]:
    """Decode a PNG whose samples are to be understood in another way."""
    image = Image.open(io.BytesIO(data), formats=["PNG"])
    image.tile = [part._replace(args=raw_mode) for part in image.tile]
    return np.asarray(image)
