"""Tests of the images in the report: training images and mistakes."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mlops_img.reporting import report
from mlops_img.reporting.style import percent
from tests.helpers.reports import Page, Reader, decode

# One process makes the page that most of them read.
pytestmark = pytest.mark.xdist_group("report")


def test_training_images_are_shown_if_the_run_saved_them(run_dir: Path, digits: tuple[dict[str, Any], Reader]) -> None:
    evaluation, read_image = digits
    assert 'id="samples"' not in report.write_report(run_dir, evaluation, read_image).read_text(encoding="utf-8")
    samples = run_dir / "report" / "training_samples.png"
    Image.new("RGB", (40, 30), (1, 2, 3)).save(samples)
    page = Page(report.write_report(run_dir, evaluation, read_image))
    (shown,) = [image for image in page.all("img") if str(image["alt"]).startswith("Training images")]
    assert base64.b64decode(str(shown["src"]).split(",", 1)[1]) == samples.read_bytes()
    assert "#samples" in {anchor["href"] for anchor in page.all("a")}


def test_mistakes_show_the_image_the_prediction_and_the_label(
    written: Path, digits: tuple[dict[str, Any], Reader]
) -> None:
    page, (evaluation, read_image) = Page(written), digits
    first = evaluation["mistakes"][0]
    assert len(evaluation["mistakes"]) == 24
    shown = [image for image in page.all("img") if str(image["alt"]).startswith("Image ")]
    assert len(shown) == 24
    assert shown[0]["alt"] == f"Image {first['index']}: label {first['label']}, predicted {first['predicted']}"
    np.testing.assert_array_equal(decode(str(shown[0]["src"])), read_image(first["index"]))
    confidence = percent(first["confidence"])
    assert f"predicted {first['predicted']} ({confidence}) label {first['label']} (" in page.text


def test_absolute_paths_of_mistakes_are_shown_relative_to_their_common_folder(
    run_dir: Path, digits: tuple[dict[str, Any], Reader]
) -> None:
    evaluation, read_image = digits
    mistakes = [m | {"path": f"/photos/test/{m['label']}/{m['index']}.png"} for m in evaluation["mistakes"]]
    text = Page(report.write_report(run_dir, evaluation | {"mistakes": mistakes}, read_image)).text
    assert "Files are relative to /photos/test." in text
    assert text.count("/photos/test") == 1
    assert f"{mistakes[0]['label']}/{mistakes[0]['index']}.png" in text


def test_large_photos_are_embedded_as_thumbnails(run_dir: Path, digits: tuple[dict[str, Any], Reader]) -> None:
    evaluation, _ = digits
    row = np.linspace(0, 255, 1600, dtype=np.uint8)
    photo = np.broadcast_to(row[None, :, None], (900, 1600, 3)).copy()
    path = report.write_report(run_dir, evaluation, lambda index: photo)
    shown = [image for image in Page(path).all("img") if str(image["alt"]).startswith("Image ")]
    assert decode(str(shown[0]["src"])).shape == (144, 256, 3)
    assert path.stat().st_size < 1_500_000
