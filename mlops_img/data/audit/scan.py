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
    """What one image turned out to be.

    Attributes:
        content: digest of the file's bytes; None where there is no file, or none that can be read.
        fault: why it cannot be decoded; None where it can. The fields below are empty for a faulty one.
        width, height: in pixels, upright as the model sees it.
        format, mode: what Pillow calls them, e.g. "JPEG" and "RGB".
        pixels: digest of the decoded RGB values, the same for one picture in two lossless formats.
        small: the thumbnail that near duplicates are found by.
        used: of an image of more than 8 bits a channel, its smallest and largest value as shares of the range that its
            file declares; None of others.
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


def scan(
    images: ImageSet, workers: int | None = None, *, sixteen_bit: str = "declared", title: str = "scanning"
) -> list[Picture]:
    """Read and decode every image, in threads: what takes long releases the interpreter's lock.

    A progress bar goes to stderr if that is a terminal. A picture takes about 1 kB of memory.

    Args:
        images: what to read.
        workers: threads; None is one per core.
        sixteen_bit: as for `mlops_img.preprocessing.decode.decode_rgb`.
        title: what the progress bar says.

    Returns:
        One picture per image, in the order of `images`.
    """
    parts = [
        range(start, min(start + IMAGES_PER_TASK, len(images))) for start in range(0, len(images), IMAGES_PER_TASK)
    ]

    def look_at(rows: range) -> list[Picture]:
        return [look(images, images.paths[row], sixteen_bit) for row in rows]

    # Set here and not around each decoding: the list of filters is shared by all threads.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with ThreadPoolExecutor(max(1, workers or os.cpu_count() or 1)) as pool:
            return list(_with_progress(pool.map(look_at, parts), len(images), title))


def look(images: ImageSet, name: str, sixteen_bit: str = "declared") -> Picture:
    """Read and decode one image; what goes wrong on the way becomes the picture's fault."""
    content = None
    try:
        source = images.read(name)
        if isinstance(source, bytes):
            content = _digest(source)
        pixels = decode_rgb(source, sixteen_bit)
        used = deep_range(source)
        # Only the header is read here.
        header = Image.open(io.BytesIO(source)) if isinstance(source, bytes) else source
    # An audit survives every file: Pillow's readers answer damage with many kinds of exceptions.
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
    # disable=None: no bar where stderr is no terminal.
    with tqdm(total=total, desc=title, unit="image", disable=None, leave=False) as bar:
        for part in parts:
            yield from part
            bar.update(len(part))
