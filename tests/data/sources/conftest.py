"""Data sets of class folders and of a table."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.shapes import SHAPES, write_shapes
from tests.helpers.source_tables import save


@pytest.fixture
def given(tmp_path: Path) -> Path:
    """Write class folders with given splits."""
    for number, split in enumerate(("train", "val", "test")):
        write_shapes(tmp_path / "given" / split, per_class=4, seed=number)
    return tmp_path / "given"


@pytest.fixture
def kaggle(tmp_path: Path) -> Path:
    """Write images to one folder and a table of them, in the style of Kaggle."""
    lines = ["id,breed,part"]
    for number in range(12):
        save(tmp_path / "images" / f"{number:03}.png", number, SHAPES[number % 2])
        lines.append(f"{number:03},{SHAPES[number % 2]},{('train', 'train', 'Valid', 'test')[number // 3]}")
    (tmp_path / "labels.csv").write_text("\n".join(lines) + "\n")
    return tmp_path
