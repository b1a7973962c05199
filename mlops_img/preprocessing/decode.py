"""Decode image files and Pillow images of any mode to RGB uint8."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError

from mlops_img.preprocessing.deep import WHITE_16, Samples, deep_samples
from mlops_img.preprocessing.frames import Box, first_frame
from mlops_img.preprocessing.unsupported import JPEG_MAGIC as JPEG_MAGIC
from mlops_img.preprocessing.unsupported import kind_decoded_wrongly, unsupported_kind

Pixels = NDArray[np.uint8]

JPEG_APP1, JPEG_START_OF_SCAN = 0xE1, 0xDA
# Number of pixels converted at a time, so that a large image and its RGB pixels are not copied again as a whole.
STRIP = 2**22
# Larger images are refused: they take over 1.6 GB as RGB. Pillow's own limit, a third of this, refuses panoramas and
# scans.
MAX_PIXELS = 2**29
Image.MAX_IMAGE_PIXELS = MAX_PIXELS // 2  # Pillow warns above this and refuses above twice as many
# Pillow warns of large images and of unusual metadata, which do not change the pixels. The filter is set once and not
# for each image because all threads share the list of filters.
warnings.filterwarnings("ignore", module=r"PIL\.")
UNSUPPORTED = "{}: not supported. Convert it to PNG or to an ordinary JPEG"

# For each EXIF orientation that rotates or mirrors, the operation that undoes it.
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
    """The bytes cannot be decoded completely as an image; the message gives the reason in one line."""


class UnsupportedImageError(BadImageError):
    """The kind of image is not supported, although the file may be valid; the message names it, e.g. "12-bit JPEG"."""


def decode_rgb(source: bytes | Image.Image, sixteen_bit: str = "declared") -> Pixels:
    """Decode an image to RGB.

    Gray, palette, CMYK, 16-bit and EXIF-rotated images are converted to what an image viewer shows. Transparent images
    are composited on white. Only the first frame is decoded. JPEGs are decoded by libjpeg-turbo without Pillow, to the
    same pixels.

    Args:
        source: the bytes of an image file, or a Pillow image, which is not changed.
        sixteen_bit: which value is white in an image of more than 8 bits per channel. "declared": the largest value of
            the bit depth that the file declares, 65535 if it declares none. "range": the largest value in the image,
            and the smallest value in the image is black.

    Returns:
        uint8 (height, width, 3), C-contiguous.

    Raises:
        UnsupportedImageError: no decoder for this kind of image, or its pixel format does not define white.
        BadImageError: not an image, damaged, truncated, or more than `MAX_PIXELS` pixels.
    """
    if isinstance(source, bytes) and source.startswith(JPEG_MAGIC):
        pixels = _decode_jpeg(source)
        if pixels is not None:
            return pixels
    try:
        image = Image.open(io.BytesIO(source)) if isinstance(source, bytes) else source
        data = source if isinstance(source, bytes) else _file_of(image)
        kind = kind_decoded_wrongly(image, data)
        if kind:
            raise UnsupportedImageError(UNSUPPORTED.format(kind))
        deep = deep_samples(image, data, sixteen_bit)
        if deep is not None:
            pixels = _from_samples(deep, sixteen_bit)
            return _upright(pixels, _orientation(image) if deep.orientation is None else deep.orientation)
        box = first_frame(image, data)
        image.load()
        pixels = _to_rgb(image)
        if box is not None:
            _whiten_around(pixels, box)
        # Read after loading: when Pillow loads a TIFF, it rotates the image and removes the tag.
        return _upright(pixels, _orientation(image))
    except BadImageError:
        raise
    except UnidentifiedImageError:
        raise _unidentified(source) from None
    except Image.DecompressionBombError:
        raise BadImageError(f"more than {MAX_PIXELS:,} pixels") from None
    # Pillow's readers raise many types of exceptions for damaged files.
    except Exception as error:
        raise _undecodable(source, error) from error


def deep_range(source: bytes | Image.Image) -> tuple[float, float] | None:
    """Return the part of its declared range that an image of more than 8 bits per channel uses.

    Args:
        source: an image that `decode_rgb` can decode.

    Returns:
        The smallest and the largest sample, scaled so that the declared range is 0 to 1; None for 8-bit images.
    """
    image = Image.open(io.BytesIO(source)) if isinstance(source, bytes) else source
    samples = deep_samples(image, source if isinstance(source, bytes) else _file_of(image), "range")
    if samples is None or not samples.is_deep:
        return None
    low, high = sorted((samples.black, samples.white))
    least, most = samples.range(max(1, STRIP // max(1, samples.width)))
    return (least - low) / (high - low), (most - low) / (high - low)


def _unidentified(source: bytes | Image.Image) -> BadImageError:
    kind = unsupported_kind(source) if isinstance(source, bytes) else None
    if kind:
        return UnsupportedImageError(UNSUPPORTED.format(kind))
    return BadImageError("not an image" if source else "empty file")


def _undecodable(source: bytes | Image.Image, error: Exception) -> BadImageError:
    # Pillow opens every kind of JPEG but cannot decode all. It can decode all other formats that it opens.
    kind = unsupported_kind(source) if isinstance(source, bytes) and source.startswith(JPEG_MAGIC) else None
    if kind:
        return UnsupportedImageError(UNSUPPORTED.format(kind))
    return BadImageError(" ".join(str(error).split()) or type(error).__name__)


def _decode_jpeg(data: bytes) -> Pixels | None:
    """Decode a JPEG; return None if Pillow has to: for CMYK, and for damage, where its error messages are better."""
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
    """Return whether the header of a JPEG has an APP1 segment, which holds EXIF or XMP.

    Reading the segment lengths of the header takes a fraction of the time of opening the file with Pillow.
    """
    offset = 2
    while data[offset : offset + 1] == b"\xff" and offset + 4 <= len(data):
        marker = data[offset + 1]
        if marker in (JPEG_APP1, JPEG_START_OF_SCAN):
            return marker == JPEG_APP1
        offset += 2 + int.from_bytes(data[offset + 2 : offset + 4])
    return True  # unexpected structure: leave it to Pillow


def _orientation(image: Image.Image) -> int:
    try:
        orientation: int = image.getexif().get(ExifTags.Base.Orientation, 1)
    # As image viewers do, ignore a damaged EXIF block.
    except Exception:
        return 1
    return orientation


def _upright(pixels: Pixels, orientation: int) -> Pixels:
    return np.ascontiguousarray(UPRIGHT[orientation](pixels)) if orientation in UPRIGHT else pixels


def _file_of(image: Image.Image) -> bytes | None:
    """Return the bytes of the file if the image is its first frame, opened and not yet loaded; else None."""
    file = getattr(image, "fp", None)
    if not isinstance(image, ImageFile.ImageFile) or file is None or image.tell():
        return None
    if not image.tile and image.format != "WEBP":  # already loaded; for WebP, Pillow sets `tile` only on loading
        return None
    position = file.tell()
    file.seek(0)
    data: bytes = file.read()
    file.seek(position)
    return data


def _whiten_around(pixels: Pixels, box: Box) -> None:
    left, top, right, bottom = box
    pixels[:top] = pixels[bottom:] = 255
    pixels[:, :left] = pixels[:, right:] = 255


def _from_samples(samples: Samples, sixteen_bit: str) -> Pixels:
    rows = max(1, STRIP // max(1, samples.width))
    if samples.is_deep and (sixteen_bit == "range" or not samples.is_checked or samples.declares_less_than_16_bits):
        least, most = samples.range(rows)
        if not samples.is_checked and (least < 0 or most > WHITE_16):
            raise UnsupportedImageError(f"pixel values from {least} to {most} do not fit into 16 bits")
        samples = samples.with_range(least, most) if sixteen_bit == "range" else samples.with_room_for(most)
    pixels = np.empty((samples.height, samples.width, 3), np.uint8)
    for top in range(0, samples.height, rows):
        bottom = min(top + rows, samples.height)
        pixels[top:bottom] = samples.to_rgb(top, bottom)
    return pixels


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
    """Convert an image of any mode to RGB; composite transparent pixels on white."""
    if image.mode == "La":  # Pillow converts this mode only to LA
        image = image.convert("LA")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")
