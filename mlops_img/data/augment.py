"""Augmentation: of each uint8 image in the workers, and of each batch on the device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache, partial
from itertools import compress
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms import RandomResizedCrop, v2

from mlops_img.config.augment import AugmentConfig
from mlops_img.core.seeding import Purpose, derive
from mlops_img.data.sampler import Position
from mlops_img.errors import UserError
from mlops_img.preprocessing.transforms import Preprocessing, resize

# From a decoded image, uint8 (height, width, 3), and a number of pixels to a square with that side.
Crop = Callable[[NDArray[np.uint8], int], Tensor]
NOWHERE = Position(0, 0)


class ImageAugment:
    """From a decoded image to the uint8 square that training sees.

    Draws from PyTorch's global CPU generator alone, so that seeding it decides everything. A transform of
    the user's own (`config.custom`) should do so too: what it draws elsewhere is not repeatable.

    Args:
        config: what is done.
        preprocessing: of the evaluation, whose crop some options start from.
        seed: of the run; decides in which epochs `config.alternate_hflip` mirrors an image.
    """

    def __init__(self, config: AugmentConfig, preprocessing: Preprocessing, seed: int = 0) -> None:
        if config.crop == "pad" and config.padding >= preprocessing.image_size:
            raise UserError(
                f"augment.padding={config.padding}: it must be less than the image's side, "
                f"data.image_size={preprocessing.image_size}"
            )
        self.config = config
        self.preprocessing = preprocessing
        self.seed = seed
        self.crop: Crop = {
            "random_resized": self._random_resized_crop,
            "pad": self._padded_crop,
            "none": self._evaluation_crop,
        }[config.crop]
        try:
            self.transforms = _image_transforms(config)
        except (ValueError, TypeError) as error:
            raise UserError(f"augment: {' '.join(str(error).split())}") from None
        if config.custom:
            self._try_out()

    @property
    def changes(self) -> bool:
        """Whether training images differ from those of the evaluation."""
        return self.config.crop != "none" or self.config.alternate_hflip or bool(self.transforms)

    def __call__(self, image: NDArray[np.uint8], position: Position = NOWHERE) -> Tensor:
        """Map uint8 (height, width, 3) to uint8 (3, side, side), the side being the position's or else image_size."""
        square = self.crop(image, position.side or self.preprocessing.image_size)
        if self.config.alternate_hflip and self._is_mirrored(position):
            square = square.flip(-1)
        return self._transform(square)

    def at(self, position: Position) -> Callable[[NDArray[np.uint8]], Tensor]:
        """Return the transform of the image at this position."""
        return partial(self, position=position)

    def _is_mirrored(self, position: Position) -> bool:
        first = derive(self.seed, Purpose.MIRROR, position.row)
        return (first + position.epoch) % 2 == 1

    def _transform(self, square: Tensor) -> Tensor:
        for transform in self.transforms:
            square = transform(square)
        return square

    def _evaluation_crop(self, image: NDArray[np.uint8], side: int) -> Tensor:
        return with_side(self.preprocessing, side).crop(image)

    def _random_resized_crop(self, image: NDArray[np.uint8], side: int) -> Tensor:
        # The parameters depend on the shape alone.
        shape = torch.empty((3, *image.shape[:2]), device="meta")
        top, left, height, width = RandomResizedCrop.get_params(shape, self.config.scale, self.config.ratio)
        # Of an image a pixel wide, an extreme ratio may leave no pixel.
        return resize(image[top : top + max(1, height), left : left + max(1, width)], side, side)

    def _padded_crop(self, image: NDArray[np.uint8], side: int) -> Tensor:
        padding = self.config.padding
        top, left = torch.randint(2 * padding + 1, (2,)).tolist()
        places = np.abs(np.arange(-padding, side + padding))
        places = np.where(places < side, places, 2 * (side - 1) - places)  # mirrored at the edges
        # NumPy's indexing takes half the time of PyTorch's for a small image.
        square = self._evaluation_crop(image, side).permute(1, 2, 0).numpy()
        shifted = square[places[top : top + side, None], places[left : left + side]]
        return torch.from_numpy(shifted).permute(2, 0, 1)

    def _try_out(self) -> None:
        """Call the user's own transform once here: an error in a worker is hard to read."""
        side = self.preprocessing.image_size
        square = torch.zeros((3, side, side), dtype=torch.uint8)
        with torch.random.fork_rng(devices=[]):
            given = self._transform(square)
        if not isinstance(given, Tensor) or (given.dtype, given.shape) != (square.dtype, square.shape):
            raise UserError(f"augment.custom: it must return a uint8 tensor of shape (3, {side}, {side}), as it gets")


@lru_cache
def with_side(preprocessing: Preprocessing, side: int) -> Preprocessing:
    """Return the same preprocessing with another image_size."""
    return replace(preprocessing, image_size=side)


class Flip:
    """Mirror an image with some probability. torchvision's takes longer than decoding a small image."""

    def __init__(self, dimension: int, probability: float) -> None:
        self.dimension = dimension
        self.probability = probability

    def __call__(self, image: Tensor) -> Tensor:
        """Map an image, uint8 (3, height, width), to itself or its mirror image."""
        return image.flip(self.dimension) if torch.rand(()).item() < self.probability else image


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
    if config.hflip > 0 and not config.alternate_hflip:
        transforms.append(Flip(-1, config.hflip))
    if config.vflip > 0:
        transforms.append(Flip(-2, config.vflip))
    if config.policy == "randaugment":
        transforms.append(v2.RandAugment(config.randaugment_ops, config.randaugment_magnitude))
    elif config.policy == "trivialaugment":
        transforms.append(v2.TrivialAugmentWide())
    if config.color_jitter > 0 or config.hue_jitter > 0:
        strength = config.color_jitter
        transforms.append(v2.ColorJitter(strength, strength, strength, config.hue_jitter))
    if config.custom:
        transforms.append(_custom_transform(config.custom))
    return transforms


def _custom_transform(custom: dict[str, Any]) -> Callable[[Tensor], Tensor]:
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    try:
        transform = instantiate(custom)
    except InstantiationException as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"augment.custom: {reason}. (To be passed on, a function also needs _partial_: true)"
        ) from error
    if not callable(transform):
        raise UserError(f"augment.custom: it needs _target_, the import path of a callable; got {custom}")
    function: Callable[[Tensor], Tensor] = transform
    return function


class BatchAugment:
    """Random erasing, mixup and cutmix on a normalized batch, on its device.

    Draws from the global generators of PyTorch, which `seeding.seed_step` seeds.
    """

    def __init__(self, config: AugmentConfig, num_classes: int) -> None:
        self.mix_prob = config.mix_prob
        self.mixes: list[Callable[[Tensor, Tensor], Any]] = []
        if config.mixup > 0:
            self.mixes.append(v2.MixUp(alpha=config.mixup, num_classes=num_classes))
        if config.cutmix > 0:
            self.mixes.append(v2.CutMix(alpha=config.cutmix, num_classes=num_classes))
        self.erase = RandomErasing(config.random_erasing) if config.random_erasing > 0 else None

    @property
    def changes(self) -> bool:
        """Whether batches are changed at all."""
        return bool(self.mixes) or self.erase is not None

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Augment a batch.

        Args:
            images: float32 (n, 3, h, w), normalized.
            labels: int64 (n,).

        Returns:
            The images, and the labels: as they came, or mixed, float32 (n, classes).
        """
        if self.erase is not None:
            images = self.erase(images)
        # Drawn on the CPU: reading it from the device would wait for the device.
        if self.mixes and torch.rand(()).item() < self.mix_prob:
            mix = self.mixes[int(torch.randint(len(self.mixes), ()))]
            images, labels = mix(images, labels)
        return images, labels


class RandomErasing:
    """Fill a rectangle of some images with noise (arXiv:1708.04896), with timm's sizes and shapes.

    timm's own draws from Python's `random`, which other threads draw from too, such as a download that waits to try
    again: then a resumed run would not be the uninterrupted one.
    """

    AREA = (0.02, 1 / 3)
    ASPECT = (0.3, 1 / 0.3)

    def __init__(self, probability: float) -> None:
        self.probability = probability

    def __call__(self, images: Tensor) -> Tensor:
        """Change float (n, 3, h, w) in place; which and where is drawn on the CPU, the noise on their device."""
        chosen = torch.rand(len(images)) < self.probability
        for image in compress(images, chosen.tolist()):
            top, left, height, width = RandomResizedCrop.get_params(image, self.AREA, self.ASPECT)
            image[:, top : top + height, left : left + width].normal_()
        return images
