"""Images that cannot be decoded: left out and told, or refused, and never replaced in silence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from mlops_img.config.data import FolderConfig
from mlops_img.config.train import AugmentConfig
from mlops_img.data.augment import ImageAugment
from mlops_img.data.batch import Batch
from mlops_img.data.loader import ImageBatches, handle_bad_images, make_loader
from mlops_img.data.sampler import BatchIndices, sequential_batches
from mlops_img.data.sources.base import ImageSet
from mlops_img.data.sources.registry import open_source
from mlops_img.errors import UserError
from mlops_img.preprocessing.transforms import Preprocessing

PREPROCESSING = Preprocessing(24, 0.875, (0.5,) * 3, (0.25,) * 3)

TEXT, LOST = 3, 17


@pytest.fixture
def damaged(shapes: Path) -> ImageSet:
    """30 images, of which one is text and one is gone."""
    found = open_source(FolderConfig(root=str(shapes))).table().splits["train"]
    Path(found.paths[TEXT]).write_text("no image")
    Path(found.paths[LOST]).unlink()
    return found


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_images_are_missing_from_their_batch_and_told_with_the_reason(damaged: ImageSet, workers: int) -> None:
    loaded = make_loader(damaged, PREPROCESSING.crop, sequential_batches(30, 10), workers=workers)
    batches = list(loaded)
    assert [batch.bad for batch in batches] == [[(TEXT, "not an image")], [(LOST, "No such file or directory")], []]
    assert [row for batch in batches for row in batch.rows.tolist()] == [i for i in range(30) if i not in (TEXT, LOST)]
    assert [len(batch.images) for batch in batches] == [9, 9, 10]


def test_a_bad_image_changes_nothing_of_the_others(damaged: ImageSet) -> None:
    batches = ImageBatches(damaged, ImageAugment(AugmentConfig(policy="trivialaugment"), PREPROCESSING), seed=3)
    batch, without = batches[BatchIndices(0, np.arange(8))], batches[BatchIndices(0, np.array([0, 1, 2, 4, 5, 6, 7]))]
    assert torch.equal(batch.images, without.images)


def evaluation(images: ImageSet, size: int = 10) -> list[Batch]:
    return list(make_loader(images, PREPROCESSING.crop, sequential_batches(len(images), size)))


def test_raise_names_the_first_bad_image_and_the_way_out(damaged: ImageSet) -> None:
    message = f"image {damaged.paths[TEXT]} cannot be decoded: not an image.*data.on_bad_image=skip"
    with pytest.raises(UserError, match=message):
        list(handle_bad_images(evaluation(damaged), damaged, None))


def test_skip_leaves_bad_images_out_and_lists_each_once(damaged: ImageSet, caplog: pytest.LogCaptureFixture) -> None:
    bad: dict[str, str] = {}
    for _ in range(2):  # epochs
        assert sum(len(batch.labels) for batch in handle_bad_images(evaluation(damaged), damaged, bad)) == 28
    assert bad == {damaged.paths[TEXT]: "not an image", damaged.paths[LOST]: "No such file or directory"}
    assert [record.getMessage() for record in caplog.records] == [
        f"left out {path}: {reason}" for path, reason in bad.items()
    ]


def test_good_batches_pass_whether_bad_images_raise_or_not(shared_shapes: Path) -> None:
    images = open_source(FolderConfig(root=str(shared_shapes))).table().splits["train"]
    for bad in (None, {}):
        batches = evaluation(images)
        assert list(map(id, handle_bad_images(batches, images, bad))) == list(map(id, batches))
        assert not bad


def test_training_refuses_a_batch_of_which_hardly_an_image_can_be_decoded(damaged: ImageSet) -> None:
    for path in damaged.paths[:9]:
        Path(path).write_text("no image")
    with pytest.raises(UserError, match=r"of 10 images of a batch only 1 can be decoded, .*mlops_img\.audit"):
        list(handle_bad_images(evaluation(damaged), damaged, {}))


def test_evaluation_skips_a_last_batch_of_bad_images_only(damaged: ImageSet) -> None:
    Path(damaged.paths[29]).write_text("no image")
    bad: dict[str, str] = {}
    batches = list(handle_bad_images(evaluation(damaged, size=29), damaged, bad, min_images=0))
    assert [len(batch.labels) for batch in batches] == [27]
    assert len(bad) == 3


def test_evaluation_of_bad_images_only_is_refused(damaged: ImageSet) -> None:
    for path in damaged.paths:
        Path(path).write_text("no image")
    with pytest.raises(UserError, match="none of the 30 images can be decoded"):
        list(handle_bad_images(evaluation(damaged), damaged, {}, min_images=0))


def test_a_batch_of_bad_images_only_is_empty_and_of_the_right_types(damaged: ImageSet) -> None:
    batch = ImageBatches(damaged, PREPROCESSING.crop)[BatchIndices(0, np.array([TEXT]))]
    assert len(batch.images) == len(batch.labels) == len(batch.rows) == 0
    assert (batch.images.dtype, batch.labels.dtype, batch.rows.dtype) == (torch.uint8, torch.int64, torch.int64)
