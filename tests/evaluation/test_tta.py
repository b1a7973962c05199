"""Test-time augmentation: which images get it, and its figures beside those without."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mlops_img.core.precision import Precision
from mlops_img.data.sources.base import ImageSet
from mlops_img.evaluation.evaluator import Evaluator
from mlops_img.evaluation.tta import ViewAveraging, least_certain
from mlops_img.preprocessing.transforms import Preprocessing
from tests.helpers.commands import Outcome
from tests.helpers.shapes import draw_shape

Command = Callable[..., Outcome]
SIDE = 16
EVALUATOR = Evaluator(
    Preprocessing(SIDE, 1.0, (0.5,) * 3, (0.25,) * 3),
    Precision(torch.device("cpu"), torch.float32),
    batch_size=3,
    workers=0,
    skip_bad=True,
)


class LeftAgainstRight(nn.Module):
    """Its logits are the mean of the left half, of the right half, and 0."""

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (n, 3)."""
        halves = images[..., : SIDE // 2].mean((1, 2, 3)), images[..., SIDE // 2 :].mean((1, 2, 3))
        return torch.stack([*halves, torch.zeros(len(images))], 1)


def photos(count: int) -> ImageSet:
    """Return drawn shapes, the third of which cannot be decoded."""
    drawn = {str(number): draw_shape("circle", number, side=SIDE) for number in range(count)}
    return ImageSet(list(drawn), np.zeros(count, np.int64), lambda name: b"text" if name == "2" else drawn[name])


def test_logits_are_averaged_over_an_image_and_its_mirror_image() -> None:
    model, images = LeftAgainstRight().eval(), photos(8)
    plain, skipped = EVALUATOR.predict(model, images)
    assert list(skipped) == ["2"]
    averaged = ViewAveraging("flip").predict(EVALUATOR, model, images, plain)
    swapped = plain.logits[:, [1, 0, 2]]
    assert torch.allclose(averaged.logits, (plain.logits + swapped) / 2, atol=1e-6)
    assert torch.equal(averaged.rows, plain.rows)


@pytest.mark.parametrize("share", [0.01, 0.3, 0.5])
def test_only_the_least_certain_images_are_averaged(share: float) -> None:
    model, images = LeftAgainstRight().eval(), photos(12)
    plain, _ = EVALUATOR.predict(model, images)
    averaged = ViewAveraging("flip+shift", share).predict(EVALUATOR, model, images, plain)
    changed = (averaged.logits != plain.logits).any(1)
    assert int(changed.sum()) == max(1, round(share * 11))
    certainty = plain.probabilities().max(1).values
    assert certainty[changed].max() <= certainty[~changed].min()
    assert torch.equal(changed.nonzero().squeeze(1), least_certain(plain, share))


def test_model_is_left_in_evaluation_mode() -> None:
    model, images = LeftAgainstRight().eval(), photos(4)
    plain, _ = EVALUATOR.predict(model, images)
    ViewAveraging("flip").predict(EVALUATOR, model, images, plain)
    assert not model.training


def test_figures_with_and_without_stand_side_by_side(command: Command, run: Path) -> None:
    outcome = command("mlops_img.evaluate", "run=runs/a", "tta=flip+shift", "tta_share=0.5")
    assert outcome.code == 0, outcome.err
    summary = json.loads((run / "summary.json").read_text())
    result = json.loads((run / "evaluation" / "test.json").read_text())
    assert result["top1"] == summary["test.top1"]
    assert result["tta"]["views"] == "flip+shift"
    assert result["tta"]["share"] == 0.5
    assert result["tta"]["loss"] != result["loss"]
    assert f"test.tta.loss          {result['tta']['loss']:.4f}" in outcome.out
    assert "With test-time augmentation (flip+shift, on the 50 % least certain" in " ".join(
        (run / "report" / "index.html").read_text().split()
    )
    assert command("mlops_img.evaluate", "run=runs/a").code == 0
    assert "tta" not in json.loads((run / "evaluation" / "test.json").read_text())


def test_data_set_of_ones_own_has_them_too(command: Command, run: Path, shared_shapes: Path, tmp_path: Path) -> None:
    (tmp_path / "holdout").mkdir()
    (tmp_path / "holdout" / "circle").symlink_to(shared_shapes / "circle")
    outcome = command("mlops_img.evaluate", "run=runs/a", "data=folder", "data.root=holdout", "tta=flip")
    assert outcome.code == 0, outcome.err
    (path,) = (run / "evaluation").glob("holdout-*/test.json")
    assert json.loads(path.read_text())["tta"]["views"] == "flip"


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("tta=flop", "tta=flop: it can be none, flip, flip+shift. Did you mean 'flip'?"),
        ("tta_share=0", "tta_share=0.0: it must be more than 0"),
        ("tta_share=2", "tta_share=2.0: it must lie between 0 and 1"),
    ],
)
def test_invalid_settings_are_refused(command: Command, run: Path, argument: str, message: str) -> None:
    outcome = command("mlops_img.evaluate", "run=runs/a", argument)
    assert outcome.code == 2
    assert message in outcome.err
