"""Preprocessing equals that of torchvision and can be saved and restored."""

from __future__ import annotations

import json
import tracemalloc

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision.transforms import v2

from mlops_img.preprocessing.transforms import Preprocessing, resize, stack
from tests.helpers.shapes import draw_shape

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def preprocessing(image_size: int = 32, crop_pct: float = 0.875, gray: bool = False) -> Preprocessing:
    return Preprocessing(image_size, crop_pct, MEAN, STD, gray)


def noise(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def torchvision_crop(image: NDArray[np.uint8], image_size: int, crop_pct: float) -> NDArray[np.uint8]:
    transform = v2.Compose([v2.Resize(round(image_size / crop_pct)), v2.CenterCrop(image_size)])
    return np.asarray(transform(Image.fromarray(image))).transpose(2, 0, 1)


def difference(one: torch.Tensor, other: NDArray[np.uint8]) -> int:
    assert tuple(one.shape) == other.shape
    return int(np.abs(one.numpy().astype(int) - other).max())


@pytest.mark.parametrize("seed", range(20))
def test_crop_equals_torchvision_within_one_level(seed: int) -> None:
    # Noise is the hardest case: neighboring pixels differ most.
    generator = np.random.default_rng(seed)
    for _ in range(10):
        height = int(generator.integers(1, 250))
        width = max(1, int(height * generator.uniform(1 / 7, 7)))
        image_size, crop_pct = int(generator.integers(8, 80)), float(generator.choice([0.5, 0.875, 0.9, 0.95, 1.0]))
        image = noise(height, width, seed)
        cropped = preprocessing(image_size, crop_pct).crop(image)
        assert cropped.dtype == torch.uint8
        assert difference(cropped, torchvision_crop(image, image_size, crop_pct)) <= 1


@pytest.mark.parametrize("shape", [(40, 40), (40, 61), (73, 40), (40, 200), (41, 40)])
@pytest.mark.parametrize("image_size", [40, 39, 32, 7])
def test_crop_without_resizing_takes_the_same_pixels_as_torchvision(shape: tuple[int, int], image_size: int) -> None:
    # The shorter side needs no resizing, so the pixels must be equal.
    image = noise(*shape)
    crop_pct = image_size / 40
    np.testing.assert_array_equal(
        preprocessing(image_size, crop_pct).crop(image), torchvision_crop(image, image_size, crop_pct)
    )


@pytest.mark.parametrize("shape", [(10, 300), (300, 10), (3, 200), (1, 50)])
def test_elongated_images_equal_torchvision_within_two_levels(shape: tuple[int, int]) -> None:
    image = noise(*shape)
    expected = torchvision_crop(image, 32, 0.875)
    cropped = preprocessing().crop(image)
    assert difference(cropped, expected) <= 2
    assert (cropped.numpy() != expected).mean() < 0.1


@pytest.mark.parametrize("shape", [(1, 5000), (5000, 1), (2, 60_000), (1, 1), (1, 2)])
def test_one_pixel_wide_images_take_little_memory(shape: tuple[int, int]) -> None:
    image = noise(*shape)
    tracemalloc.start()
    cropped = preprocessing(224).crop(image)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert cropped.shape == (3, 224, 224)
    assert peak < 20e6


def test_crop_keeps_the_middle_of_an_elongated_image() -> None:
    image = np.zeros((10, 1000, 3), np.uint8)
    image[:, 490:510] = 255
    image[:, 500:510, 0] = 0
    cropped = preprocessing(20, 1.0).crop(image)  # 20 x 2000 when resized
    assert (cropped[1] == 255).all()
    assert (cropped[0, :, :9] == 255).all()
    assert (cropped[0, :, 11:] == 0).all()


def test_crop_does_not_change_its_input() -> None:
    image = noise(50, 60)
    before = image.copy()
    preprocessing().crop(image)
    preprocessing(50, 1.0).crop(image)
    np.testing.assert_array_equal(image, before)


def test_normalize_equals_torchvision() -> None:
    images = torch.from_numpy(noise(12, 9).transpose(2, 0, 1).copy()).unsqueeze(0).repeat(2, 1, 1, 1)
    expected = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])(images)
    normalized = preprocessing().normalize(images)
    assert normalized.dtype == torch.float32
    torch.testing.assert_close(normalized, expected, rtol=0, atol=2e-6)


def test_normalize_keeps_channels_last_memory_and_does_not_change_its_input() -> None:
    images = stack([torch.from_numpy(noise(8, 8, seed)).permute(2, 0, 1) for seed in range(3)])
    before = images.clone()
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert preprocessing().normalize(images).is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(images, before)


def test_gray_output_is_the_luma_of_the_image() -> None:
    images = torch.from_numpy(noise(8, 8).transpose(2, 0, 1).copy()).unsqueeze(0)
    same = Preprocessing(8, 1.0, (0.5,) * 3, (0.25,) * 3, gray=True)
    gray = same.normalize(images)
    assert gray.shape == (1, 1, 8, 8)
    luma = np.asarray(Image.fromarray(images[0].permute(1, 2, 0).numpy()).convert("L"))
    np.testing.assert_allclose((gray[0, 0] * 0.25 + 0.5) * 255, luma, atol=1)


def test_denormalize_inverts_normalize() -> None:
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(2, 3, 16, 16)
    normal, gray = preprocessing(), preprocessing(gray=True)
    torch.testing.assert_close(normal.denormalize(normal.normalize(images)), images)
    torch.testing.assert_close(gray.denormalize(gray.normalize(images)), images)
    assert normal.denormalize(torch.tensor([-99.0, 99.0]).view(2, 1, 1, 1).expand(2, 3, 1, 1)).unique().tolist() == [
        0,
        255,
    ]


@pytest.mark.parametrize("gray", [False, True])
def test_json_round_trip_keeps_the_preprocessing(gray: bool) -> None:
    original = Preprocessing(48, 0.9, MEAN, STD, gray)
    again = Preprocessing.from_dict(json.loads(json.dumps(original.to_dict())))
    assert again == original
    image = np.array(draw_shape("circle", 0))
    assert torch.equal(again.crop(image), original.crop(image))
    batch = original.crop(image).unsqueeze(0)
    assert torch.equal(again.normalize(batch), original.normalize(batch))


def test_resize_accepts_non_contiguous_images() -> None:
    image = noise(60, 80)
    part = image[10:43, 5:66]
    assert torch.equal(resize(part, 16, 16), resize(part.copy(), 16, 16))


def test_stack_is_channels_last_in_memory_and_equals_torch_stack() -> None:
    squares = [torch.from_numpy(noise(6, 6, seed)).permute(2, 0, 1) for seed in range(4)]
    squares[1] = squares[1].contiguous()
    stacked = stack(squares)
    assert torch.equal(stacked, torch.stack(squares))
    assert stacked.is_contiguous(memory_format=torch.channels_last)


def test_spelling_of_gray_in_earlier_versions_is_read() -> None:
    earlier = {"image_size": 32, "crop_pct": 1.0, "mean": [0.5] * 3, "std": [0.25] * 3, "grey": True}
    assert Preprocessing.from_dict(earlier) == Preprocessing(32, 1.0, (0.5,) * 3, (0.25,) * 3, gray=True)
