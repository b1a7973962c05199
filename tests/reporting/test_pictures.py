"""Contact sheets: images of any size side by side, each over its caption."""

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


def test_images_stand_in_rows_of_six_with_their_captions_below() -> None:
    captions = ["cat"] * 7
    sheet = opened(contact_sheet([filled(28, 28, RED)] * 6 + [filled(300, 500, BLUE)], captions))
    assert sheet.mode == "RGB"
    assert sheet.width == 6 * (SIDE + GAP) + GAP
    second_row = sheet.height // 2 + SIDE // 2
    assert sheet.getpixel((GAP + SIDE // 2, GAP + SIDE // 2)) == RED
    assert sheet.getpixel((GAP + 5 * (SIDE + GAP) + SIDE // 2, GAP + SIDE // 2)) == RED
    assert sheet.getpixel((GAP + SIDE // 2, second_row)) == BLUE
    assert sheet.getpixel((sheet.width - GAP - SIDE // 2, second_row)) == (255, 255, 255)
    caption = np.asarray(sheet)[GAP + SIDE : sheet.height // 2, GAP : GAP + SIDE]
    assert caption.min() < 100, "the caption is drawn"


def test_small_images_keep_their_pixels_as_squares() -> None:
    chequers = np.zeros((2, 2, 3), np.uint8)
    chequers[0, 0] = chequers[1, 1] = 255
    area = np.asarray(opened(contact_sheet([chequers], [""])))[GAP : GAP + SIDE, GAP : GAP + SIDE, 0]
    half = SIDE // 2
    assert (area[:half, :half] == 255).all()
    assert (area[:half, half:] == 0).all()


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 4000), (4000, 1), (65, 3)])
def test_any_shape_fits(height: int, width: int) -> None:
    sheet = opened(contact_sheet([filled(height, width, RED)], ["x"]))
    assert sheet.width == SIDE + 2 * GAP


@pytest.mark.parametrize("caption", ["", "$x^$ {", "a\x00b\udcff", "日本", "long " * 40, "two\nlines"])
def test_any_caption_can_be_drawn(caption: str) -> None:
    contact_sheet([filled(28, 28, RED)], [caption])


def test_text_is_cut_and_cleaned() -> None:
    assert printable("abc", 3) == "abc"
    assert printable("abcd", 3) == "ab…"
    assert printable("a\tb\udcff", 9) == "a?b?"
