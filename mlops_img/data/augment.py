"""What training images go through: on each uint8 image in the workers, and on each batch on the device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from timm.data.random_erasing import RandomErasing
from torch import Tensor
from torchvision.transforms import RandomResizedCrop, v2

from mlops_img.config import AugmentConfig
from mlops_img.data.transforms import Preprocessing, resize

Crop = Callable[[NDArray[np.uint8]], Tensor]


class ImageAugment:
    """From a decoded image to the uint8 square that training sees.

    Draws from PyTorch's global CPU generator alone, so that seeding it decides everything.
    """

    def __init__(self, config: AugmentConfig, preprocessing: Preprocessing) -> None:
        self.config = config
        self.preprocessing = preprocessing
        self.crop: Crop = {
            "random_resized": self._random_resized_crop,
            "pad": self._padded_crop,
            "none": preprocessing.crop,
        }[config.crop]
        self.transform = v2.Compose([*_image_transforms(config), v2.Identity()])

    def __call__(self, image: NDArray[np.uint8]) -> Tensor:
        """Map uint8 (height, width, 3) to uint8 (3, image_size, image_size)."""
        augmented: Tensor = self.transform(self.crop(image))
        return augmented

    def _random_resized_crop(self, image: NDArray[np.uint8]) -> Tensor:
        shape = torch.empty(
            (3, *image.shape[:2]), device="meta"
        )  # the parameters follow from the shape alone
        top, left, height, width = RandomResizedCrop.get_params(shape, self.config.scale, self.config.ratio)
        side = self.preprocessing.image_size
        return resize(image[top : top + height, left : left + width], side, side)

    def _padded_crop(self, image: NDArray[np.uint8]) -> Tensor:
        padding, side = self.config.padding, self.preprocessing.image_size
        square = v2.functional.pad(self.preprocessing.crop(image), [padding], padding_mode="reflect")
        top, left = torch.randint(2 * padding + 1, (2,)).tolist()
        return square[:, top : top + side, left : left + side]


def _image_transforms(config: AugmentConfig) -> list[Callable[[Tensor], Tensor]]:
    transforms: list[Callable[[Tensor], Tensor]] = []
    affine = (config.degrees, config.translate, tuple(config.zoom), config.shear)
    if affine != (0, 0, (1, 1), 0):
        transforms.append(
            v2.RandomAffine(
                config.degrees,
                translate=(config.translate, config.translate),
                scale=tuple(config.zoom),
                shear=config.shear or None,
                interpolation=v2.InterpolationMode.BILINEAR,
            )
        )
    if config.hflip > 0:
        transforms.append(v2.RandomHorizontalFlip(config.hflip))
    if config.vflip > 0:
        transforms.append(v2.RandomVerticalFlip(config.vflip))
    if config.policy == "randaugment":
        transforms.append(v2.RandAugment(config.randaugment_ops, config.randaugment_magnitude))
    elif config.policy == "trivialaugment":
        transforms.append(v2.TrivialAugmentWide())
    if config.color_jitter > 0 or config.hue_jitter > 0:
        strength = config.color_jitter
        transforms.append(v2.ColorJitter(strength, strength, strength, config.hue_jitter))
    if config.custom is not None:
        from hydra.utils import instantiate

        transforms.append(instantiate(config.custom))
    return transforms


class BatchAugment:
    """Random erasing, mixup and cutmix on a normalised batch, on its device.

    Draws from the global generators of PyTorch and of `random`, which `seeding.seed_step` seeds.
    """

    def __init__(self, config: AugmentConfig, num_classes: int) -> None:
        self.mix_prob = config.mix_prob
        self.mixes: list[Callable[[Tensor, Tensor], Any]] = []
        if config.mixup > 0:
            self.mixes.append(v2.MixUp(alpha=config.mixup, num_classes=num_classes))
        if config.cutmix > 0:
            self.mixes.append(v2.CutMix(alpha=config.cutmix, num_classes=num_classes))
        self.erase = (
            RandomErasing(config.random_erasing, mode="pixel", device="cpu")
            if config.random_erasing > 0
            else None
        )

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Augment a batch.

        Args:
            images: float32 (n, 3, h, w), normalised.
            labels: int64 (n,).

        Returns:
            The images, and the labels: as they came, or mixed, float32 (n, classes).
        """
        if self.erase is not None:
            self.erase.device = images.device
            images = self.erase(images)
        # Drawn on the CPU: asking the device for it would wait for the device.
        if self.mixes and torch.rand(()).item() < self.mix_prob:
            mix = self.mixes[int(torch.randint(len(self.mixes), ()))]
            images, labels = mix(images, labels)
        return images, labels
