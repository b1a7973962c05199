"""The predict command on the small net's photos."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers.commands import Outcome


@pytest.fixture
def predict(command: Callable[..., Outcome], portable: Path, shapes: Path) -> Callable[..., Outcome]:
    """Predict the test's own 30 photos with the shared bundle into predictions/, as CSV; further arguments override."""

    def call(*arguments: str) -> Outcome:
        defaults = {
            "bundle": str(portable),
            "input": str(shapes),
            "output": "predictions",
            "format": "csv",
            "data.workers": "0",
        }
        given = {argument.split("=")[0] for argument in arguments}
        kept = [f"{key}={value}" for key, value in defaults.items() if key not in given]
        return command("mlops_img.predict", *kept, *arguments)

    return call
