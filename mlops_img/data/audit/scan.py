"""Read and decode every image once, and keep what the audit compares."""

from __future__ import annotations

import hashlib
import io
import os
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from mlops_img.data.audit.near_duplicates import thumbnail
from mlops_img.data.sources.base import ImageSet
from mlops_img.preprocessing.decode import decode_rgb, deep_range

IMAGES_PER_TASK = 32


@dataclass(frozen=True, slots=True)
class Picture:
    """Properties of one image.

    Attributes:
        content: digest of the file's bytes; None if there is no file or it cannot be read.
        fault: why the image cannot be decoded; None if it can. The fields below are empty if there is a fault.
        width, height: in pixels, after the EXIF orientation is applied.
        format, mode: Pillow's names, e.g. "JPEG" and "RGB".
        pixels: digest of the size and the decoded RGB values; equal for one image in two lossless formats.
        small: the thumbnail for the search for near duplicates.
        used: for an image of more than 8 bits per channel, its smallest and largest value as fractions of the range
            that the file declares; None for other images.
    """

    content: bytes | None
    fault: str | None = None
    width: int = 0
    height: int = 0
    format: str = ""
    mode: str = ""
    pixels: bytes = b""
    small: NDArray[np.uint8] | None = None
    used: tuple[float, float] | None = None


def inspect_images(
    images: ImageSet, workers: int | None = None, *, sixteen_bit: str = "declared", title: str = "scanning"
) -> list[Picture]:
    """Read and decode every image in a pool of threads; reading and decoding release the GIL.

    A progress bar is written to stderr if that is a terminal. A result takes about 1 kB of memory.

    Args:
        images: the images to read.
        workers: number of threads; None means one per core.
        sixteen_bit: see `mlops_img.preprocessing.decode.decode_rgb`.
        title: description of the progress bar.

    Returns:
        The properties of each image, in the order of `images`.
    """
    parts = [
        range(start, min(start + IMAGES_PER_TASK, len(images))) for start in range(0, len(images), IMAGES_PER_TASK)
    ]

    def inspect_part(rows: range) -> list[Picture]:
        return [inspect_image(images, images.paths[row], sixteen_bit) for row in rows]

    # Set once here and not for each image: all threads share the list of warning filters.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with ThreadPoolExecutor(max(1, workers or os.cpu_count() or 1)) as pool:
            return list(_with_progress(pool.map(inspect_part, parts), len(images), title))


def inspect_image(images: ImageSet, name: str, sixteen_bit: str = "declared") -> Picture:
    """Read and decode one image; an exception on the way is reported as `fault`."""
    content = None
    try:
        source = images.read(name)
        if isinstance(source, bytes):
            content = _digest(source)
        pixels = decode_rgb(source, sixteen_bit)
        used = deep_range(source)
        # Pillow reads only the header here.
        header = Image.open(io.BytesIO(source)) if isinstance(source, bytes) else source
    # No file may stop the audit, and Pillow's readers raise many types of exceptions for damaged files.
    except Exception as error:
        reason = (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__
        return Picture(content, fault=" ".join(reason.split()))
    height, width = pixels.shape[:2]
    return Picture(
        content,
        width=width,
        height=height,
        format=header.format or "in memory",
        mode=header.mode,
        pixels=_digest(np.array([height, width]).tobytes() + pixels.tobytes()),
        small=thumbnail(pixels),
        used=used,
    )


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


def _with_progress(parts: Iterator[list[Picture]], total: int, title: str) -> Iterator[Picture]:
    # disable=None hides the bar if stderr is not a terminal.
    with tqdm(total=total, desc=title, unit="image", disable=None, leave=False) as bar:
        for part in parts:
            yield from part
            bar.update(len(part))
