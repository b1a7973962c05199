"""`data.sixteen_bit`: every stage from training to serving decodes 12-bit images in 16-bit files in the same way."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch import Tensor

import mlops_img
from mlops_img.bundle.manifest import PreprocessingInfo
from mlops_img.bundle.predictor import Predictor
from mlops_img.config.commands import AuditConfig
from mlops_img.config.data import FolderConfig
from mlops_img.config.rules import validate
from mlops_img.data import loader
from mlops_img.data.sources.base import ImageSet
from mlops_img.errors import UserError
from mlops_img.evaluation.splits import read_pixels
from mlops_img.preprocessing.decode import decode_rgb
from mlops_img.preprocessing.transforms import Preprocessing
from mlops_img.runs.checkpoint import read_checkpoint
from mlops_img.serving.uploads import prepare_upload
from tests.helpers.commands import Outcome
from tests.helpers.shapes import SHAPES, draw_shape

Command = Callable[..., Outcome]
OLD = {"image_size": 8, "crop_pct": 1.0, "mean": [0.5] * 3, "std": [0.25] * 3, "gray": False}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Write 30 images of 12 bits in 16-bit files that do not declare the bit depth."""
    for kind in SHAPES:
        (tmp_path / "photos" / kind).mkdir(parents=True)
        for seed in range(10):
            gray = np.asarray(draw_shape(kind, seed).convert("L")).astype(np.uint16)
            noise = np.random.default_rng(seed).integers(0, 200, gray.shape, np.uint16)
            Image.fromarray(gray * 15 + noise).save(tmp_path / "photos" / kind / f"{seed}.png")
    return tmp_path / "photos"


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Record the preprocessed images of every batch from now on."""
    squares: list[bytes] = []
    stack = loader.stack

    def recording_stack(images: Sequence[Tensor]) -> Tensor:
        squares.extend(image.contiguous().numpy().tobytes() for image in images)
        return stack(images)

    monkeypatch.setattr(loader, "stack", recording_stack)
    return squares


def expected(photos: Path, preprocessing: Preprocessing) -> set[bytes]:
    """Return the correct preprocessed images, each stretched from its smallest to its largest value."""
    squares = set()
    for path in photos.rglob("*.png"):
        values = np.asarray(Image.open(path)).astype(float)
        shades = ((values - values.min()) * 255 / (values.max() - values.min())).round().astype(np.uint8)
        squares.add(preprocessing.crop(np.repeat(shades[:, :, None], 3, 2)).contiguous().numpy().tobytes())
    return squares


def test_every_stage_uses_the_same_pixels(train: Command, command: Command, photos: Path, seen: list[bytes]) -> None:
    outcome = train(f"data.root={photos}", "data.sixteen_bit=range", "train.epochs=1", "hydra.run.dir=runs/a")
    assert outcome.code == 0, outcome.err
    preprocessing = Preprocessing.from_dict(read_checkpoint(Path("runs/a/checkpoints/best.pt"))["preprocessing"])
    correct = expected(photos, preprocessing)
    assert len(correct) == 30
    assert set(seen) == correct
    for stage in (("evaluate",), ("export", "bundles=bundles", "quantize=none", "export.compile=false")):
        seen.clear()
        name, *options = stage
        assert command(f"mlops_img.{name}", "run=runs/a", *options).code == 0
        assert seen
        assert set(seen) <= correct

    predictor = mlops_img.load("bundles/latest", device="cpu")
    assert predictor.manifest.preprocessing.sixteen_bit == "range"
    for path in photos.rglob("*.png"):
        data = path.read_bytes()
        prepared = [predictor.prepare(source) for source in (path, data, Image.open(path))]
        prepared.append(prepare_upload(predictor, data, max_pixels=10**6))
        assert {square.contiguous().numpy().tobytes() for square in prepared} <= correct
        assert len({square.contiguous().numpy().tobytes() for square in prepared}) == 1
        shown = read_pixels(ImageSet([str(path)], np.zeros(1, np.int64)), 0, predictor.preprocessing)
        np.testing.assert_array_equal(shown, decode_rgb(data, "range"))
    sample = predictor.folder / predictor.manifest.samples[0].file
    assert np.asarray(Image.open(sample)).max() > 200

    # Bundles of earlier versions do not have the option.
    manifest = predictor.folder / "manifest.json"
    content = json.loads(manifest.read_text())
    del content["preprocessing"]["sixteen_bit"]
    manifest.write_text(json.dumps(content))
    assert mlops_img.load(predictor.folder, device="cpu").preprocessing.sixteen_bit == "declared"


def test_undeclared_12_bit_images_are_dark_by_default(photos: Path) -> None:
    for path in photos.rglob("*.png"):
        assert decode_rgb(path.read_bytes()).max() <= 16


def test_unknown_value_is_rejected_in_one_line(train: Command, photos: Path) -> None:
    message = "data.sixteen_bit=rnage: it can be declared, range. Did you mean 'range'?"
    outcome = train(f"data.root={photos}", "data.sixteen_bit=rnage")
    assert outcome.code == 2
    assert message in outcome.err
    assert "Traceback" not in outcome.err
    with pytest.raises(UserError, match=re.escape(message)):
        validate(AuditConfig(data=FolderConfig(root=str(photos), sixteen_bit="rnage")))


def test_preprocessing_of_earlier_versions_uses_the_declared_depth() -> None:
    assert Preprocessing.from_dict(OLD).sixteen_bit == "declared"
    assert PreprocessingInfo(**OLD).sixteen_bit == "declared"
    assert Preprocessing.from_dict(PreprocessingInfo(**OLD).model_dump()) == Preprocessing.from_dict(OLD)


@pytest.mark.parametrize("sixteen_bit", ["declared", "range"])
def test_predictor_decodes_with_the_option_of_its_preprocessing(sixteen_bit: str) -> None:
    predictor = Predictor.__new__(Predictor)
    predictor.preprocessing = Preprocessing(2, 1.0, (0.5,) * 3, (0.25,) * 3, sixteen_bit=sixteen_bit)
    file = io.BytesIO()
    Image.fromarray(np.array([[0, 2000], [1000, 4000]], np.uint16)).save(file, "PNG")
    square = predictor.prepare(file.getvalue())
    expected = {"declared": [[0, 8], [4, 16]], "range": [[0, 128], [64, 255]]}
    assert square[0].tolist() == expected[sixteen_bit]
