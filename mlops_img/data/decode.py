"""Image files and Pillow images to RGB uint8, whatever they were."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

Pixels = NDArray[np.uint8]

JPEG_MAGIC = b"\xff\xd8\xff"
JPEG_APP1, JPEG_START_OF_SCAN = 0xE1, 0xDA
# Modes that hold more than 8 bits a channel and that Pillow's own conversion would clip to white.
DEEP_MODES = frozenset({"I", "I;16", "I;16L", "I;16B", "I;16N"})
# What 16 bits are in 8, with white staying white.
IN_8_BITS = (np.arange(2**16) / 257).round().astype(np.uint8)
# Pixels that are converted at once: beside a large picture and its RGB there is then no third and fourth copy.
STRIP = 2**22
# Larger pictures are refused: 1.6 GB as RGB. Pillow's own limit, a third of it, stops panoramas and scans.
MAX_PIXELS = 2**29
Image.MAX_IMAGE_PIXELS = MAX_PIXELS // 2  # Pillow warns from here on and refuses from twice as many
# Of large images and of odd but harmless metadata; neither changes the pixels. Set once and not around each
# decoding, because threads share the list of filters.
warnings.filterwarnings("ignore", module=r"PIL\.")

# The values of EXIF's orientation tag that turn or mirror, and how to undo them.
UPRIGHT: dict[int, Callable[[Pixels], Pixels]] = {
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.transpose(1, 0, 2),
    6: lambda pixels: pixels[::-1].transpose(1, 0, 2),
    7: lambda pixels: pixels[::-1, ::-1].transpose(1, 0, 2),
    8: lambda pixels: pixels[:, ::-1].transpose(1, 0, 2),
}


class BadImageError(Exception):
    """The bytes are no image that can be decoded whole; the message says why, in one line."""


class UnsupportedImageError(BadImageError):
    """The image may be sound, but is of a kind that is not supported; the message names it, e.g. "12-bit JPEG"."""


def decode_rgb(source: bytes | Image.Image) -> Pixels:
    """Decode an image to RGB.

    Grey, palette, CMYK, 16-bit and EXIF-rotated images become what a viewer shows; transparent ones are
    laid on white; of several frames the first counts. JPEGs take libjpeg-turbo's fast path, which gives
    Pillow's pixels to the bit.

    Args:
        source: the bytes of an image file, or a Pillow image, which is not changed.

    Returns:
        uint8 (height, width, 3), C-contiguous.

    Raises:
        BadImageError: not an image, damaged, cut short, of more than `MAX_PIXELS`, or of numbers that do not
            say what white is.
    """
    if isinstance(source, bytes) and source.startswith(JPEG_MAGIC):
        pixels = _decode_jpeg(source)
        if pixels is not None:
            return pixels
    try:
        image = Image.open(io.BytesIO(source)) if isinstance(source, bytes) else source
        image.load()
        # Asked for after loading: for TIFF Pillow turns the image then, and takes the tag away.
        return _upright(_to_rgb(image), _orientation(image))
    except BadImageError:
        raise
    except UnidentifiedImageError:
        raise BadImageError("not an image" if source else "empty file") from None
    except Image.DecompressionBombError:
        raise BadImageError(f"more than {MAX_PIXELS:,} pixels") from None
    # Pillow's readers answer damage with many kinds of exceptions.
    except Exception as error:
        raise BadImageError(" ".join(str(error).split()) or type(error).__name__) from error


def _decode_jpeg(data: bytes) -> Pixels | None:
    """Decode a JPEG; None where Pillow has to: CMYK, or damage that it judges and words better."""
    try:
        height, width, _, _ = simplejpeg.decode_jpeg_header(data)
        if height * width > MAX_PIXELS:
            return None
        pixels: Pixels = simplejpeg.decode_jpeg(data)
        orientation = _orientation(Image.open(io.BytesIO(data))) if _may_have_exif(data) else 1
    except (ValueError, OSError):
        return None
    return _upright(pixels, orientation)


def _may_have_exif(data: bytes) -> bool:
    """Say whether a JPEG's header has an APP1 segment, the one that holds EXIF or XMP.

    Reading the header's few segment lengths costs a fraction of what opening the file with Pillow does.
    """
    place = 2
    while data[place : place + 1] == b"\xff" and place + 4 <= len(data):
        marker = data[place + 1]
        if marker in (JPEG_APP1, JPEG_START_OF_SCAN):
            return marker == JPEG_APP1
        place += 2 + int.from_bytes(data[place + 2 : place + 4])
    return True  # not as expected: let Pillow look


def _orientation(image: Image.Image) -> int:
    try:
        orientation: int = image.getexif().get(ExifTags.Base.Orientation, 1)
    # Viewers show a picture whose EXIF block is damaged, as if there were none.
    except Exception:
        return 1
    return orientation


def _upright(pixels: Pixels, orientation: int) -> Pixels:
    return np.ascontiguousarray(UPRIGHT[orientation](pixels)) if orientation in UPRIGHT else pixels


def _to_rgb(image: Image.Image) -> Pixels:
    rows = max(1, STRIP // max(1, image.width))
    if rows >= image.height:
        return np.array(_flat(image))
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height)))
        pixels[top : top + rows] = np.asarray(_flat(strip))
    return pixels


def _flat(image: Image.Image) -> Image.Image:
    """Convert to mode RGB, whatever it was, with white behind what is transparent."""
    if image.mode in DEEP_MODES:
        image = _to_8_bits(image)
    if image.mode == "F":
        raise UnsupportedImageError("its pixels are floating-point numbers, which do not say what white is")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _to_8_bits(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    # Mode "I" is 32 bits wide, but files that yield it hold 16 bits (PNG, PGM, TIFF), or else anything.
    if values.min() < 0 or values.max() > 65535:
        raise UnsupportedImageError(f"its pixels, from {values.min()} to {values.max()}, are more than 16 bits hold")
    return Image.fromarray(IN_8_BITS[values])
