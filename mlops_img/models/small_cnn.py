"""A plain convolutional network for small images, trained in minutes: after airbench (arXiv:2404.00498).

It is registered in timm, so `model.name=small_cnn` takes every option that timm's models take.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import SelectAdaptivePool2d
from timm.models import register_model
from torch import Tensor, nn
from torch.nn import functional

PATCH = 2  # side of the stem's kernel
DAMPING = 5e-4  # added to the eigenvalues: directions in which patches hardly differ are mostly noise


class SmallCNN(nn.Module):
    """Three or so stages of two 3 x 3 convolutions behind a stem of 2 x 2 patches.

    Args:
        num_classes: number of logits.
        in_chans: input channels.
        widths: channels of each stage; each halves the side of the image.
        global_pool: timm's name of the pooling before the classifier: catavgmax (mean and maximum), avg, max, ...
        drop_rate: dropout before the classifier.
        dirac: initialize the convolutions of the stages to pass their input on (as far as they have channels for it).
        logit_scale: the logits are multiplied by it; below 1 a high learning rate stays stable.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        widths: Sequence[int] = (64, 256, 256),
        global_pool: str = "catavgmax",
        drop_rate: float = 0.0,
        dirac: bool = True,
        logit_scale: float = 1.0,
    ) -> None:
        super().__init__()
        if not widths or min(widths) < 1:
            raise ValueError(f"widths={list(widths)}: name the channels of one stage or more, each at least 1")
        width = 2 * in_chans * PATCH**2
        self.stem = nn.Conv2d(in_chans, width, PATCH, padding=0)
        self.act = nn.GELU()
        inputs = [width, *widths[:-1]]
        self.stages = nn.Sequential(
            *(Stage(before, after, dirac=dirac) for before, after in zip(inputs, widths, strict=True))
        )
        self.global_pool = SelectAdaptivePool2d(pool_type=global_pool, flatten=True)
        self.head_drop = nn.Dropout(drop_rate)
        self.num_features = widths[-1] * self.global_pool.feat_mult()
        self.head = nn.Linear(self.num_features, num_classes)
        self.logit_scale = logit_scale

    def forward_features(self, images: Tensor) -> Tensor:
        """Return the maps before the pooling, (n, widths[-1], ...)."""
        features: Tensor = self.stages(self.act(self.stem(images)))
        return features

    def forward_head(self, maps: Tensor, pre_logits: bool = False) -> Tensor:
        """Return the logits of these maps, or with `pre_logits` what enters the classifier (timm's interface)."""
        features: Tensor = self.head_drop(self.global_pool(maps))
        return features if pre_logits else self.head(features) * self.logit_scale

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (n, num_classes) of images (n, in_chans, h, w)."""
        return self.forward_head(self.forward_features(images))

    def get_classifier(self) -> nn.Module:
        """Return the classifier (timm's interface)."""
        return self.head


class WhitenedSmallCNN(SmallCNN):
    """SmallCNN whose stem's filters are not trained: they are the whitened principal components of image patches.

    Each component comes with its negative. The stages then see decorrelated inputs of equal variance.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.stem.weight.requires_grad_(False)

    def init_from_images(self, images: Tensor) -> None:
        """Whiten the stem for the patches of these images.

        Args:
            images: normalized, float32 (n, in_chans, h, w).
        """
        patches = functional.unfold(images, PATCH).transpose(1, 2).flatten(0, 1).double()
        covariance = patches.T @ patches / len(patches)
        values, vectors = torch.linalg.eigh(covariance)
        filters = (vectors / (values + DAMPING).sqrt()).T.flip(0)
        with torch.no_grad():
            self.stem.weight.copy_(torch.cat([filters, -filters]).view_as(self.stem.weight))


class Stage(nn.Module):
    """Two convolutions, the first one with a max-pooling of stride 2, each with batch norm and GELU."""

    def __init__(self, before: int, after: int, *, dirac: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, padding=1, bias=False)
        self.pool = nn.MaxPool2d(2)
        self.norm1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(after)
        self.act = nn.GELU()
        if dirac:
            for conv in (self.conv1, self.conv2):
                nn.init.dirac_(conv.weight[: conv.in_channels])

    def forward(self, images: Tensor) -> Tensor:
        """Halve the side of (n, before, h, w); returns (n, after, h // 2, w // 2)."""
        images = self.act(self.norm1(self.pool(self.conv1(images))))
        output: Tensor = self.act(self.norm2(self.conv2(images)))
        return output


@register_model
def small_cnn(pretrained: bool = False, whiten: bool = True, **options: Any) -> SmallCNN:
    """Return a SmallCNN, by default a whitened one; timm calls this with the options of `timm.create_model`.

    Raises:
        ValueError: pretrained weights are wanted, of which there are none.
    """
    for name in ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"):
        options.pop(name, None)
    if pretrained:
        raise ValueError("small_cnn has no pretrained weights")
    model = WhitenedSmallCNN(**options) if whiten else SmallCNN(**options)
    model.pretrained_cfg = {  # type: ignore[assignment]  # timm's models have it as a dictionary
        "architecture": "small_cnn",
        "num_classes": model.head.out_features,
        "first_conv": "stem",
        "classifier": "head",
        "mean": (0.5, 0.5, 0.5),
        "std": (0.25, 0.25, 0.25),
    }
    return model
