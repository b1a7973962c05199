"""The preprocessing that evaluation, export and serving share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional

from mlops_img.preprocessing.decode import decode_rgb

# Above this ratio of the longer to the shorter side, only the part of the image that is kept is resized.
ELONGATED = 8
RGB_TO_GRAY = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow's conversion to "L"


@dataclass(frozen=True)
class Preprocessing:
    """Decode, resize the shorter side, crop the center, normalize.

    Attributes:
        image_size: side of the square output, in pixels.
        crop_pct: the shorter side is resized to round(image_size / crop_pct).
        mean, std: per RGB channel, for values in [0, 1].
        gray: whether the model takes a single channel, the gray value.
        sixteen_bit: which value is white in an image of more than 8 bits per channel, see `decode.decode_rgb`.
    """

    image_size: int
    crop_pct: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    gray: bool = False
    sixteen_bit: str = "declared"

    def decode(self, source: bytes | Image.Image) -> NDArray[np.uint8]:
        """Decode the bytes of an image file, or a Pillow image, to uint8 (height, width, 3).

        Raises:
            BadImageError: the image cannot be decoded completely.
        """
        return decode_rgb(source, self.sixteen_bit)

    def crop(self, image: NDArray[np.uint8]) -> Tensor:
        """Resize and crop like torchvision's Resize and CenterCrop, bilinear with antialiasing.

        Pixels differ from Pillow's by at most one level of 255 (both round fixed-point sums), and in rare cases by two
        if one side of the image is more than 8 times the other.

        Args:
            image: uint8 (height, width, 3).

        Returns:
            uint8 (3, image_size, image_size).
        """
        height, width = self.resized(*image.shape[:2])
        side = self.image_size
        top, left = round((height - side) / 2), round((width - side) / 2)
        if max(height, width) > ELONGATED * min(height, width):
            return resized_part(image, (height, width), top, left, side)
        return resize(image, height, width)[:, top : top + side, left : left + side]

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """Return the height and width of an image after resizing and before cropping, given those of the original."""
        # Not less than the square that is cropped from it.
        target = max(self.image_size, round(self.image_size / self.crop_pct))
        shorter = min(height, width)
        return target * height // shorter, target * width // shorter

    def normalize(self, images: Tensor) -> Tensor:
        """Convert uint8 (n, 3, h, w) to normalized float32 (n, 3 or 1, h, w) on the device of the images."""
        count, _, height, width = images.shape
        # Whole rows of pixels: broadcasting over a dimension of 3 channels takes a CPU five times as long.
        rows = images.permute(0, 2, 3, 1).reshape(count, height, width * 3)
        mean, std = (_along_row(values, width, images.device) * 255 for values in (self.mean, self.std))
        normalized = rows.float().sub_(mean).div_(std).view(count, height, width, 3).permute(0, 3, 1, 2)
        if self.gray:
            weights = _along_row(RGB_TO_GRAY, 1, images.device).view(1, 3, 1, 1)
            return (normalized * weights).sum(1, keepdim=True)
        return normalized

    def denormalize(self, images: Tensor) -> Tensor:
        """Convert the result of `normalize`, possibly augmented, back to uint8 (n, 3, h, w) for display.

        Values outside 0 to 255 are clipped; the images of a model with one channel become gray.
        """
        levels = torch.tensor([0, 255], dtype=torch.uint8, device=images.device)
        black, white = self.normalize(levels.view(2, 1, 1, 1).expand(2, 3, 1, 1))
        pixels: Tensor = (images - black) / (white - black) * 255
        return pixels.round_().clamp_(0, 255).to(torch.uint8).expand(-1, 3, -1, -1)

    def to_dict(self) -> dict[str, Any]:
        """Return a dictionary of plain values, for JSON and checkpoints."""
        return {**asdict(self), "mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Preprocessing:
        """Create the preprocessing from the result of `to_dict`, of this or an earlier version."""
        renamed = {"gray" if name == "grey" else name: value for name, value in values.items()}
        return cls(**{**renamed, "mean": tuple(values["mean"]), "std": tuple(values["std"])})


@lru_cache
def _along_row(values: tuple[float, ...], width: int, device: torch.device) -> Tensor:
    """Repeat the values of the channels for each pixel of a row: float32 (width * number of values,).

    Cached, because a copy to a device synchronizes with it.
    """
    # The cached tensor may be created during evaluation and used in training.
    with torch.inference_mode(False):
        return torch.tensor(values).repeat(width).to(device)


def resize(image: NDArray[np.uint8], height: int, width: int) -> Tensor:
    """Resize bilinearly with antialiasing: uint8 (h, w, 3), any strides, to uint8 (3, height, width)."""
    if image.shape[:2] == (height, width):
        return torch.from_numpy(image).permute(2, 0, 1)
    # PyTorch uses vector instructions for (1, 3, h, w) in channels-last memory.
    batch = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1).unsqueeze(0)
    return functional.interpolate(batch, (height, width), mode="bilinear", antialias=True).squeeze(0)


def resized_part(image: NDArray[np.uint8], size: tuple[int, int], top: int, left: int, side: int) -> Tensor:
    """Return `resize(image, *size)[:, top : top + side, left : left + side]` without resizing the rest.

    For elongated images: one of 1 x 5000 pixels would take a gigabyte after resizing. Pillow is used because it can
    resize a part of an image. Some pixels differ from those of `resize` by one level of 255, in rare cases by two.
    """
    windows, box = [], []
    for start, old, new in ((top, image.shape[0], size[0]), (left, image.shape[1], size[1])):
        scale = old / new
        margin = 2 + int(scale)  # support of the filter
        first = max(0, int(start * scale) - margin)
        windows.append(slice(first, int((start + side) * scale) + margin))
        box.append((start * scale - first, (start + side) * scale - first))
    (upper, lower), (near, far) = box
    part = Image.fromarray(np.ascontiguousarray(image[tuple(windows)]))
    square = part.resize((side, side), Image.Resampling.BILINEAR, box=(near, upper, far, lower))
    return torch.from_numpy(np.array(square)).permute(2, 0, 1)


def stack(images: Sequence[Tensor]) -> Tensor:
    """Stack uint8 (3, h, w) images to (n, 3, h, w) in channels-last memory without transposing them."""
    return torch.stack([image.permute(1, 2, 0) for image in images]).permute(0, 3, 1, 2)
