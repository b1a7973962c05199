"""Find the device that a setting names: `auto`, `cpu`, `cuda` or `cuda:<number>`."""

from __future__ import annotations

import torch

from mlops_img.errors import UserError


def find_device(name: str, setting: str) -> torch.device:
    """Return the device of this name; auto means CUDA if it is available.

    Args:
        name: auto, cpu, cuda or cuda:<number>.
        setting: the configuration key of the name, for the error message.

    Raises:
        UserError: this machine has no such device.
    """
    try:
        device = torch.device(name if name != "auto" else "cuda" if torch.cuda.is_available() else "cpu")
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"{setting}={name}: no such device. Use auto, cpu, cuda or cuda:<number>")
    if device.type == "cpu":
        return device
    if (device.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"{setting}={name}: this machine has {torch.cuda.device_count()} CUDA devices. Use {setting}=auto"
        )
    return torch.device("cuda", device.index or 0)
