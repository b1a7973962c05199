"""Views of an image for test-time augmentation."""

from __future__ import annotations

import pytest
import torch

from mlops_img.preprocessing.views import VIEWS, View, view_of

IMAGES = torch.arange(2 * 3 * 4 * 4, dtype=torch.uint8).view(2, 3, 4, 4)


@pytest.mark.parametrize("name", VIEWS)
def test_first_view_is_the_image_itself_and_the_weights_add_up_to_one(name: str) -> None:
    own, *others = VIEWS[name]
    assert torch.equal(view_of(IMAGES, own), IMAGES)
    assert own.weight + sum(view.weight for view in others) == 1
    seen = [view_of(IMAGES, view).numpy().tobytes() for view in VIEWS[name]]
    assert len(set(seen)) == len(seen)


def test_mirrored_view() -> None:
    assert torch.equal(view_of(IMAGES, View(1.0, mirrored=True)), IMAGES.flip(3))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.bfloat16])
def test_shifted_views_mirror_the_edge_that_they_uncover(dtype: torch.dtype) -> None:
    images = IMAGES.to(dtype)
    right = view_of(images, View(1.0, shift=1))
    assert torch.equal(right[:, :, 1:, 1:], images[:, :, :-1, :-1])
    assert torch.equal(right[:, :, 0, 1:], images[:, :, 1, :-1])
    left = view_of(images, View(1.0, shift=-1))
    assert torch.equal(left[:, :, :-1, :-1], images[:, :, 1:, 1:])
    assert torch.equal(left[:, :, -1, :-1], images[:, :, -2, 1:])


def test_shift_is_a_share_of_the_side() -> None:
    images = torch.rand(1, 3, 96, 96)
    assert torch.equal(view_of(images, View(1.0, shift=1))[:, :, 3:, 3:], images[:, :, :-3, :-3])
