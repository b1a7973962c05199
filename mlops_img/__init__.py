"""From a folder of labeled images to a small, verified classifier, with one configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlops_img.bundle.prediction import Prediction
    from mlops_img.bundle.predictor import Predictor, load

__version__ = "0.1.0"
__all__ = ["Prediction", "Predictor", "__version__", "load"]


def __getattr__(name: str) -> Any:
    # Not imported before it is asked for: `--help` of a command needs no PyTorch.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from mlops_img.bundle import predictor

    return getattr(predictor, name)
