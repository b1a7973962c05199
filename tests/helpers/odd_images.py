"""Images that are odd but right: whatever a viewer shows must be predicted."""

from __future__ import annotations

import numpy as np
from PIL import Image

from tests.helpers.hostile_uploads import Files, bmp, encoded, picture, png, progressive_jpeg, sound
from tests.helpers.shapes import draw_shape

ORIENTATION = 0x0112  # EXIF


def modes() -> Files:
    """Return the picture in every kind of pixels."""
    image = picture()
    gray16 = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    gray_and_alpha = image.convert("LA")
    gray_and_alpha.putalpha(image.getchannel("R"))
    see_through = image.copy()
    see_through.putalpha(image.getchannel("G"))
    return {
        "cmyk jpeg": encoded(image.convert("CMYK"), "JPEG"),
        "gray jpeg": encoded(image.convert("L"), "JPEG"),
        "16-bit png": encoded(gray16, "PNG"),
        "16-bit tiff": encoded(gray16, "TIFF"),
        "cmyk tiff": encoded(image.convert("CMYK"), "TIFF"),
        "gray png": encoded(image.convert("L"), "PNG"),
        "gray png with alpha": encoded(gray_and_alpha, "PNG"),
        "black and white png": encoded(image.convert("1"), "PNG"),
        "palette png": encoded(image.quantize(16), "PNG"),
        "palette png with a hole": encoded(image.quantize(16), "PNG", transparency=3),
        "rgba png": encoded(see_through, "PNG"),
        "rgba webp": encoded(see_through, "WEBP"),
        "palette bmp": encoded(image.quantize(16), "BMP"),
        "bmp of run lengths": bmp(8, 2, 1, b"\x08\x01\0\0\x04\0\x04\x01\0\1"),
        "black and white tiff": encoded(image.convert("1"), "TIFF", compression="group4"),
        "progressive jpeg of many scans": progressive_jpeg(64, scans=50),
    }


def several_frames() -> Files:
    """Return files with more than one picture, of which the first counts."""
    others = [draw_shape(kind, 3, side=64) for kind in ("square", "stripes")]
    options = {"save_all": True, "append_images": others}
    thumbnail = encoded(others[0].resize((16, 16)), "JPEG")
    return {
        "animated gif": encoded(picture(), "GIF", **options),
        "animated webp": encoded(picture(), "WEBP", **options),
        "animated png": encoded(picture(), "PNG", **options),
        "tiff of pages": encoded(picture(), "TIFF", **options),
        "mpo": encoded(picture(), "MPO", **options),
        "jpeg with a film behind it": sound()["jpeg"] + b"\0\0\0\x18ftypmp42" + bytes(10_000),
        "jpeg with a thumbnail in it": encoded(picture(), "JPEG", comment=thumbnail),
    }


def turned() -> Files:
    """Return the picture with each of EXIF's orientations."""
    files = {}
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        for kind in ("JPEG", "PNG", "WEBP", "TIFF"):
            files[f"{kind}, orientation {orientation}"] = encoded(picture(), kind, exif=exif)
    return files


def extreme_sizes() -> Files:
    """Return images of one pixel, and some that are nearly a line."""
    sizes = [(1, 1), (3000, 1), (1, 3000), (4000, 3), (2, 16_000)]
    files = {}
    for size in sizes:
        image = picture().resize(size)
        for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"):
            files[f"{kind} of {size}"] = encoded(image, kind)
    return files | {"png of a million columns": png(1_000_000, 1), "png of a million rows": png(1, 1_000_000)}
