"""A data set of class folders."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.shapes import write_shapes


@pytest.fixture
def given(tmp_path: Path) -> Path:
    """Write class folders with given splits."""
    for number, split in enumerate(("train", "val", "test")):
        write_shapes(tmp_path / "given" / split, per_class=4, seed=number)
    return tmp_path / "given"
