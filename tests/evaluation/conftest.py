"""A run and its data set, which a test may modify."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.helpers.commands import TINY
from tests.helpers.shapes import write_shapes
from tests.helpers.shared_bundle import once, python


@pytest.fixture(scope="session")
def trained_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with photos/ and the run trained on them in run/. Read-only."""

    def make(root: Path) -> None:
        photos = write_shapes(root / "photos", per_class=20)
        python("-m", "mlops_img.train", *TINY, f"data.root={photos}", f"hydra.run.dir={root}/run", f"runs_dir={root}")

    return once(tmp_path_factory, "evaluated", make)


@pytest.fixture
def shared_shapes(trained_once: Path) -> Path:
    """Return the data set of the run. Read-only."""
    return trained_once / "photos"


@pytest.fixture
def run(trained_once: Path, tmp_path: Path) -> Path:
    """Return a copy of the run, which the test may modify."""
    shutil.copytree(trained_once / "run", tmp_path / "runs" / "a")
    (tmp_path / "runs" / "latest").symlink_to("a")
    return tmp_path / "runs" / "a"


@pytest.fixture
def mine(run: Path, shared_shapes: Path, tmp_path: Path) -> Path:
    """Return a copy of the data set of the run, which the test may modify."""
    shutil.copytree(shared_shapes, tmp_path / "mine")
    config = run / "config.yaml"
    config.write_text(config.read_text().replace(f"root: {shared_shapes}\n", "root: mine\n"))
    return tmp_path / "mine"
