"""A batch of images, as the data loader returns it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Batch(NamedTuple):
    """Images with their labels.

    Attributes:
        images: uint8 (n, 3, h, w), channels-last in memory.
        labels: int64 (n,).
        rows: int64 (n,), the images' indices in their ImageSet.
        bad: (row, reason) of each image that could not be decoded and is therefore missing above.
    """

    images: Tensor
    labels: Tensor
    rows: Tensor
    bad: list[tuple[int, str]]

    def to(self, device: torch.device) -> Batch:
        """Return the batch with its images and labels on the device, copied asynchronously."""
        images = self.images.to(device, non_blocking=True)
        return self._replace(images=images, labels=self.labels.to(device, non_blocking=True))
