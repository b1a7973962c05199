"""Image files and Pillow images to RGB uint8, whatever they were."""

from __future__ import annotations

import io
import warnings

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

JPEG_MAGIC = b"\xff\xd8\xff"
# An EXIF block lies in the first segments of a JPEG; a segment is 64 KiB at most.
EXIF_SEARCH_BYTES = 2 * 65536
# Modes that hold more than 8 bits a channel and that Pillow's own conversion would clip to white.
DEEP_MODES = frozenset({"I", "I;16", "I;16L", "I;16B", "I;16N"})


class BadImageError(Exception):
    """The bytes are no image that can be decoded whole; the message says why."""


def decode_rgb(source: bytes | Image.Image) -> NDArray[np.uint8]:
    """Decode an image to RGB.

    Grey, palette, CMYK, 16-bit and EXIF-rotated images become what a viewer shows; transparent ones are
    laid on white. JPEGs take libjpeg-turbo's fast path, which gives Pillow's pixels to the bit.

    Args:
        source: the bytes of an image file, or a Pillow image.

    Returns:
        uint8 (height, width, 3).

    Raises:
        BadImageError: not an image, damaged or cut short.
    """
    if isinstance(source, bytes) and _is_plain_jpeg(source):
        try:
            pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(source)
            return pixels
        except ValueError:
            pass  # CMYK, or damage that Pillow judges and words better
    try:
        with warnings.catch_warnings():
            # Pillow warns of large images and of odd but harmless metadata; neither changes the pixels.
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(source)) if isinstance(source, bytes) else source
            return _to_rgb(image)
    except UnidentifiedImageError:
        raise BadImageError("not an image" if source else "empty file") from None
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise BadImageError(str(error) or type(error).__name__) from None


def _is_plain_jpeg(data: bytes) -> bool:
    return data.startswith(JPEG_MAGIC) and b"Exif\0\0" not in data[:EXIF_SEARCH_BYTES]


def _to_rgb(image: Image.Image) -> NDArray[np.uint8]:
    # A copy where EXIF turns the image, the image itself where not: the caller's is never changed.
    image = ImageOps.exif_transpose(image)
    if image.mode in DEEP_MODES:
        image = _to_8_bits(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.array(image.convert("RGB"))


def _to_8_bits(image: Image.Image) -> Image.Image:
    # Mode "I" is 32 bits wide, but files that yield it hold 16 bits (PNG, PGM, TIFF).
    values = np.asarray(image).astype(np.int64).clip(0, 65535)
    return Image.fromarray((values / 257).round().astype(np.uint8))
