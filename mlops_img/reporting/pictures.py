"""Images of a data set made ready for people to look at: small, and side by side with captions."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

SIDE = 256  # pixels, the longer side of a picture, whatever the photo's size
PIXELATED_SIDE = 64  # up to this size the single pixels are to be seen
COLUMNS = 6
GAP = 24
FONT_SIZE = 19
LINE = 24
LETTERS = 24
INK = "#1f2933"


class Picture(NamedTuple):
    """An image as a page shows it: a data URI, and whether its pixels should stay sharp squares."""

    uri: str
    pixelated: bool


def shrink(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the image, uint8 (h, w, 3), made no larger than 256 pixels on its longer side."""
    if max(image.shape[:2]) <= SIDE:
        return image
    picture = Image.fromarray(image)
    picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    return np.asarray(picture)


def embed(image: NDArray[np.uint8]) -> Picture:
    """Return an image, uint8 (h, w, 3), for a page: small ones exactly (PNG), larger ones as JPEG."""
    small = max(image.shape[:2]) <= PIXELATED_SIDE
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG" if small else "JPEG", quality=88)
    return Picture(data_uri(buffer.getvalue(), "png" if small else "jpeg"), pixelated=small)


def data_uri(content: bytes, kind: str) -> str:
    """Return an image file as text that a page can hold; `kind` is png or jpeg."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"


def contact_sheet(images: Sequence[NDArray[np.uint8]], captions: Sequence[str]) -> bytes:
    """Lay images out in rows of six, each over its caption, and return the sheet as a PNG file.

    Args:
        images: uint8 (h, w, 3), of any sizes.
        captions: one for each image; lines end in a newline and are cut after 24 letters.
    """
    lines = max(caption.count("\n") + 1 for caption in captions)
    columns, rows = min(COLUMNS, len(images)), math.ceil(len(images) / COLUMNS)
    width, height = SIDE + GAP, SIDE + lines * LINE + GAP
    sheet = Image.new("RGB", (columns * width + GAP, rows * height + GAP), "white")
    draw = ImageDraw.Draw(sheet)
    for place, (image, caption) in enumerate(zip(images, captions, strict=True)):
        row, column = divmod(place, COLUMNS)
        left, top = GAP + column * width, GAP + row * height
        picture = _fitted(image)
        sheet.paste(picture, (left + (SIDE - picture.width) // 2, top + SIDE - picture.height))
        text = "\n".join(printable(line, LETTERS) for line in caption.split("\n"))
        middle = (left + SIDE // 2, top + SIDE + LINE // 4)
        draw.multiline_text(middle, text, fill=INK, font=_font(), anchor="ma", align="center")
    buffer = io.BytesIO()
    sheet.save(buffer, format="PNG")
    return buffer.getvalue()


def printable(text: str, width: int) -> str:
    """Return text that can be drawn, cut to `width` letters.

    Control characters and halves of surrogate pairs (file names that are not UTF-8) become "?".
    """
    drawn = "".join(letter if letter.isprintable() else "?" for letter in text)
    return drawn if len(drawn) <= width else f"{drawn[: width - 1]}…"


def _fitted(image: NDArray[np.uint8]) -> Image.Image:
    picture = Image.fromarray(shrink(image))
    longer = max(picture.size)
    if longer > PIXELATED_SIDE:
        return picture
    times = SIDE // longer
    return picture.resize((picture.width * times, picture.height * times), Image.Resampling.NEAREST)


@cache
def _font() -> ImageFont.FreeTypeFont:
    """Return the font of the figures, which knows more scripts than Pillow's own."""
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"), FONT_SIZE)
