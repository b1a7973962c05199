"""Views of an image for test-time augmentation: a model's logits are averaged over them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

SHIFT = 1 / 32  # of the side


class View(NamedTuple):
    """A view of an image.

    Attributes:
        weight: of its logits; those of all views add up to 1.
        mirrored: left and right are swapped.
        shift: -1, 0 or 1: moved by `SHIFT` up and to the left, not at all, or down and to the right.
    """

    weight: float
    mirrored: bool = False
    shift: int = 0


# By the name of the test-time augmentation. The first view is the image itself.
VIEWS: dict[str, tuple[View, ...]] = {
    "none": (View(1.0),),
    "flip": (View(0.5), View(0.5, mirrored=True)),
    "flip+shift": (
        View(0.25),
        View(0.25, mirrored=True),
        *(View(0.125, mirrored, shift) for shift in (-1, 1) for mirrored in (False, True)),
    ),
}


def view_of(images: Tensor, view: View) -> Tensor:
    """Return a view of images (n, channels, side, side) of any dtype; what a shift uncovers is mirrored at the edge."""
    if view.mirrored:
        images = images.flip(-1)
    if view.shift:
        side = images.shape[-1]
        places = torch.arange(side, device=images.device) - view.shift * max(1, round(SHIFT * side))
        places = places.abs()
        places = torch.where(places < side, places, 2 * (side - 1) - places)
        images = images[:, :, places][:, :, :, places]
    return images
