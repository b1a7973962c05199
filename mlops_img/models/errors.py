"""Parts of the error messages about models and weights."""

from __future__ import annotations

from pathlib import Path

from mlops_img.errors import UserError

SAVE_TENSORS = "Save only its tensors: torch.save(model.state_dict(), ...), or as safetensors"


def not_weights(path: Path, why: str) -> UserError:
    """Return the error for a file that is not a weights file."""
    return UserError(f"model.weights: {path} is not a weights file: {why}")


def first_line(error: Exception) -> str:
    """Return the first line of the error message, or the type of the error if it has no message."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__
