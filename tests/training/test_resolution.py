"""train.resolution: small training images first, in equal parts of the run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from torch import Tensor, nn

from mlops_img.config.train import TrainConfig
from mlops_img.training.resolution import Resolution, make_resolution
from tests.helpers.commands import Outcome

Train = Callable[..., Outcome]
seen: list[int] = []


class NotesSides(nn.Module):
    """A linear model of mean colors that writes down the side of each batch that it is trained on."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(3, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits."""
        if self.training:
            seen.append(images.shape[-1])
        logits: Tensor = self.head(images.mean((2, 3)))
        return logits


def test_sides_grow_in_equal_parts_of_the_run() -> None:
    resolution = make_resolution(TrainConfig(resolution=[128, 192]))
    assert resolution == Resolution((128, 160, 192))
    assert [resolution.side(step / 9) for step in range(10)] == [128] * 3 + [160] * 3 + [192] * 4


def test_last_side_is_reached_where_the_step_does_not_divide_the_range() -> None:
    assert make_resolution(TrainConfig(resolution=[96, 150])) == Resolution((96, 128, 150))
    assert make_resolution(TrainConfig(resolution=[64, 64])) == Resolution((64,))
    assert make_resolution(TrainConfig()) is None


def test_slowdown_is_the_mean_number_of_pixels_ahead_over_that_of_now() -> None:
    resolution = Resolution((10, 20))
    assert resolution.slowdown(0.0) == pytest.approx((100 + 400) / 2 / 100)
    assert resolution.slowdown(0.25) == pytest.approx((100 / 3 + 400 * 2 / 3) / 100)
    assert resolution.slowdown(0.5) == resolution.slowdown(0.9) == resolution.slowdown(1.0) == 1.0


def test_training_sees_each_side_for_its_part_of_the_run(train: Train) -> None:
    seen.clear()
    options = ("model=custom", f"model._target_={__name__}.NotesSides", "train.resolution=[16,32]")
    outcome = train(*options, "train.resolution_step=16", "train.max_steps=6", "hydra.run.dir=runs/a")
    assert outcome.code == 0, outcome.err
    assert seen[-6:] == [16] * 3 + [32] * 3


def test_models_of_a_fixed_size_refuse_a_resolution(train: Train, tmp_path: Path) -> None:
    outcome = train("model.name=test_vit", "+model.kwargs.dynamic_img_size=false", "train.resolution=[16,32]")
    assert outcome.code == 2
    assert "train.resolution=16: model test_vit cannot take such images" in outcome.err
    assert not list(tmp_path.glob("runs/*/checkpoints/*"))


def test_padding_must_fit_the_smallest_images(train: Train) -> None:
    outcome = train("augment=small", "augment.padding=20", "train.resolution=[16,32]")
    assert outcome.code == 2
    assert "augment.padding=20: it must be less than the side of the training images" in outcome.err
