"""Unusual but valid images: the service must predict every image that an image viewer shows."""

from __future__ import annotations

import numpy as np
import PIL
from packaging.version import Version
from PIL import Image

from tests.helpers.hostile_uploads import Files, bmp, encoded, picture, png, progressive_jpeg, sound
from tests.helpers.shapes import draw_shape

ORIENTATION = 0x0112  # EXIF


def modes() -> Files:
    """Return one image in every pixel format."""
    image = picture()
    gray16 = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    gray_and_alpha = image.convert("LA")
    gray_and_alpha.putalpha(image.getchannel("R"))
    transparent = image.copy()
    transparent.putalpha(image.getchannel("G"))
    files = {
        "cmyk jpeg": encoded(image.convert("CMYK"), "JPEG"),
        "gray jpeg": encoded(image.convert("L"), "JPEG"),
        "16-bit png": encoded(gray16, "PNG"),
        "16-bit tiff": encoded(gray16, "TIFF"),
        "cmyk tiff": encoded(image.convert("CMYK"), "TIFF"),
        "gray png": encoded(image.convert("L"), "PNG"),
        "gray png with alpha": encoded(gray_and_alpha, "PNG"),
        "black and white png": encoded(image.convert("1"), "PNG"),
        "palette png": encoded(image.quantize(16), "PNG"),
        "palette png with a transparent color": encoded(image.quantize(16), "PNG", transparency=3),
        "rgba png": encoded(transparent, "PNG"),
        "rgba webp": encoded(transparent, "WEBP"),
        "palette bmp": encoded(image.quantize(16), "BMP"),
        "black and white tiff": encoded(image.convert("1"), "TIFF", compression="group4"),
        "progressive jpeg of many scans": progressive_jpeg(64, scans=50),
    }
    if Version(PIL.__version__) >= Version("13"):  # earlier ones cannot decode it
        files["run-length encoded bmp"] = bmp(8, 2, 1, b"\x08\x01\0\0\x04\0\x04\x01\0\1")
    return files


def several_frames() -> Files:
    """Return files of several images, of which the first is decoded."""
    others = [draw_shape(kind, 3, side=64) for kind in ("square", "stripes")]
    options = {"save_all": True, "append_images": others}
    thumbnail = encoded(others[0].resize((16, 16)), "JPEG")
    return {
        "animated gif": encoded(picture(), "GIF", **options),
        "animated webp": encoded(picture(), "WEBP", **options),
        "animated png": encoded(picture(), "PNG", **options),
        "tiff of pages": encoded(picture(), "TIFF", **options),
        "mpo": encoded(picture(), "MPO", **options),
        "jpeg with a video appended": sound()["jpeg"] + b"\0\0\0\x18ftypmp42" + bytes(10_000),
        "jpeg with a thumbnail": encoded(picture(), "JPEG", comment=thumbnail),
    }


def turned() -> Files:
    """Return one image with each EXIF orientation."""
    files = {}
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        for kind in ("JPEG", "PNG", "WEBP", "TIFF"):
            files[f"{kind}, orientation {orientation}"] = encoded(picture(), kind, exif=exif)
    return files


def extreme_sizes() -> Files:
    """Return an image of a single pixel and very elongated images."""
    sizes = [(1, 1), (3000, 1), (1, 3000), (4000, 3), (2, 16_000)]
    files = {}
    for size in sizes:
        image = picture().resize(size)
        for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"):
            files[f"{kind} of {size}"] = encoded(image, kind)
    return files | {"png of a million columns": png(1_000_000, 1), "png of a million rows": png(1, 1_000_000)}
