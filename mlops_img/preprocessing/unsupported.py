"""Name the kind of a valid image file that is not supported, such as a 12-bit JPEG."""

from __future__ import annotations

import io
import struct

from PIL import Image, TiffImagePlugin

JPEG_MAGIC = b"\xff\xd8\xff"
TIFF_MAGICS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
BIG = (b"+\0", b"\0+")  # version numbers of BigTIFF, whose header is twice as long
# Kinds of ISO base media files by the brand in the first box.
MEDIA_BRANDS = {
    b"heic": "HEIC image",
    b"heix": "HEIC image",
    b"hevc": "HEIC image sequence",
    b"mif1": "HEIF image",
    b"msf1": "HEIF image sequence",
}
JPEG_2000_START = b"\xff\x4f\xff\x51"  # of the codestream; byte 42 is the bit depth of the first channel
JPEG_XL_MAGICS = (b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n")
# Markers at the start of a JPEG frame (ITU-T T.81, table B.1; 0xF7 is JPEG-LS) of unsupported kinds. The supported ones
# are baseline, progressive, lossless, and arithmetic-coded.
UNSUPPORTED_FRAMES = {
    0xC5: "hierarchical JPEG",
    0xC6: "hierarchical JPEG",
    0xC7: "hierarchical JPEG",
    0xCB: "lossless arithmetic-coded JPEG",
    0xCD: "hierarchical JPEG",
    0xCE: "hierarchical JPEG",
    0xCF: "hierarchical JPEG",
    0xF7: "JPEG-LS image",
}
SUPPORTED_FRAMES = (0xC0, 0xC1, 0xC2, 0xC3, 0xC9, 0xCA)
COLOR_FILTER_ARRAY = 32803  # photometric interpretation of TIFF
SAMPLE_FORMATS = {1: "unsigned integer", 2: "signed integer", 3: "floating-point", 5: "complex", 6: "complex"}


def unsupported_kind(data: bytes) -> str | None:
    """Return the kind of an image that cannot be decoded, if that kind is not supported.

    Args:
        data: the bytes of a file that could not be decoded.

    Returns:
        E.g. "12-bit JPEG"; None if the file is damaged or not an image.
    """
    if data.startswith(JPEG_MAGIC):
        return _jpeg_kind(data)
    if data.startswith(TIFF_MAGICS):
        return _tiff_kind(data)
    if data.startswith(JPEG_XL_MAGICS):
        return "JPEG XL image"
    if data[4:8] == b"ftyp":
        return MEDIA_BRANDS.get(data[8:12])
    return None


def kind_decoded_wrongly(image: Image.Image, data: bytes | None) -> str | None:
    """Return the kind of an image that Pillow opens but decodes to wrong pixels; None for all others.

    Args:
        image: an opened image.
        data: the bytes of its file; None if they are not available.
    """
    if image.mode == "F":
        return f"{image.format or 'image'} of 32-bit floating-point pixels, which have no defined white"
    if image.format == "JPEG2000" and image.mode != "I;16" and data is not None:
        # When Pillow rounds to 8 bits, white overflows to black.
        start = data.find(JPEG_2000_START)
        bits = (data[start + 42] & 0x7F) + 1 if 0 <= start < len(data) - 42 else 8
        return f"{bits}-bit JPEG 2000 with several channels" if bits > 8 else None
    return None


def _jpeg_kind(data: bytes) -> str | None:
    offset = 2
    while data[offset : offset + 1] == b"\xff" and offset + 10 <= len(data):
        marker = data[offset + 1]
        if marker in UNSUPPORTED_FRAMES:
            return UNSUPPORTED_FRAMES[marker]
        if marker in SUPPORTED_FRAMES:
            bits, channels = data[offset + 4], data[offset + 9]
            if bits != 8:
                return f"{bits}-bit JPEG"
            return None if channels in (1, 3, 4) else f"JPEG of {channels} channels"
        offset += 1 if marker == 0xFF else 2 + int.from_bytes(data[offset + 2 : offset + 4])
    return None


def _tiff_kind(data: bytes) -> str | None:
    try:
        tags = TiffImagePlugin.ImageFileDirectory_v2(data[: 16 if data[2:4] in BIG else 8])
        file = io.BytesIO(data)
        file.seek(tags.next)
        tags.load(file)
        return _kind_of_tags(tags)
    except (SyntaxError, OSError, ValueError, TypeError, LookupError, struct.error):
        return None  # damaged


def _kind_of_tags(tags: TiffImagePlugin.ImageFileDirectory_v2) -> str | None:
    bits = tags[TiffImagePlugin.BITSPERSAMPLE]
    channels = tags.get(TiffImagePlugin.SAMPLESPERPIXEL, len(bits))
    sample_format = tags.get(TiffImagePlugin.SAMPLEFORMAT, (1,))[0]
    photometric = tags[TiffImagePlugin.PHOTOMETRIC_INTERPRETATION]
    compression = tags.get(TiffImagePlugin.COMPRESSION, 1)
    if compression not in TiffImagePlugin.COMPRESSION_INFO:
        return f"TIFF with compression {compression}"
    if photometric == COLOR_FILTER_ARRAY:
        return "TIFF of raw camera pixels (color filter array)"
    for _, known_photometric, known_format, _, known_bits, _ in TiffImagePlugin.OPEN_INFO:
        if (known_photometric, known_format[0], known_bits) == (photometric, sample_format, (bits[0],) * channels):
            return None  # the kind is supported, so the file is damaged
    number = SAMPLE_FORMATS.get(sample_format, "undefined")
    return f"TIFF of {max(bits)}-bit {number} pixels" + (f" with {channels} channels" if channels > 1 else "")
