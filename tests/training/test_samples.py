"""The picture of a few training images shows what the model is trained on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mlops_img.preprocessing.decode import decode_rgb
from mlops_img.preprocessing.transforms import Preprocessing
from mlops_img.training import samples
from tests.helpers.commands import Outcome
from tests.helpers.shapes import SHAPES

Train = Callable[..., Outcome]
Shown = tuple[list[NDArray[np.uint8]], list[str]]

SIDE = 32


@pytest.fixture
def shown(train: Train, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Shown]:
    """Train a step; return the images and captions that the picture was made of."""
    sheets: list[Shown] = []
    draw = samples.contact_sheet

    def noting(images: Any, captions: Any) -> bytes:
        sheets.append((images, captions))
        return draw(images, captions)

    monkeypatch.setattr(samples, "contact_sheet", noting)

    def call(*overrides: str) -> Shown:
        outcome = train("train.max_steps=1", "hydra.run.dir=runs/a", *overrides)
        assert outcome.code == 0, outcome.err
        assert Path("runs/a/report/training_samples.png").is_file()
        (sheet,) = sheets
        return sheet

    return call


def squares(root: Path, kind: str) -> list[bytes]:
    preprocessing = Preprocessing(SIDE, 1.0, (0.5,) * 3, (0.25,) * 3)
    crops = (preprocessing.crop(decode_rgb(path.read_bytes())) for path in (root / kind).iterdir())
    return [crop.permute(1, 2, 0).numpy().tobytes() for crop in crops]


def test_each_sample_is_captioned_with_its_class(shown: Callable[..., Shown], shared_shapes: Path) -> None:
    images, captions = shown("augment=none")
    assert len(images) == len(captions) == samples.SHOWN
    assert len({image.tobytes() for image in images}) == len(images)
    for image, caption in zip(images, captions, strict=True):
        assert image.tobytes() in squares(shared_shapes, caption)


def test_samples_are_augmented(shown: Callable[..., Shown], shared_shapes: Path) -> None:
    images, captions = shown("augment=none", "augment.vflip=1.0")
    for image, caption in zip(images, captions, strict=True):
        assert image[::-1].tobytes() in squares(shared_shapes, caption)


def test_mixed_samples_are_captioned_with_both_classes(shown: Callable[..., Shown]) -> None:
    _, captions = shown("augment=none", "augment.mixup=1.0", "augment.mix_prob=1.0")
    assert any("\n" in caption for caption in captions)
    for caption in captions:
        parts = [line.split(" % ") for line in caption.splitlines()]
        assert {name for _, name in parts} <= set(SHAPES)
        if len(parts) == 2:
            assert sum(int(share) for share, _ in parts) in (99, 100, 101)


def test_unreadable_images_are_left_out(shown: Callable[..., Shown], shapes: Path) -> None:
    damaged = sorted(shapes.glob("*/*.jpg"))[::3]
    for path in damaged:
        path.write_bytes(b"no image")
    images, captions = shown("augment=none", f"data.root={shapes}", "data.on_bad_image=skip", "data.val_fraction=0.2")
    assert 0 < len(images) == len(captions) < samples.SHOWN
