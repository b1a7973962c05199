"""Thumbnails of dataset images, and contact sheets of them with captions."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

SIDE = 256  # pixels, the longer side of a thumbnail
PIXELATED_SIDE = 64  # pixels; images up to this size are enlarged without interpolation
COLUMNS = 6
GAP = 12
FONT_SIZE = 19
LINE = 24
CHARACTERS = 24
INK = "#1f2933"


class Picture(NamedTuple):
    """An image for an HTML page: a data URI, and whether to enlarge it without interpolation."""

    uri: str
    pixelated: bool


def shrink(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Reduce an image, uint8 (h, w, 3), to at most 256 pixels on its longer side; keep smaller ones as they are."""
    if max(image.shape[:2]) <= SIDE:
        return image
    picture = Image.fromarray(image)
    picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    return np.asarray(picture)


def embed(image: NDArray[np.uint8]) -> Picture:
    """Encode an image, uint8 (h, w, 3), for a page: up to 64 pixels as PNG (lossless), larger ones as JPEG."""
    small = max(image.shape[:2]) <= PIXELATED_SIDE
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG" if small else "JPEG", quality=88)
    return Picture(data_uri(buffer.getvalue(), "png" if small else "jpeg"), pixelated=small)


def data_uri(content: bytes, kind: str) -> str:
    """Return the bytes of an image file as a data URI; `kind` is png or jpeg."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"


def contact_sheet(images: Sequence[NDArray[np.uint8]], captions: Sequence[str]) -> bytes:
    """Arrange images in rows of six, each above its caption, and return the sheet as a PNG file.

    Every image is scaled to 256 pixels on its longer side. A row is as high as its highest image.

    Args:
        images: uint8 (h, w, 3), of any sizes.
        captions: One for each image. Lines are separated by newlines and cut after 24 characters.
    """
    pictures = [_fitted(image) for image in images]
    rows = [pictures[start : start + COLUMNS] for start in range(0, len(pictures), COLUMNS)]
    heights = [max(picture.height for picture in row) for row in rows]
    text_height = max(caption.count("\n") + 1 for caption in captions) * LINE + GAP
    size = (min(COLUMNS, len(images)) * (SIDE + GAP) + GAP, sum(heights) + len(rows) * text_height + GAP)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for place, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        row, column = divmod(place, COLUMNS)
        left = GAP + column * (SIDE + GAP)
        bottom = GAP + sum(heights[: row + 1]) + row * text_height
        sheet.paste(picture, (left + (SIDE - picture.width) // 2, bottom - picture.height))
        text = "\n".join(printable(line, CHARACTERS) for line in caption.split("\n"))
        middle = (left + SIDE // 2, bottom + LINE // 4)
        draw.multiline_text(middle, text, fill=INK, font=_font(), anchor="ma", align="center")
    buffer = io.BytesIO()
    sheet.save(buffer, format="PNG")
    return buffer.getvalue()


def printable(text: str, width: int) -> str:
    """Replace control characters and lone surrogates (file names that are not UTF-8) by "?"; cut to `width`."""
    drawn = "".join(character if character.isprintable() else "?" for character in text)
    return drawn if len(drawn) <= width else f"{drawn[: width - 1]}…"


def _fitted(image: NDArray[np.uint8]) -> Image.Image:
    """Scale an image to 256 pixels on its longer side, a small one by an integer factor without interpolation."""
    picture = Image.fromarray(image)
    longer = max(picture.size)
    small = longer <= PIXELATED_SIDE
    scale = SIDE // longer if small else SIDE / longer
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(size, Image.Resampling.NEAREST if small else Image.Resampling.LANCZOS)


@cache
def _font() -> ImageFont.FreeTypeFont:
    """Return the font of the figures, which covers more scripts than the default font of Pillow."""
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"), FONT_SIZE)
