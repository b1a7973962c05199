"""Tests of the confidence interval of an accuracy and of the warning about small splits."""

from __future__ import annotations

import math

import pytest

from mlops_img.evaluation.confidence import FEW_IMAGES, small_split_warning, top1_interval, with_interval


@pytest.mark.parametrize(
    ("correct", "n", "low", "high"),
    # Newcombe 1998, "Two-sided confidence intervals for the single proportion", table I, method 3.
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_interval_equals_published_values(correct: int, n: int, low: float, high: float) -> None:
    assert top1_interval(correct / n, n) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize("n", [1, 2, 24, 323, 10_000])
def test_interval_equals_wilsons_formula(n: int) -> None:
    z = 1.959964
    for correct in {0, 1, n // 3, n - 1, n}:
        share = correct / n
        center = (share + z * z / (2 * n)) / (1 + z * z / n)
        half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
        expected = (max(0.0, center - half), min(1.0, center + half))
        assert top1_interval(share, n) == pytest.approx(expected, abs=1e-6)


def test_interval_of_zero_images_is_none() -> None:
    assert top1_interval(0.0, 0) is None
    assert with_interval(0.5, None) == "0.5000"


def test_accuracy_is_formatted_with_its_interval() -> None:
    assert with_interval(0.95, top1_interval(0.95, 20)) == "0.9500 (95 % interval 0.7639 to 0.9911)"


def test_warning_for_few_images_gives_the_width_of_the_interval() -> None:
    warning = small_split_warning("test", 20, top1_interval(0.95, 20))
    assert warning is not None
    assert warning.startswith("the test split has only 20 images: ")
    assert "0.7639 to 0.9911, is 23 points wide" in warning
    assert small_split_warning("test", FEW_IMAGES, top1_interval(0.95, FEW_IMAGES)) is None
    assert small_split_warning("test", 0, None) is None
