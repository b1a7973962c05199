"""Models that are initialized from training images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.helpers.commands import Outcome
from tests.helpers.shapes import write_shapes
from tests.helpers.stopped_runs import assert_resumed_equals_whole

Train = Callable[..., Outcome]
SMALL_CNN = ("model.name=small_cnn", "model.kwargs.widths=[8,16]", "train.epochs=1")

pytestmark = pytest.mark.usefixtures("no_pictures")


class Recorder(nn.Module):
    """A model of a user that keeps the images it was initialized from."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(3, num_classes)
        self.register_buffer("mean", torch.full((3,), torch.nan))
        self.register_buffer("count", torch.zeros(()))

    def init_from_images(self, images: Tensor) -> None:
        self.mean, self.count = images.mean((0, 2, 3)), torch.tensor(float(len(images)))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(images.mean((2, 3)))
        return logits


def test_small_cnn_is_trained_evaluated_and_repeatable(train: Train, tmp_path: Path) -> None:
    stems = []
    for name in ("a", "b"):
        assert train(*SMALL_CNN, f"hydra.run.dir=runs/{name}").code == 0
        stems.append(torch.load(tmp_path / f"runs/{name}/checkpoints/best.pt", weights_only=True))
    one, other = (content["model"]["stem.weight"] for content in stems)
    assert torch.equal(one, other)
    # 24 filters: 12 components and their negatives, which random filters are not.
    assert torch.equal(one[:12], -one[12:])


def test_resumed_run_keeps_the_whitening_of_its_start(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_resumed_equals_whole(train, SMALL_CNN, 2, tmp_path / "runs", monkeypatch)


def test_model_of_a_user_gets_normalized_training_images(train: Train, tmp_path: Path) -> None:
    settings = (f"model._target_={__name__}.Recorder", "train.epochs=1", "hydra.run.dir=runs/a")
    outcome = train(*settings)
    assert outcome.code == 0, outcome.err
    model = torch.load(tmp_path / "runs/a/checkpoints/best.pt", weights_only=True)["model"]
    assert model["count"] == 48
    assert (model["mean"].abs() < 3).all()


@pytest.mark.parametrize(("policy", "code"), [("skip", 0), ("raise", 2)])
def test_damaged_training_image_is_skipped_or_named(train: Train, tmp_path: Path, policy: str, code: int) -> None:
    shapes = write_shapes(tmp_path / "photos", per_class=12)
    for kind in ("circle", "square", "stripes"):
        (shapes / "train").mkdir(exist_ok=True)
        (shapes / kind).rename(shapes / "train" / kind)
    (shapes / "train" / "circle" / "000.jpg").write_bytes(b"damaged")
    outcome = train(*SMALL_CNN, f"data.root={shapes}", f"data.on_bad_image={policy}")
    assert outcome.code == code, outcome.err
    if code:
        assert "000.jpg cannot be decoded" in outcome.err
