"""From a folder of labeled images to a small, verified classifier, with one configuration."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlops_img.bundle.prediction import Prediction
    from mlops_img.bundle.predictor import Predictor
    from mlops_img.registry.load import load

__version__ = "0.1.0"
__all__ = ["Prediction", "Predictor", "__version__", "load"]

# Imported on first use: `--help` of a command needs no PyTorch.
LAZY = {"Prediction": "bundle.prediction", "Predictor": "bundle.predictor", "load": "registry.load"}


def __getattr__(name: str) -> Any:
    if name not in LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{LAZY[name]}"), name)
