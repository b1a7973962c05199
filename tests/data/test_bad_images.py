"""Images that cannot be decoded: skipped and recorded, or an error; never replaced silently."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from mlops_img.config.augment import AugmentConfig
from mlops_img.config.data import FolderConfig
from mlops_img.data.augment import ImageAugment
from mlops_img.data.batch import Batch
from mlops_img.data.loader import ImageBatches, handle_bad_images, make_loader
from mlops_img.data.sampler import BatchIndices, sequential_batches
from mlops_img.data.skipped import SkippedImages
from mlops_img.data.sources.base import ImageSet
from mlops_img.data.sources.registry import open_source
from mlops_img.errors import UserError
from mlops_img.preprocessing.transforms import Preprocessing

PREPROCESSING = Preprocessing(24, 0.875, (0.5,) * 3, (0.25,) * 3)

TEXT, LOST = 3, 17


@pytest.fixture
def damaged(shapes: Path) -> ImageSet:
    """Return 30 images, one of which is a text file and one of which does not exist."""
    found = open_source(FolderConfig(root=str(shapes))).table().splits["train"]
    Path(found.paths[TEXT]).write_text("no image")
    Path(found.paths[LOST]).unlink()
    return found


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_images_are_listed_with_their_reason(damaged: ImageSet, workers: int) -> None:
    batches = list(make_loader(damaged, PREPROCESSING.crop, sequential_batches(30, 10), workers=workers))
    assert [batch.bad for batch in batches] == [[(TEXT, "not an image")], [(LOST, "No such file or directory")], []]
    assert [row for batch in batches for row in batch.rows.tolist()] == [i for i in range(30) if i not in (TEXT, LOST)]
    assert [len(batch.images) for batch in batches] == [9, 9, 10]


def test_bad_image_does_not_change_the_others_of_its_batch(damaged: ImageSet) -> None:
    batches = ImageBatches(damaged, ImageAugment(AugmentConfig(policy="trivialaugment"), PREPROCESSING), seed=3)
    batch, without = batches[BatchIndices(0, np.arange(8))], batches[BatchIndices(0, np.array([0, 1, 2, 4, 5, 6, 7]))]
    assert torch.equal(batch.images, without.images)


def read_in_order(images: ImageSet, size: int = 10) -> list[Batch]:
    return list(make_loader(images, PREPROCESSING.crop, sequential_batches(len(images), size)))


def test_error_names_the_first_bad_image_and_the_option_to_skip(damaged: ImageSet) -> None:
    message = f"image {damaged.paths[TEXT]} cannot be decoded: not an image.*data.on_bad_image=skip"
    with pytest.raises(UserError, match=message):
        list(handle_bad_images(read_in_order(damaged), damaged, None))


def test_skipped_images_are_recorded_and_logged_once(damaged: ImageSet, caplog: pytest.LogCaptureFixture) -> None:
    skipped = SkippedImages()
    for _ in range(2):  # epochs
        assert sum(len(batch.labels) for batch in handle_bad_images(read_in_order(damaged), damaged, skipped)) == 28
    assert skipped.as_dict() == {damaged.paths[TEXT]: "not an image", damaged.paths[LOST]: "No such file or directory"}
    assert [record.getMessage() for record in caplog.records] == [
        f"left out {path}: {reason}" for path, reason in skipped.as_dict().items()
    ]


def test_good_batches_are_passed_on_unchanged(shared_shapes: Path) -> None:
    images = open_source(FolderConfig(root=str(shared_shapes))).table().splits["train"]
    for skipped in (None, SkippedImages()):
        batches = read_in_order(images)
        assert list(map(id, handle_bad_images(batches, images, skipped))) == list(map(id, batches))
        assert not skipped


def test_training_batch_with_one_decodable_image_is_an_error(damaged: ImageSet) -> None:
    for path in damaged.paths[:9]:
        Path(path).write_text("no image")
    with pytest.raises(UserError, match=r"only 1 of the 10 images of a batch can be decoded; .*mlops_img\.audit"):
        list(handle_bad_images(read_in_order(damaged), damaged, SkippedImages()))


def test_evaluation_drops_a_batch_without_decodable_images(damaged: ImageSet) -> None:
    Path(damaged.paths[29]).write_text("no image")
    skipped = SkippedImages()
    batches = list(handle_bad_images(read_in_order(damaged, size=29), damaged, skipped, min_images=0))
    assert [len(batch.labels) for batch in batches] == [27]
    assert len(skipped) == 3


def test_evaluation_without_any_decodable_image_is_an_error(damaged: ImageSet) -> None:
    for path in damaged.paths:
        Path(path).write_text("no image")
    with pytest.raises(UserError, match="none of the 30 images can be decoded"):
        list(handle_bad_images(read_in_order(damaged), damaged, SkippedImages(), min_images=0))


def test_batch_without_decodable_images_is_empty_and_has_the_right_dtypes(damaged: ImageSet) -> None:
    batch = ImageBatches(damaged, PREPROCESSING.crop)[BatchIndices(0, np.array([TEXT]))]
    assert len(batch.images) == len(batch.labels) == len(batch.rows) == 0
    assert (batch.images.dtype, batch.labels.dtype, batch.rows.dtype) == (torch.uint8, torch.int64, torch.int64)


def test_skipped_images_are_written_and_read_back(tmp_path: Path) -> None:
    skipped = SkippedImages()
    skipped.add("b.png", "not an image")
    skipped.add("a.png", "empty file")
    skipped.write(tmp_path / "skipped.json")
    again = SkippedImages.read(tmp_path / "skipped.json")
    assert list(again.as_dict().items()) == [("b.png", "not an image"), ("a.png", "empty file")]
    assert len(SkippedImages.read(tmp_path / "missing.json")) == 0
