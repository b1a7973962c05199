"""Augmentation: every option does what it says, and the seed decides all of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from mlops_img.config.augment import AugmentConfig
from mlops_img.config.rules import validate
from mlops_img.core.seeding import Purpose, seed_cpu
from mlops_img.data.augment import ImageAugment
from mlops_img.data.sampler import Position
from mlops_img.errors import UserError
from mlops_img.preprocessing.transforms import Preprocessing
from tests.helpers.shapes import draw_shape

SIDE = 32
PREPROCESSING = Preprocessing(SIDE, 0.875, (0.5,) * 3, (0.25,) * 3)
NOTHING: dict[str, Any] = {"crop": "none", "hflip": 0.0}


def photo(seed: int = 0) -> NDArray[np.uint8]:
    return np.array(draw_shape("circle", seed, side=60))


def coordinates(side: int) -> NDArray[np.uint8]:
    """An image whose red is the column and whose green is the row."""
    rows, columns = np.mgrid[:side, :side].astype(np.uint8)
    return np.stack([columns, rows, np.zeros_like(rows)], axis=2)


def augmenter(**options: Any) -> ImageAugment:
    return ImageAugment(AugmentConfig(**(NOTHING | options)), PREPROCESSING)


def augmented(image: NDArray[np.uint8], seed: int = 0, **options: Any) -> Tensor:
    augment = augmenter(**options)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        square = augment(image)
    assert square.dtype == torch.uint8
    assert square.shape == (3, SIDE, SIDE)
    return square


EVERY_OPTION: list[dict[str, Any]] = [
    {"crop": "random_resized"},
    {"crop": "pad"},
    {"hflip": 0.5},
    {"vflip": 0.5},
    {"degrees": 20.0},
    {"translate": 0.2},
    {"zoom": [0.7, 1.3]},
    {"shear": 15.0},
    {"policy": "randaugment"},
    {"policy": "trivialaugment"},
    {"color_jitter": 0.4},
    {"hue_jitter": 0.2},
]


def test_without_augmentation_training_sees_what_evaluation_sees() -> None:
    assert torch.equal(augmented(photo()), PREPROCESSING.crop(photo()))


@pytest.mark.parametrize("options", EVERY_OPTION, ids=str)
def test_each_option_varies_the_image_and_follows_from_the_seed(options: dict[str, Any]) -> None:
    plain = PREPROCESSING.crop(photo())
    squares = [augmented(photo(), seed, **options) for seed in range(12)]
    assert any(not torch.equal(square, plain) for square in squares)
    assert any(not torch.equal(square, squares[0]) for square in squares)
    for seed, square in enumerate(squares):
        assert torch.equal(augmented(photo(), seed, **options), square)


@pytest.mark.parametrize("options", EVERY_OPTION, ids=str)
@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 500, 3), (500, 1, 3), (3, 4, 3)])
def test_tiny_and_elongated_images_survive_every_option(options: dict[str, Any], shape: tuple[int, ...]) -> None:
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    for seed in range(5):
        augmented(image, seed, **options)


def test_a_seed_for_each_image_and_epoch_gives_each_its_own_pixels() -> None:
    augment = augmenter(crop="random_resized", policy="trivialaugment")

    def square(epoch: int, row: int) -> bytes:
        with torch.random.fork_rng(devices=[]):
            seed_cpu(7, Purpose.AUGMENT, epoch, row)
            return augment(photo()).numpy().tobytes()

    places = [(epoch, row) for epoch in range(3) for row in range(5)]
    first = [square(*place) for place in places]
    assert [square(*place) for place in reversed(places)] == first[::-1]
    assert len(set(first)) == len(places)


def test_flips_mirror_the_image() -> None:
    plain = PREPROCESSING.crop(photo())
    assert torch.equal(augmented(photo(), hflip=1.0), plain.flip(2))
    assert torch.equal(augmented(photo(), vflip=1.0), plain.flip(1))


def test_half_of_the_images_are_mirrored() -> None:
    plain = PREPROCESSING.crop(photo())
    mirrored = sum(not torch.equal(augmented(photo(), seed, hflip=0.5), plain) for seed in range(200))
    assert 70 < mirrored < 130


def test_alternating_flip_shows_each_side_of_every_image_once_in_two_epochs() -> None:
    augment = ImageAugment(AugmentConfig(crop="none", alternate_hflip=True), PREPROCESSING, seed=5)
    plain = PREPROCESSING.crop(photo())
    sides = []
    for row in range(100):
        first, second, third = (augment.at(Position(epoch, row))(photo()) for epoch in (0, 1, 2))
        assert torch.equal(first, second.flip(2))
        assert torch.equal(first, third)
        sides.append(torch.equal(first, plain))
    assert 30 < sum(sides) < 70
    other = ImageAugment(AugmentConfig(crop="none", alternate_hflip=True), PREPROCESSING, seed=6)
    assert sides != [torch.equal(other.at(Position(0, row))(photo()), plain) for row in range(100)]


def test_alternating_flip_refuses_a_probability() -> None:
    with pytest.raises(UserError, match=r"augment\.hflip=0\.3 does not apply with augment\.alternate_hflip"):
        validate(AugmentConfig(hflip=0.3, alternate_hflip=True), "augment.")


@pytest.mark.parametrize("crop", ["random_resized", "pad", "none"])
def test_side_of_the_position_is_the_side_of_the_image(crop: str) -> None:
    augment = ImageAugment(AugmentConfig(crop=crop), PREPROCESSING)
    with torch.random.fork_rng(devices=[]):
        assert augment.at(Position(0, 0, 16))(photo()).shape == (3, 16, 16)
        assert augment.at(Position(0, 0))(photo()).shape == (3, SIDE, SIDE)


def test_random_resized_crop_cuts_the_share_of_the_area_that_it_is_told() -> None:
    for seed in range(10):
        square = augmented(coordinates(200), seed, crop="random_resized", scale=[0.25, 0.25], ratio=[1.0, 1.0])
        for channel in (0, 1):
            assert int(square[channel].max()) - int(square[channel].min()) == pytest.approx(100, abs=5)


def test_random_resized_crop_cuts_the_aspect_ratio_that_it_is_told() -> None:
    square = augmented(coordinates(200), 3, crop="random_resized", scale=[0.25, 0.25], ratio=[4.0, 4.0]).int()
    width, height = (int(square[channel].max() - square[channel].min()) for channel in (0, 1))
    assert width == pytest.approx(200, abs=8)
    assert height == pytest.approx(50, abs=5)


def test_padded_crop_is_the_evaluation_crop_shifted() -> None:
    plain = PREPROCESSING.crop(coordinates(100)).int()
    shifts = set()
    for seed in range(60):
        square = augmented(coordinates(100), seed, crop="pad", padding=3).int()
        matching = [
            (down, right)
            for down in range(-3, 4)
            for right in range(-3, 4)
            if torch.equal(square[:, 3:-3, 3:-3], plain.roll((down, right), (1, 2))[:, 3:-3, 3:-3])
        ]
        assert len(matching) == 1
        shifts.add(matching[0])
    assert len(shifts) > 25
    assert {down for down, _ in shifts} == {right for _, right in shifts} == set(range(-3, 4))


def test_translation_shifts_by_up_to_its_share() -> None:
    image = np.zeros((SIDE, SIDE, 3), np.uint8)
    image[14:18, 14:18] = 255
    centers = [augmented(image, seed, translate=0.25)[0].nonzero().float().mean(0) for seed in range(40)]
    # The evaluation crop enlarges by 1 / 0.875.
    offsets = torch.stack(centers) - (SIDE - 1) / 2
    assert offsets.abs().max() <= 0.25 * SIDE + 1
    assert offsets.abs().max() > 0.15 * SIDE


def test_zoom_changes_the_size_between_its_bounds() -> None:
    image = np.zeros((SIDE, SIDE, 3), np.uint8)
    image[10:22, 10:22] = 255
    area = float(augmented(image)[0].sum())
    shares = [float(augmented(image, seed, zoom=[0.5, 1.5])[0].sum()) / area for seed in range(40)]
    assert min(shares) == pytest.approx(0.25, abs=0.15)
    assert max(shares) == pytest.approx(2.25, abs=0.35)


def test_color_jitter_moves_no_pixel() -> None:
    grid = np.zeros((SIDE, SIDE, 3), np.uint8)
    grid[::4] = 200
    square = augmented(grid, color_jitter=0.3)
    plain = PREPROCESSING.crop(grid)
    assert torch.equal(square[0].float().mean(1).argsort(stable=True), plain[0].float().mean(1).argsort(stable=True))


# The user's own transform.


def negative(square: Tensor) -> Tensor:
    return 255 - square


class Darker:
    def __init__(self, factor: float) -> None:
        self.factor = factor

    def __call__(self, square: Tensor) -> Tensor:
        return (square * self.factor).to(torch.uint8)


def to_float(square: Tensor) -> Tensor:
    return square.float()


def smaller(square: Tensor) -> Tensor:
    return square[:, ::2, ::2]


def test_a_transform_of_ones_own_comes_last() -> None:
    custom = {"_target_": f"{__name__}.negative", "_partial_": True}
    assert torch.equal(augmented(photo(), hflip=1.0, custom=custom), 255 - PREPROCESSING.crop(photo()).flip(2))


def test_a_transform_of_ones_own_takes_arguments() -> None:
    square = augmented(photo(), custom={"_target_": f"{__name__}.Darker", "factor": 0.5})
    assert torch.equal(square, PREPROCESSING.crop(photo()) // 2)


@pytest.mark.parametrize("function", ["to_float", "smaller"])
def test_a_transform_that_returns_no_square_is_refused_at_once(function: str) -> None:
    custom = {"_target_": f"{__name__}.{function}", "_partial_": True}
    with pytest.raises(UserError, match=r"augment.custom: it must return a uint8 tensor of shape \(3, 32, 32\)"):
        augmenter(custom=custom)


@pytest.mark.parametrize(
    "custom", [{"_target_": "no_such_module.Transform"}, {"_target_": f"{__name__}.Darker"}, {"factor": 2}]
)
def test_a_transform_that_cannot_be_made_is_refused(custom: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"augment.custom: ") as caught:
        augmenter(custom=custom)
    assert "\n" not in str(caught.value)


def test_a_function_without_partial_is_refused_with_the_way_out() -> None:
    with pytest.raises(UserError, match=r"a function also needs _partial_: true"):
        augmenter(custom={"_target_": f"{__name__}.negative"})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crop": "pad", "padding": SIDE}, "augment.padding=32: it must be less than the image's side"),
        ({"translate": 2.0}, "augment: translation values should be between 0 and 1"),
        ({"degrees": -5.0}, "augment: "),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        augmenter(**options)
