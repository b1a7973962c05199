"""Every key of the group `augment`: transforms of the training images. Light to import."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from mlops_img.config.rules import ascending_pair, at_least, between, key, one_of
from mlops_img.errors import UserError


@dataclass
class AugmentConfig:
    """Group `augment`: transforms of the training images only."""

    # How a square is cut: random_resized (any part, arXiv:1409.4842), pad (the evaluation crop shifted by
    # up to `padding` pixels, as usual on CIFAR), or none (the evaluation crop).
    crop: str = key("random_resized", one_of("random_resized", "pad", "none"))
    # random_resized: share of the image's area and aspect ratio, each from..to.
    scale: list[float] = key([0.08, 1.0], ascending_pair())
    ratio: list[float] = key([0.75, 1.3333], ascending_pair())
    padding: int = key(4, at_least(0))
    # Probabilities of a horizontal and a vertical flip.
    hflip: float = key(0.5, between(0, 1))
    vflip: float = key(0.0, between(0, 1))
    # Mirror each image in every second epoch instead, starting with a random half of them: in two epochs a model sees
    # both sides of every image (arXiv:2404.00498). hflip stays 0.5.
    alternate_hflip: bool = False
    # Random affine map: rotation in degrees either way, shift as a share of the side, scale from..to, shear
    # in degrees. At these defaults: no map.
    degrees: float = 0.0
    translate: float = 0.0
    zoom: list[float] = key([1.0, 1.0], ascending_pair())
    shear: float = 0.0
    # none, randaugment (arXiv:1909.13719) or trivialaugment (arXiv:2103.10158).
    policy: str = key("none", one_of("none", "randaugment", "trivialaugment"))
    randaugment_ops: int = key(2, at_least(0))
    randaugment_magnitude: int = key(9, between(0, 30))
    # Strength of brightness, contrast and saturation changes, and of hue changes (at most 0.5).
    color_jitter: float = key(0.0, at_least(0))
    hue_jitter: float = key(0.0, between(0, 0.5))
    # On the batch, on the device: probability of erasing a rectangle (arXiv:1708.04896), and the Beta
    # parameters of mixup (arXiv:1710.09412) and cutmix (arXiv:1905.04899); 0 is off. If both are on,
    # each batch gets one of them; mix_prob is the share of batches that get one.
    random_erasing: float = key(0.0, between(0, 1))
    mixup: float = key(0.0, at_least(0))
    cutmix: float = key(0.0, at_least(0))
    mix_prob: float = key(1.0, between(0, 1))
    # A transform of your own, last on each image: `_target_` of a callable uint8 (3, H, W) -> the same; {}: none.
    custom: dict[str, Any] | None = field(default_factory=dict)

    def check(self, prefix: str) -> None:
        """Raise a UserError where alternate_hflip has a probability beside it."""
        if self.alternate_hflip and self.hflip != 0.5:
            raise UserError(
                f"{prefix}hflip={self.hflip:g} does not apply with {prefix}alternate_hflip, which mirrors half of the "
                f"images in each epoch. Leave {prefix}hflip at 0.5"
            )
