"""Weights of a small model."""

from __future__ import annotations

import pytest
import timm
from torch import Tensor

from tests.helpers.weights_files import NAME


@pytest.fixture
def state() -> dict[str, Tensor]:
    """Return weights of five classes whose tensors all differ from those of a new model."""
    return {name: tensor + 1 for name, tensor in timm.create_model(NAME, num_classes=5).state_dict().items()}
