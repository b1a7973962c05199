"""Find the position of the first frame on the canvas of an animation.

Image viewers leave the canvas around the frame transparent; Pillow does not.
"""

from __future__ import annotations

from PIL import GifImagePlugin, Image

Box = tuple[int, int, int, int]  # left, top, right, bottom
RIFF_HEADER, CHUNK_HEADER = 12, 8


def first_frame(image: Image.Image, data: bytes | None) -> Box | None:
    """Return the position of the first frame if it is smaller than the canvas and may be opaque.

    Args:
        image: an image that is opened and not yet loaded.
        data: the bytes of its file; None if they are not available.

    Returns:
        None if the frame fills the canvas, or if Pillow leaves the canvas around it transparent.
    """
    box: Box | None = None
    if isinstance(image, GifImagePlugin.GifImageFile) and image.tile and data is not None:
        box = image.tile[0].extents
    elif image.format == "WEBP" and image.mode == "RGB" and data is not None:
        box = _first_webp_frame(data)
    return None if box == (0, 0, *image.size) else box


def _first_webp_frame(data: bytes) -> Box | None:
    offset = RIFF_HEADER
    while offset + CHUNK_HEADER <= len(data):
        kind, size = data[offset : offset + 4], int.from_bytes(data[offset + 4 : offset + 8], "little")
        if kind == b"ANMF":
            start = offset + CHUNK_HEADER
            left, top, width, height = (
                int.from_bytes(data[at : at + 3], "little") for at in range(start, start + 12, 3)
            )
            return 2 * left, 2 * top, 2 * left + width + 1, 2 * top + height + 1
        offset += CHUNK_HEADER + size + size % 2
    return None
