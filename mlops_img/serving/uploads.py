"""From uploaded bytes to the pixels a program takes: what the header says, then the decoder that training used."""

from __future__ import annotations

import io
import logging

from PIL import Image, UnidentifiedImageError
from torch import Tensor

from mlops_img.bundle.predictor import Predictor
from mlops_img.preprocessing.decode import JPEG_MAGIC, BadImageError, UnsupportedImageError
from mlops_img.preprocessing.unsupported import unsupported_kind
from mlops_img.serving.errors import Code, RequestError

# Others are refused unread: fewer decoders that strangers' bytes can reach. MPO, several JPEGs in one, counts as JPEG.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
# What their files begin with: one that no reader identifies is then damaged.
SIGNATURES = (JPEG_MAGIC, b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*")
# How a scan of a JPEG begins. A progressive one goes over all pixels with every scan: encoders write about ten, and
# 20 MB have room for hundreds of thousands, which would keep a decoder busy for an hour. libtiff has the same limit.
START_OF_SCAN = b"\xff\xda\x00"
MAX_SCANS = 100

log = logging.getLogger(__name__)


def prepare_upload(predictor: Predictor, data: bytes, max_pixels: int) -> Tensor:
    """Decode one upload as evaluation does: uint8 (3, side, side).

    Args:
        predictor: whose preprocessing it is.
        data: of the file.
        max_pixels: width x height that is accepted.

    Raises:
        RequestError: empty, no image of `FORMATS`, of a kind that is not supported, too many pixels or scans, or
            damaged.
    """
    if not data:
        raise RequestError(Code.BAD_IMAGE, "The file is empty.")
    image = _opened(data, max_pixels)
    try:
        # JPEGs take libjpeg-turbo's fast path from their bytes; all else is decoded by the one decoder that the
        # header was found to be for.
        return predictor.prepare(data if data.startswith(JPEG_MAGIC) else image)
    except UnsupportedImageError as error:
        raise _unsupported(str(error)) from None
    except (BadImageError, MemoryError) as error:
        log.debug("refused an image: %s", error)
        raise _damaged() from None


def _opened(data: bytes, max_pixels: int) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        kind = unsupported_kind(data)
        if kind is not None:
            raise _unsupported(f"{kind}: not supported. Convert it to PNG or to an ordinary JPEG") from None
        if data.startswith(SIGNATURES):
            raise _damaged() from None
        known = ", ".join(FORMATS)
        raise RequestError(Code.NOT_AN_IMAGE, f"This is not an image of a known format ({known}).") from None
    except Image.DecompressionBombError:
        raise _too_many_pixels(max_pixels) from None
    except Exception as error:  # Pillow's readers answer damage with many kinds of exceptions
        log.debug("refused an image's header: %s", error)
        raise _damaged() from None
    if image.width * image.height > max_pixels:
        raise _too_many_pixels(max_pixels)
    if data.startswith(JPEG_MAGIC) and data.count(START_OF_SCAN) > MAX_SCANS:
        raise RequestError(Code.BAD_IMAGE, f"The image has more than {MAX_SCANS} scans: save it anew.")
    return image


def _damaged() -> RequestError:
    return RequestError(Code.BAD_IMAGE, "The image is damaged or incomplete.")


def _unsupported(reason: str) -> RequestError:
    return RequestError(Code.UNSUPPORTED, f"{reason[0].upper()}{reason[1:].rstrip('.')}.")


def _too_many_pixels(max_pixels: int) -> RequestError:
    return RequestError(
        Code.TOO_LARGE, f"The image has more than {max_pixels / 1e6:g} million pixels: send a smaller one."
    )
