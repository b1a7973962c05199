"""Small pictures of shapes, which a small net can learn to tell apart."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

SHAPES = ("circle", "square", "stripes")


def draw_shape(kind: str, seed: int, side: int = 40) -> Image.Image:
    """Draw a shape of random place, size and colors: a picture that a small net can learn to name."""
    random = np.random.default_rng([seed, SHAPES.index(kind)])
    paper, ink = (tuple(int(value) for value in random.integers(low, low + 100, 3)) for low in (0, 150))
    image = Image.new("RGB", (side, side + side // 5), paper)
    draw = ImageDraw.Draw(image)
    left, top, size = (int(value) for value in random.integers(side // 8, side // 3, 3))
    box = (left, top, left + size + side // 3, top + size + side // 3)
    if kind == "circle":
        draw.ellipse(box, fill=ink)
    elif kind == "square":
        draw.rectangle(box, fill=ink)
    else:
        for offset in range(0, side, 6):
            draw.line((offset, 0, offset, side * 2), fill=ink, width=2)
    return image


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


EMPTY_PNG = _png(Image.new("RGB", (1, 1)))


def write_shapes(root: Path, per_class: int, seed: int = 0, suffix: str = ".jpg") -> Path:
    """Write `per_class` images of each shape as class folders."""
    for kind in SHAPES:
        folder = root / kind
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(per_class):
            draw_shape(kind, seed * 10_000 + number).save(folder / f"{number:03}{suffix}", quality=90)
    return root
