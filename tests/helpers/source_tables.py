"""Helpers of the tests of data sources."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlops_img.config.data import DataConfig, FolderConfig
from mlops_img.data.dataset import load_dataset
from mlops_img.data.sources.base import ImageSet, Table
from mlops_img.data.sources.registry import open_source
from mlops_img.errors import UserError
from tests.helpers.shapes import draw_shape


def table_of(config: DataConfig) -> Table:
    return open_source(config).table()


def names(images: ImageSet, root: Path) -> list[str]:
    """Return the paths of the images relative to `root`."""
    return [str(Path(path).relative_to(root)) for path in images.paths]


def save(path: Path, seed: int = 0, kind: str = "circle") -> Path:
    """Save a drawing of a shape to a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draw_shape(kind, seed).save(path)
    return path


def folder_table(root: Path) -> Table:
    return table_of(FolderConfig(root=str(root)))


def error_message(root: Path) -> str:
    with pytest.raises(UserError) as caught:
        load_dataset(FolderConfig(root=str(root)))
    message = str(caught.value)
    assert "\n" not in message
    assert str(root) in message
    return message
