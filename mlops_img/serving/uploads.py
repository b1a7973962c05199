"""From the bytes of an upload to the pixels of the model: check the header, then decode as training did."""

from __future__ import annotations

import io
import logging

from PIL import Image, UnidentifiedImageError
from torch import Tensor

from mlops_img.bundle.predictor import Predictor
from mlops_img.preprocessing.decode import JPEG_MAGIC, UNSUPPORTED, BadImageError, UnsupportedImageError
from mlops_img.preprocessing.unsupported import unsupported_kind
from mlops_img.serving.errors import Code, RequestError

# Other formats are refused undecoded: every decoder is attack surface. MPO, several JPEGs in one file, counts as JPEG.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
# The first bytes of their files. One that begins so but cannot be identified is damaged.
SIGNATURES = (JPEG_MAGIC, b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*")
# The start of a scan in a JPEG. Each scan of a progressive JPEG updates all pixels: encoders write about ten, but 20 MB
# have room for hundreds of thousands, which would keep a decoder busy for an hour. libtiff has the same limit.
START_OF_SCAN = b"\xff\xda\x00"
MAX_SCANS = 100

log = logging.getLogger(__name__)


def prepare_upload(predictor: Predictor, data: bytes, max_pixels: int) -> Tensor:
    """Decode one upload as evaluation does: uint8 (3, side, side).

    Args:
        predictor: supplies the preprocessing.
        data: contents of the file.
        max_pixels: limit of width x height.

    Raises:
        RequestError: the file is empty, damaged, not an image of `FORMATS`, of an unsupported kind, or has too many
            pixels or scans.
    """
    if not data:
        raise RequestError(Code.BAD_IMAGE, "The file is empty.")
    image = _open(data, max_pixels)
    try:
        # JPEGs are decoded from their bytes by libjpeg-turbo, which is faster; other formats by the decoder that
        # identified the header.
        return predictor.prepare(data if data.startswith(JPEG_MAGIC) else image)
    except UnsupportedImageError as error:
        raise _unsupported(str(error)) from None
    except (BadImageError, MemoryError) as error:
        log.debug("refused an image: %s", error)
        raise _damaged() from None


def _open(data: bytes, max_pixels: int) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        kind = unsupported_kind(data)
        if kind is not None:
            raise _unsupported(UNSUPPORTED.format(kind)) from None
        if data.startswith(SIGNATURES):
            raise _damaged() from None
        known = ", ".join(FORMATS)
        raise RequestError(Code.NOT_AN_IMAGE, f"This is not an image of a supported format ({known}).") from None
    except Image.DecompressionBombError:
        raise _too_many_pixels(max_pixels) from None
    except Exception as error:  # Pillow's readers raise many kinds of exceptions for damaged files
        log.debug("refused an image's header: %s", error)
        raise _damaged() from None
    if image.width * image.height > max_pixels:
        raise _too_many_pixels(max_pixels)
    if data.startswith(JPEG_MAGIC) and data.count(START_OF_SCAN) > MAX_SCANS:
        raise RequestError(Code.BAD_IMAGE, f"The image has more than {MAX_SCANS} scans: save it again with fewer.")
    return image


def _damaged() -> RequestError:
    return RequestError(Code.BAD_IMAGE, "The image is damaged or incomplete.")


def _unsupported(reason: str) -> RequestError:
    return RequestError(Code.UNSUPPORTED, f"{reason[0].upper()}{reason[1:].rstrip('.')}.")


def _too_many_pixels(max_pixels: int) -> RequestError:
    return RequestError(
        Code.TOO_LARGE, f"The image has more than {max_pixels / 1e6:g} million pixels: send a smaller one."
    )
