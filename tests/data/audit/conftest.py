"""A clean data set."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.photos import CLASSES, SPLITS, photo


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Write a clean data set: 3 splits of 2 classes of 3 different photos."""
    folder = tmp_path / "photos"
    seed = 0
    for split in SPLITS:
        for name in CLASSES:
            (folder / split / name).mkdir(parents=True)
            for number in range(3):
                photo(seed).save(folder / split / name / f"{number}.png")
                seed += 1
    return folder
