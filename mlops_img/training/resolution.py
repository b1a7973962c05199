"""Progressive resolution: training begins with small images, which take less time (arXiv:2104.00298)."""

from __future__ import annotations

from dataclasses import dataclass

from mlops_img.config.train import TrainConfig


@dataclass(frozen=True)
class Resolution:
    """The side of the training images as a function of the progress of the run.

    Attributes:
        sides: in pixels, ascending; each is used for an equal part of the run.
    """

    sides: tuple[int, ...]

    def side(self, progress: float) -> int:
        """Return the side at this share of the run, 0 to 1."""
        return self.sides[self._stage(progress)]

    def slowdown(self, progress: float) -> float:
        """Return how much longer a step takes on average from here on than it does now, by the number of pixels."""
        stage, count = self._stage(progress), len(self.sides)
        left = 1 - progress
        if left <= 0:
            return 1.0
        shares = [(stage + 1) / count - progress, *[1 / count] * (count - stage - 1)]
        pixels = [side**2 for side in self.sides[stage:]]
        return sum(share * number for share, number in zip(shares, pixels, strict=True)) / left / pixels[0]

    def _stage(self, progress: float) -> int:
        return min(int(progress * len(self.sides)), len(self.sides) - 1)


def make_resolution(config: TrainConfig) -> Resolution | None:
    """Return the resolution as configured; None where all images have the side data.image_size."""
    if config.resolution is None:
        return None
    first, last = config.resolution
    return Resolution((*range(first, last, config.resolution_step), last))
