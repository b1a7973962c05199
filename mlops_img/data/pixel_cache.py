"""A cache of decoded images: from the second epoch on, training reads pixels instead of decoding files.

It lies below XDG_CACHE_HOME or ~/.cache, is shared by processes and runs, and may be deleted at any time. An image is
found by the content of its file and what is done to it, so a file that changed is decoded anew.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mlops_img.config.augment import AugmentConfig
from mlops_img.config.data import DataConfig
from mlops_img.data.content_cache import cache_folder
from mlops_img.data.loader import Decode
from mlops_img.errors import UserError
from mlops_img.preprocessing.transforms import Preprocessing, resize

if TYPE_CHECKING:
    import lmdb

FORMAT = 1  # part of the folder's name: another layout takes another number
SHAPE = struct.Struct("<II")  # height and width, before the pixels
PENDING = 32  # images that are written together: each write waits for the disk
READERS = 1024  # processes that may read at the same time

log = logging.getLogger(__name__)


class PixelCache:
    """Images by key, uint8 (height, width, 3), in an LMDB file of bounded size.

    LMDB is safe against processes that write at the same time or are killed. A cache that is damaged, full or
    read-only is not an error: one warning says so, and images are decoded.
    """

    def __init__(self, folder: Path, gigabytes: float) -> None:
        self.folder = folder
        self.gigabytes = gigabytes
        self.writable = True
        self.pending: dict[bytes, NDArray[np.uint8]] = {}
        self._environment: lmdb.Environment | None = None
        self._process = 0

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_environment": None, "_process": 0, "pending": {}}

    def get(self, key: bytes) -> NDArray[np.uint8] | None:
        """Return an image, or None where it is not in the cache."""
        import lmdb

        environment = self._open()
        if key in self.pending:
            return self.pending[key].copy()
        if environment is None:
            return None
        try:
            with environment.begin(buffers=True) as transaction:
                found = transaction.get(key)
                return None if found is None else _unpack(found)
        except lmdb.Error as error:  # e.g. another process let the file grow beyond this one's data.cache_gb
            self._give_up(str(error))
            self._environment = None
            return None

    def put(self, key: bytes, image: NDArray[np.uint8]) -> None:
        """Keep an image; it is written together with the next ones."""
        if self.writable:
            self.pending[key] = image
            if len(self.pending) >= PENDING:
                self.flush()

    def flush(self) -> None:
        """Write what was put."""
        import lmdb

        pending, self.pending = self.pending, {}
        environment = self._open()
        if environment is None or not pending:
            return
        try:
            with environment.begin(write=True) as transaction:
                for key, image in pending.items():
                    transaction.put(key, _pack(image), overwrite=False)
        except lmdb.MapFullError:
            self._give_up(f"it is full ({self.gigabytes:g} GB). Raise data.cache_gb, or delete it")
        except lmdb.Error as error:
            self._give_up(str(error))

    def _open(self) -> lmdb.Environment | None:
        """Open the file once in each process: an environment must not be used after a fork."""
        import lmdb

        if self._process != os.getpid():
            self._process, self._environment = os.getpid(), None
            self.pending = {}
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                self._environment = lmdb.open(
                    str(self.folder), map_size=int(self.gigabytes * 2**30), max_readers=READERS, readahead=False
                )
            except (lmdb.Error, OSError) as error:
                self._give_up(str(error))
        return self._environment

    def _give_up(self, reason: str) -> None:
        if self.writable:
            log.warning("data.cache: nothing more is added to %s: %s", self.folder, reason)
        self.writable = False
        self.pending = {}


@dataclass
class CachedDecode:
    """Decodes images as `decode` does, through a cache.

    Attributes:
        decode: from the bytes of a file, or a Pillow image, to uint8 (height, width, 3).
        cache: of the results.
        settings: whatever else the result depends on.
        shorter_side: larger images are resized to it before they are kept; None keeps them as they are.
    """

    decode: Decode
    cache: PixelCache
    settings: str
    shorter_side: int | None = None

    def __call__(self, source: bytes | Image.Image) -> NDArray[np.uint8]:
        """Return the decoded image, uint8 (height, width, 3).

        Raises:
            BadImageError: it cannot be decoded completely.
        """
        if not isinstance(source, bytes):
            return self._shrunk(self.decode(source))  # there is no file whose content would identify it
        key = hashlib.blake2b(source, digest_size=24, person=b"pixels", key=self.settings.encode()[:64]).digest()
        image = self.cache.get(key)
        if image is None:
            image = self._shrunk(self.decode(source))
            self.cache.put(key, image)
        return image

    def _shrunk(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        height, width = image.shape[:2]
        shorter = min(height, width)
        if self.shorter_side is None or shorter <= self.shorter_side:
            return image
        size = (max(1, round(side * self.shorter_side / shorter)) for side in (height, width))
        return np.ascontiguousarray(resize(image, *size).permute(1, 2, 0).numpy())


def cached_decode(data: DataConfig, augment: AugmentConfig, preprocessing: Preprocessing, side: int) -> Decode:
    """Return how training images are decoded, through the cache that `data.cache` names.

    Args:
        data: the cache, and how large it may grow.
        augment: how squares are cut, on which depends what is needed of an image.
        preprocessing: decodes, and crops where the augmentation does not.
        side: of the largest squares that training sees, in pixels.

    Raises:
        UserError: LMDB is not installed.
    """
    root = cache_folder()
    if data.cache == "none" or root is None:
        return preprocessing.decode
    try:
        import lmdb  # noqa: F401
    except ImportError:
        raise UserError(f'data.cache={data.cache} needs LMDB: pip install "mlops_img[cache]"') from None
    shorter = needed_side(augment, preprocessing, side) if data.cache == "resized" else None
    cache = PixelCache(root.with_name(f"pixels-{FORMAT}"), data.cache_gb)
    return CachedDecode(preprocessing.decode, cache, f"{shorter} {data.sixteen_bit}", shorter)


def needed_side(augment: AugmentConfig, preprocessing: Preprocessing, side: int) -> int:
    """Return the shorter side of an image from which squares of this side can be cut without enlarging any part.

    For random-resized crops that is the smallest share of the area, as a square.
    """
    if augment.crop == "random_resized":
        return math.ceil(side / math.sqrt(augment.scale[0]))
    return max(side, round(side / preprocessing.crop_pct))


def _pack(image: NDArray[np.uint8]) -> bytes:
    return SHAPE.pack(*image.shape[:2]) + image.tobytes()


def _unpack(content: memoryview) -> NDArray[np.uint8] | None:
    """Return the image, in memory of its own that may be written to; None where it is not whole."""
    height, width = SHAPE.unpack_from(content)
    pixels = np.frombuffer(content, np.uint8, offset=SHAPE.size)
    return pixels.reshape(height, width, 3).copy() if pixels.size == height * width * 3 else None
