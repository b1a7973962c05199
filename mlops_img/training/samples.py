"""A contact sheet of training images after augmentation."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mlops_img.core.files import write_atomically
from mlops_img.core.seeding import seed_step
from mlops_img.data.loader import make_loader
from mlops_img.data.sampler import ShuffledBatchSampler
from mlops_img.reporting.pictures import contact_sheet
from mlops_img.reporting.style import percent
from mlops_img.runs.folder import RunFolder
from mlops_img.runs.tracking import Tracker
from mlops_img.training.setup import Setup

SHOWN = 12
NAMED_CLASSES = 2  # mixup and cutmix mix two images


def show_training_samples(setup: Setup, folder: RunFolder, tracker: Tracker) -> None:
    """Write a contact sheet of the first augmented training images with their labels, and track it."""
    images, labels = augmented_images(setup)
    if not len(images):
        return
    sheet = contact_sheet(images, [_caption(label, setup.dataset.classes) for label in labels])
    folder.training_samples.parent.mkdir(exist_ok=True)
    write_atomically(folder.training_samples, lambda file: file.write(sheet))
    tracker.log_images({"training_samples": folder.training_samples}, setup.state.step)


def augmented_images(setup: Setup) -> tuple[list[NDArray[np.uint8]], Tensor]:
    """Return a few training images after all augmentation, uint8 (h, w, 3), and their labels.

    The labels are int64 (n,), or float32 (n, classes) if images were mixed. Images that cannot be decoded are skipped.
    """
    train, recipe = setup.dataset.train, setup.recipe
    count = min(SHOWN, len(train))
    sampler = ShuffledBatchSampler(len(train), count, per_epoch=1, seed=setup.config.seed, start=0, stop=1)
    (batch,) = make_loader(train, setup.augment, sampler, decode=recipe.preprocessing.decode, seed=setup.config.seed)
    if not len(batch.labels):
        return [], batch.labels
    seed_step(setup.config.seed, 0)
    normalized, labels = recipe.augment(recipe.preprocessing.normalize(batch.images), batch.labels)
    pixels = recipe.preprocessing.denormalize(normalized)
    return list(pixels.permute(0, 2, 3, 1).contiguous().numpy()), labels


def _caption(label: Tensor, classes: list[str]) -> str:
    if not label.ndim:
        return classes[int(label)]
    shares = label.topk(min(NAMED_CLASSES, len(classes)))
    return "\n".join(
        f"{percent(share)} {classes[index]}"
        for share, index in zip(shares.values.tolist(), shares.indices.tolist(), strict=True)
        if share > 0
    )
