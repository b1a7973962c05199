"""Initialization that depends on the data: some models set their first layer from training images."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np
from torch import Tensor

from mlops_img.core.seeding import Purpose, derive
from mlops_img.data.loader import handle_bad_images, make_loader
from mlops_img.data.sampler import BatchIndices
from mlops_img.data.skipped import SkippedImages
from mlops_img.data.sources.base import ImageSet
from mlops_img.preprocessing.transforms import Preprocessing

MAX_PIXELS = 5_000_000  # of all images: enough for a covariance of patches, and little memory


@runtime_checkable
class InitializedFromImages(Protocol):
    """A model that is initialized from training images, before its first step."""

    def init_from_images(self, images: Tensor) -> None:
        """Set weights from normalized images, float32 (n, channels, h, w), on the CPU."""


def init_from_images(
    model: InitializedFromImages, images: ImageSet, preprocessing: Preprocessing, seed: int, *, skip_bad: bool
) -> None:
    """Let the model initialize itself from a sample of the images, as evaluation sees them.

    Args:
        model: on the CPU.
        images: to train on.
        preprocessing: crops and normalizes them.
        seed: of the sample.
        skip_bad: leave out images that cannot be decoded.

    Raises:
        UserError: an image cannot be decoded, and `skip_bad` is not set; or none can.
    """
    count = min(len(images), max(1, MAX_PIXELS // preprocessing.image_size**2))
    rows = np.random.default_rng(derive(seed, Purpose.SAMPLE)).choice(len(images), count, replace=False)
    loader = make_loader(images, preprocessing.crop, [BatchIndices(0, rows)], decode=preprocessing.decode)
    skipped = SkippedImages() if skip_bad else None  # the training counts them
    for batch in handle_bad_images(loader, images, skipped, min_images=0):
        model.init_from_images(preprocessing.normalize(batch.images))
