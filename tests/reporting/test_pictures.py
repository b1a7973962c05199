"""Tests of the contact sheets: images of any size side by side, each above its caption."""

import io

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from mlops_img.reporting.pictures import GAP, SIDE, contact_sheet, printable

RED, BLUE = (200, 30, 30), (30, 30, 200)


def filled(height: int, width: int, color: tuple[int, int, int]) -> NDArray[np.uint8]:
    return np.full((height, width, 3), color, np.uint8)


def opened(sheet: bytes) -> Image.Image:
    return Image.open(io.BytesIO(sheet))


def test_images_are_arranged_in_rows_of_six_above_their_captions() -> None:
    captions = ["cat"] * 7
    sheet = opened(contact_sheet([filled(28, 28, RED)] * 6 + [filled(300, 500, BLUE)], captions))
    assert sheet.mode == "RGB"
    assert sheet.width == 6 * (SIDE + GAP) + GAP
    pixels = np.asarray(sheet)
    blue = np.flatnonzero((pixels[:, GAP + SIDE // 2] == BLUE).all(-1))
    assert len(blue) == round(SIDE * 300 / 500), "the second row is as high as its image"
    assert sheet.getpixel((GAP + SIDE // 2, GAP + SIDE // 2)) == RED
    assert sheet.getpixel((GAP + 5 * (SIDE + GAP) + SIDE // 2, GAP + SIDE // 2)) == RED
    assert sheet.getpixel((sheet.width - GAP - SIDE // 2, int(blue.mean()))) == (255, 255, 255)
    caption = pixels[GAP + SIDE : blue[0], GAP : GAP + SIDE]
    assert caption.min() < 100, "the caption is drawn"


@pytest.mark.parametrize(("height", "width"), [(96, 96), (96, 48), (200, 180), (1000, 700)])
def test_every_image_is_scaled_to_the_full_side(height: int, width: int) -> None:
    pixels = np.asarray(opened(contact_sheet([filled(height, width, RED)], [""])))
    red = (pixels == RED).all(-1)
    assert red.any(1).sum() == SIDE
    assert red.any(0).sum() == round(SIDE * width / height)


def test_small_images_are_enlarged_without_interpolation() -> None:
    checkers = np.zeros((2, 2, 3), np.uint8)
    checkers[0, 0] = checkers[1, 1] = 255
    area = np.asarray(opened(contact_sheet([checkers], [""])))[GAP : GAP + SIDE, GAP : GAP + SIDE, 0]
    half = SIDE // 2
    assert (area[:half, :half] == 255).all()
    assert (area[:half, half:] == 0).all()


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 4000), (4000, 1), (65, 3)])
def test_images_of_extreme_shapes_fit_the_sheet(height: int, width: int) -> None:
    sheet = opened(contact_sheet([filled(height, width, RED)], ["x"]))
    assert sheet.width == SIDE + 2 * GAP


@pytest.mark.parametrize("caption", ["", "$x^$ {", "a\x00b\udcff", "日本", "long " * 40, "two\nlines"])
def test_any_caption_can_be_drawn(caption: str) -> None:
    contact_sheet([filled(28, 28, RED)], [caption])


def test_printable_cuts_text_and_replaces_control_characters() -> None:
    assert printable("abc", 3) == "abc"
    assert printable("abcd", 3) == "ab…"
    assert printable("a\tb\udcff", 9) == "a?b?"
