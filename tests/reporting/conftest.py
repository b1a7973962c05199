"""An evaluation of real digits, a run folder and the page of an ordinary run."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlops_img.data.sources.mnist5k import TABLE
from mlops_img.reporting import report
from tests.helpers.reports import RUN_NAME, Reader, evaluate, write_run_folder


@pytest.fixture(scope="session")
def digits() -> tuple[dict[str, Any], Reader]:
    """Return an evaluation of real digits by a nearest-mean classifier with hundreds of mistakes, and their reader."""
    with gzip.open(TABLE) as file:
        table = np.loadtxt(file, np.uint8, delimiter=",")
    pixels, labels = table[:, :-1].astype(float), table[:, -1].astype(np.int64)
    test = np.arange(len(labels)) % 5 == 0
    means = np.stack([pixels[~test & (labels == digit)].mean(axis=0) for digit in range(10)])
    distances = np.square((pixels[test][:, None] - means) / 255).sum(axis=2)
    scores = np.exp(-0.3 * (distances - distances.min(axis=1, keepdims=True)))
    images = pixels[test].reshape(-1, 28, 28, 1).repeat(3, axis=3).astype(np.uint8)
    probabilities = scores / scores.sum(axis=1, keepdims=True)
    return evaluate(probabilities, labels[test], [str(digit) for digit in range(10)]), lambda index: images[index]


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return write_run_folder(tmp_path / RUN_NAME)


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory, digits: tuple[dict[str, Any], Reader]) -> Path:
    """Return the page of an ordinary run. Read-only."""
    return report.write_report(write_run_folder(tmp_path_factory.mktemp("runs") / RUN_NAME), *digits)
