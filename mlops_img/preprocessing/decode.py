"""Image files and Pillow images to RGB uint8, whatever they were."""

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
# Pixels that are converted at once: beside a large picture and its RGB there is then no third and fourth copy.
STRIP = 2**22
# Larger pictures are refused: 1.6 GB as RGB. Pillow's own limit, a third of it, stops panoramas and scans.
MAX_PIXELS = 2**29
Image.MAX_IMAGE_PIXELS = MAX_PIXELS // 2  # Pillow warns from here on and refuses from twice as many
# Of large images and of odd but harmless metadata; neither changes the pixels. Set once and not around each
# decoding, because threads share the list of filters.
warnings.filterwarnings("ignore", module=r"PIL\.")
UNSUPPORTED = "{}: not supported. Convert it to PNG or to an ordinary JPEG"

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


def decode_rgb(source: bytes | Image.Image, sixteen_bit: str = "declared") -> Pixels:
    """Decode an image to RGB.

    Gray, palette, CMYK, 16-bit and EXIF-rotated images become what a viewer shows; transparent ones are
    laid on white; of several frames the first counts. JPEGs take libjpeg-turbo's fast path, which gives
    Pillow's pixels to the bit.

    Args:
        source: the bytes of an image file, or a Pillow image, which is not changed.
        sixteen_bit: what is white in an image of more than 8 bits a channel. "declared": the largest value of the
            depth that its file declares, 65535 if it declares none. "range": the largest value of the image itself,
            and its smallest one is black.

    Returns:
        uint8 (height, width, 3), C-contiguous.

    Raises:
        UnsupportedImageError: a kind of image that no decoder here reads, or of numbers that do not say what white is.
        BadImageError: not an image, damaged, cut short, or of more than `MAX_PIXELS`.
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
        # Asked for after loading: for TIFF Pillow turns the image then, and takes the tag away.
        return _upright(pixels, _orientation(image))
    except BadImageError:
        raise
    except UnidentifiedImageError:
        raise _unidentified(source) from None
    except Image.DecompressionBombError:
        raise BadImageError(f"more than {MAX_PIXELS:,} pixels") from None
    # Pillow's readers answer damage with many kinds of exceptions.
    except Exception as error:
        raise _undecodable(source, error) from error


def deep_range(source: bytes | Image.Image) -> tuple[float, float] | None:
    """Return which part of the range that is declared an image of more than 8 bits a channel uses.

    Args:
        source: an image that `decode_rgb` can decode.

    Returns:
        Its smallest and its largest sample, where 0 and 1 are the ends of the range; None of 8-bit images.
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
    # Pillow opens any kind of JPEG, and fails to decode some. Other kinds that it opens it can decode.
    kind = unsupported_kind(source) if isinstance(source, bytes) and source.startswith(JPEG_MAGIC) else None
    if kind:
        return UnsupportedImageError(UNSUPPORTED.format(kind))
    return BadImageError(" ".join(str(error).split()) or type(error).__name__)


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


def _file_of(image: Image.Image) -> bytes | None:
    """Return the bytes of the file whose first picture is opened and not loaded yet; None of other images."""
    file = getattr(image, "fp", None)
    if not isinstance(image, ImageFile.ImageFile) or file is None or image.tell():
        return None
    if not image.tile and image.format != "WEBP":  # loaded; of WebP Pillow says only then where its pixels are
        return None
    place = file.tell()
    file.seek(0)
    data: bytes = file.read()
    file.seek(place)
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
            raise UnsupportedImageError(f"its pixels, from {least} to {most}, are more than 16 bits hold")
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
    """Convert to mode RGB, whatever it was, with white behind what is transparent."""
    if image.mode == "La":  # Pillow converts it to nothing else
        image = image.convert("LA")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")
