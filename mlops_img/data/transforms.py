"""The one preprocessing: what a model sees of an image when it is evaluated, exported and served."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional


RGB_TO_GREY = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow's conversion to "L"


@dataclass(frozen=True)
class Preprocessing:
    """Resize the shorter side, crop the centre, normalise.

    Attributes:
        image_size: side of the square, in pixels.
        crop_pct: the shorter side is resized to round(image_size / crop_pct).
        mean, std: per RGB channel, of values in [0, 1].
        grey: the model takes one channel, the grey value.
    """

    image_size: int
    crop_pct: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    grey: bool = False

    def crop(self, image: NDArray[np.uint8]) -> Tensor:
        """Resize and crop as torchvision's Resize and CenterCrop do, bilinear with antialiasing.

        Pixels differ from Pillow's by one level of 255 at most (both round fixed-point sums).

        Args:
            image: uint8 (height, width, 3).

        Returns:
            uint8 (3, image_size, image_size).
        """
        return self.centre(self.shorter_side(image))

    def shorter_side(self, image: NDArray[np.uint8]) -> Tensor:
        """Resize so that the shorter side fits; uint8 (height, width, 3) to uint8 (3, h, w)."""
        height, width = image.shape[:2]
        target = round(self.image_size / self.crop_pct)
        shorter = min(height, width)
        return resize(image, max(1, target * height // shorter), max(1, target * width // shorter))

    def centre(self, image: Tensor) -> Tensor:
        """Crop the middle square of uint8 (3, h, w)."""
        height, width = image.shape[1:]
        top, left = round((height - self.image_size) / 2), round((width - self.image_size) / 2)
        return image[:, top : top + self.image_size, left : left + self.image_size]

    def normalize(self, images: Tensor) -> Tensor:
        """Map uint8 (n, 3, h, w) to float32 (n, 3 or 1, h, w), on the device where the images lie."""
        mean = images.new_tensor(self.mean, dtype=torch.float32).view(1, -1, 1, 1) * 255
        std = images.new_tensor(self.std, dtype=torch.float32).view(1, -1, 1, 1) * 255
        normalized = images.float().sub_(mean).div_(std)
        if self.grey:
            return (normalized * normalized.new_tensor(RGB_TO_GREY).view(1, 3, 1, 1)).sum(1, keepdim=True)
        return normalized

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON and checkpoints."""
        return {**asdict(self), "mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Preprocessing:
        """Make again what `to_dict` wrote."""
        return cls(**{**values, "mean": tuple(values["mean"]), "std": tuple(values["std"])})


def resize(image: NDArray[np.uint8], height: int, width: int) -> Tensor:
    """Resize bilinearly with antialiasing: uint8 (h, w, 3), any strides, to uint8 (3, height, width)."""
    if image.shape[:2] == (height, width):
        return torch.from_numpy(image).permute(2, 0, 1)
    # As (1, 3, h, w) in channels-last memory, which PyTorch resizes with vector instructions.
    batch = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1).unsqueeze(0)
    return functional.interpolate(batch, (height, width), mode="bilinear", antialias=True).squeeze(0)


def stack(images: Sequence[Tensor]) -> Tensor:
    """Stack uint8 (3, h, w) images to (n, 3, h, w) in channels-last memory, without transposing any."""
    return torch.stack([image.permute(1, 2, 0) for image in images]).permute(0, 3, 1, 2)
