"""Predictions of the service equal those of the library."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

import mlops_img
from tests.helpers.service_process import Service, serving

# One process starts the service for all of them.
pytestmark = pytest.mark.xdist_group("service")


@pytest.fixture(scope="module")
def service(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with serving(trained / "bundles" / "latest", tmp_path_factory.mktemp("service")) as running:
        yield running


@pytest.fixture
def photos(trained: Path) -> list[Path]:
    return [next((trained / "photos" / kind).iterdir()) for kind in ("circle", "square", "stripes")]


def test_prediction_equals_that_of_the_library(service: Service, portable: Path, photos: list[Path]) -> None:
    model = mlops_img.load(portable)
    for path in photos:
        answer = httpx.post(
            f"{service.url}/predict", files={"image": path.read_bytes()}, data={"top_k": "2"}, timeout=60
        ).json()
        (expected,) = model.predict([path], top_k=2)
        assert (answer["label"], answer["index"]) == (expected.label, expected.index)
        assert answer["probability"] == pytest.approx(expected.probability, abs=1e-6)
        assert [each["label"] for each in answer["top_k"]] == [each.label for each in expected.top_k]
        assert answer["model"] == {"name": "test_resnet", "version": "1"}
        assert set(answer["timing"]) == {"decode_ms", "queue_ms", "model_ms", "total_ms"}


def test_bad_image_affects_only_its_own_result(service: Service, photos: list[Path]) -> None:
    files = [("images", (path.name, path.read_bytes())) for path in photos]
    files.insert(1, ("images", ("bad.jpg", photos[0].read_bytes()[:200])))
    results = httpx.post(f"{service.url}/predict_batch", files=files, timeout=60).json()["results"]
    assert [result["prediction"] is None for result in results] == [False, True, False, False]
    assert results[1]["filename"] == "bad.jpg"
    assert results[1]["error"]["code"] == "bad_image"
    assert [result["prediction"]["label"] for result in results if result["prediction"]] == [
        path.parent.name for path in photos
    ]
