"""A user's function as a source, and errors for invalid tables."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mlops_img.config.data import CustomDataConfig
from mlops_img.data.dataset import load_dataset
from mlops_img.data.sources.base import ImageSet, Table
from mlops_img.data.sources.registry import open_source
from mlops_img.errors import UserError
from mlops_img.preprocessing.decode import decode_rgb
from tests.helpers.shapes import SHAPES, draw_shape


def stripes_and_circles(root: str, per_class: int, labels: list[int] | None = None, splits: str = "train") -> Table:
    pictures = {f"{kind}/{number}": draw_shape(kind, number) for kind in SHAPES[:2] for number in range(per_class)}
    given = np.array(labels if labels is not None else [0] * per_class + [1] * per_class)
    assert root == "data"
    return Table(list(SHAPES[:2]), {split: ImageSet(list(pictures), given, pictures.__getitem__) for split in [splits]})


def nothing(root: str) -> None:
    return None


def custom(function: str, **kwargs: Any) -> Table:
    return open_source(CustomDataConfig(_target_=f"{__name__}.{function}", kwargs=kwargs)).table()


def test_a_user_source_is_called_with_root_and_kwargs() -> None:
    table = custom("stripes_and_circles", per_class=3)
    assert table.classes == ["circle", "square"]
    np.testing.assert_array_equal(
        decode_rgb(table.splits["train"].read("square/2")), np.asarray(draw_shape("square", 2))
    )


def test_a_user_source_can_be_trained_on() -> None:
    config = CustomDataConfig(_target_=f"{__name__}.stripes_and_circles", kwargs={"per_class": 10})
    dataset = load_dataset(config)
    assert (len(dataset.train), len(dataset.val), len(dataset.test)) == (16, 2, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"labels": [0, 0, 1, 2]}, "labels from 0 to 2 in train, but 2 classes"),
        ({"labels": [0, 0, -1, 1]}, "labels from -1 to 1 in train, but 2 classes"),
        ({"labels": [0, 1]}, "has 4 images in train and labels of shape"),
        ({"labels": [0.0, 0.5, 1.0, 1.0]}, "type float64"),
        ({"splits": "training"}, "has the splits training"),
        ({"splits": "test"}, "and training needs it"),
    ],
)
def test_an_invalid_table_is_rejected(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        custom("stripes_and_circles", per_class=2, **arguments)


def test_a_source_that_does_not_return_a_table_is_rejected() -> None:
    with pytest.raises(UserError, match="returned NoneType, not a Table"):
        custom("nothing")


@pytest.mark.parametrize("target", ["no_such_module.table", f"{__name__}.no_such_function"])
def test_a_source_that_cannot_be_imported_is_rejected(target: str) -> None:
    with pytest.raises(UserError, match=f"data._target_: {target} cannot be imported: ") as caught:
        open_source(CustomDataConfig(_target_=target)).table()
    assert "\n" not in str(caught.value)
