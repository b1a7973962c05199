"""Where the first picture of an animation lies on its canvas: viewers leave the rest transparent, Pillow does not."""

from __future__ import annotations

from PIL import GifImagePlugin, Image

Box = tuple[int, int, int, int]  # left, top, right, bottom
RIFF_HEADER, CHUNK_HEADER = 12, 8


def first_frame(image: Image.Image, data: bytes | None) -> Box | None:
    """Return the place of the first picture where it is smaller than its canvas and may be opaque.

    Args:
        image: opened, and not loaded yet.
        data: of its file; None where it is not at hand.

    Returns:
        None where the picture fills the canvas, or where Pillow leaves the rest transparent.
    """
    box: Box | None = None
    if isinstance(image, GifImagePlugin.GifImageFile) and image.tile and data is not None:
        box = image.tile[0].extents
    elif image.format == "WEBP" and image.mode == "RGB" and data is not None:
        box = _first_webp_frame(data)
    return None if box == (0, 0, *image.size) else box


def _first_webp_frame(data: bytes) -> Box | None:
    place = RIFF_HEADER
    while place + CHUNK_HEADER <= len(data):
        kind, size = data[place : place + 4], int.from_bytes(data[place + 4 : place + 8], "little")
        if kind == b"ANMF":
            start = place + CHUNK_HEADER
            left, top, width, height = (
                int.from_bytes(data[at : at + 3], "little") for at in range(start, start + 12, 3)
            )
            return 2 * left, 2 * top, 2 * left + width + 1, 2 * top + height + 1
        place += CHUNK_HEADER + size + size % 2
    return None
