"""Photos for the benchmarks: a folder of the user's, or made here where none is given."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

from mlops_img.errors import UserError

CLASSES, PER_CLASS = 10, 32
WIDTH, HEIGHT, QUALITY = 500, 400, 90
GENERATED = (
    f"no --photos FOLDER: {CLASSES * PER_CLASS} generated JPEGs of {WIDTH} x {HEIGHT} px were read instead; "
    "compare the figures only with others of generated photos"
)


def add_photos(parser: argparse.ArgumentParser) -> None:
    """Add the option --photos."""
    parser.add_argument("--photos", type=Path, help="folder of class folders of JPEGs; without: generated ones")


@contextmanager
def photo_folder(given: Path | None) -> Iterator[Path]:
    """Give a folder of class folders of JPEGs: `given`, or for the length of the block one that is made now.

    Raises:
        UserError: `given` is not a folder.
    """
    if given is not None:
        if not given.is_dir():
            raise UserError(f"--photos {given}: there is no such folder")
        yield given
        return
    with TemporaryDirectory() as place:
        folder = Path(place)
        make_photos(folder)
        yield folder


def make_photos(folder: Path) -> None:
    """Write JPEGs of smooth colors and fine noise, whose files are about as large as photos' (100 kB)."""
    random = np.random.default_rng(0)
    for number in range(CLASSES * PER_CLASS):
        colors = Image.fromarray(random.integers(0, 256, (8, 10, 3), dtype=np.uint8))
        smooth = np.asarray(colors.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC), dtype=np.int16)
        noisy = smooth + random.integers(-20, 21, (HEIGHT, WIDTH, 1), dtype=np.int16)
        path = folder / f"class_{number % CLASSES}" / f"{number:03}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path, quality=QUALITY)
