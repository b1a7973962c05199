"""Random erasing, mixup and cutmix: targets that say what is in the image, and the seed decides."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mlops_img.config.augment import AugmentConfig
from mlops_img.core.seeding import seed_step
from mlops_img.data.augment import BatchAugment

SIDE = 32
CLASSES = 5


def batch(count: int = 16) -> tuple[Tensor, Tensor]:
    """Images of one value each, their class."""
    labels = torch.arange(count) % CLASSES
    images = labels.float().view(-1, 1, 1, 1).expand(count, 3, SIDE, SIDE).clone()
    return images, labels


def mixed(step: int = 0, **options: Any) -> tuple[Tensor, Tensor]:
    augment = BatchAugment(AugmentConfig(**options), CLASSES)
    with torch.random.fork_rng(devices=[]):
        seed_step(0, step)
        images, targets = augment(*batch())
    return images, targets


@pytest.mark.parametrize("options", [{"mixup": 0.8}, {"cutmix": 1.0}, {"mixup": 0.2, "cutmix": 1.0}], ids=str)
def test_mixed_targets_sum_to_one_and_say_what_is_in_the_image(options: dict[str, Any]) -> None:
    values = torch.arange(CLASSES, dtype=torch.float32)
    for step in range(10):
        images, targets = mixed(step, **options)
        assert targets.shape == (16, CLASSES)
        assert targets.dtype == torch.float32
        torch.testing.assert_close(targets.sum(1), torch.ones(16))
        assert (targets >= 0).all()
        # Each image was its class number throughout: the mean of the mixture is that of the targets.
        torch.testing.assert_close(images.mean((1, 2, 3)), targets @ values, rtol=0, atol=1e-4)


def test_mixup_blends_and_cutmix_pastes() -> None:
    blended, _ = mixed(mixup=5.0)
    assert (blended.flatten(1).max(1).values - blended.flatten(1).min(1).values < 1e-5).all()
    assert (blended % 1 > 1e-3).any()
    pasted, _ = mixed(2, cutmix=5.0)
    assert ((pasted % 1) == 0).all()
    assert (pasted.flatten(1).max(1).values != pasted.flatten(1).min(1).values).any()


def test_with_both_on_each_batch_gets_one_of_them() -> None:
    kinds = {bool(((mixed(step, mixup=5.0, cutmix=5.0)[0] % 1) == 0).all()) for step in range(20)}
    assert kinds == {True, False}


def test_the_share_of_mixed_batches_is_the_users() -> None:
    share = np.mean([mixed(step, mixup=1.0, mix_prob=0.3)[1].ndim == 2 for step in range(80)])
    assert 0.15 < share < 0.45
    assert all(mixed(step, mixup=1.0, mix_prob=0.0)[1].ndim == 1 for step in range(10))


def test_random_erasing_fills_one_rectangle_with_noise() -> None:
    images, labels = batch()
    erased, targets = mixed(random_erasing=1.0)
    assert torch.equal(targets, labels)
    for before, after in zip(images, erased, strict=True):
        changed = (before != after).any(0)
        rows, columns = changed.any(1).nonzero().ravel(), changed.any(0).nonzero().ravel()
        assert changed[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
        assert 0 < changed.float().mean() < 0.5
        assert after[:, changed].std() > 0.5


def test_random_erasing_touches_its_share_of_the_images() -> None:
    images, _ = batch()
    touched = [
        (erased != images).flatten(1).any(1).float().mean()
        for erased, _ in (mixed(step, random_erasing=0.25) for step in range(40))
    ]
    assert 0.15 < float(torch.stack(touched).mean()) < 0.35


def test_what_happens_to_a_batch_follows_from_seed_and_step() -> None:
    options: dict[str, Any] = {"random_erasing": 0.5, "mixup": 0.2, "cutmix": 1.0}
    for step in range(5):
        once, again = mixed(step, **options), mixed(step, **options)
        assert torch.equal(once[0], again[0])
        assert torch.equal(once[1], again[1])
    assert not torch.equal(mixed(0, **options)[0], mixed(1, **options)[0])


def test_other_threads_that_draw_from_random_change_nothing() -> None:
    options: dict[str, Any] = {"random_erasing": 0.5, "mixup": 0.2, "cutmix": 1.0}
    seed_step(0, 0)
    before = random.getstate()
    mixed(0, **options)
    assert random.getstate() == before


def test_with_nothing_on_a_batch_stays_as_it_is() -> None:
    images, labels = batch()
    augmented_images, targets = BatchAugment(AugmentConfig(), CLASSES)(images, labels)
    assert augmented_images is images
    assert targets is labels
