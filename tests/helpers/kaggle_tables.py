"""Tables in the style of Kaggle, and the errors of those that are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mlops_img.config.data import CsvConfig
from mlops_img.data.dataset import load_dataset
from mlops_img.errors import UserError


def kaggle_config(root: Path, **changes: Any) -> CsvConfig:
    keys = {"file_column": "id", "label_column": "breed", "file_prefix": "images/", "file_suffix": ".png"}
    return CsvConfig(root=str(root), **(keys | changes))


def error_message(root: Path, **changes: Any) -> str:
    with pytest.raises(UserError) as caught:
        load_dataset(kaggle_config(root, **changes))
    message = str(caught.value)
    assert "\n" not in message
    return message


def write(root: Path, *lines: str) -> None:
    (root / "labels.csv").write_text("\n".join(lines) + "\n")
