"""Distillation: the loss, which teachers are accepted, and that a run with one is like any other."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from mlops_img.core.precision import Precision
from mlops_img.preprocessing.transforms import Preprocessing
from mlops_img.training import distill
from mlops_img.training.distill import Distillation
from mlops_img.training.teacher import Teacher, open_teacher, teacher_for
from tests.helpers.commands import Outcome
from tests.helpers.stopped_runs import assert_resumed_equals_whole, metrics

Train = Callable[..., Outcome]
pytestmark = pytest.mark.usefixtures("no_pictures")

FP32 = Precision(torch.device("cpu"), torch.float32)
SIDE = 8
HALVES = Preprocessing(SIDE, 1.0, (0.5,) * 3, (0.5,) * 3)


class MeanColors(nn.Module):
    """Logits are the mean of each channel."""

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (n, 3)."""
        return images.mean((2, 3))


def mixed(weight: float, temperature: float, logits: Tensor, images: Tensor, kept: Tensor | None = None) -> Tensor:
    distillation = Distillation(MeanColors(), temperature, weight, kept)
    return distillation.mix(torch.tensor(3.0), logits, images, torch.arange(len(images)), FP32)


# --- the loss ----------------------------------------------------------------------------------------


def test_student_that_equals_its_teacher_loses_nothing_and_learns_nothing() -> None:
    images = torch.randn(4, 3, SIDE, SIDE)
    logits = MeanColors()(images).requires_grad_()
    loss = mixed(1.0, 3.0, logits, images)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert logits.grad is not None
    assert torch.allclose(logits.grad, torch.zeros(4, 3), atol=1e-6)


def test_teachers_share_is_the_divergence_times_the_squared_temperature() -> None:
    images = torch.zeros(1, 3, SIDE, SIDE)  # the teacher's probabilities are equal
    logits = torch.tensor([[2 * math.log(2), 0.0, 0.0]])  # at temperature 2: 1/2, 1/4, 1/4
    divergence = sum(1 / 3 * math.log((1 / 3) / share) for share in (1 / 2, 1 / 4, 1 / 4))
    assert mixed(0.25, 2.0, logits, images).item() == pytest.approx(0.75 * 3.0 + 0.25 * 4 * divergence)


def test_kept_logits_stand_in_for_the_teacher() -> None:
    images, logits = torch.randn(4, 3, SIDE, SIDE), torch.randn(4, 3)
    kept = MeanColors()(images)
    assert mixed(0.5, 2.0, logits, images, kept).item() == mixed(0.5, 2.0, logits, images).item()
    assert mixed(0.5, 2.0, logits, torch.zeros_like(images), kept).item() == mixed(0.5, 2.0, logits, images).item()


# --- teachers ----------------------------------------------------------------------------------------


def test_teacher_sees_images_by_its_own_normalization_and_answers_in_the_students_order() -> None:
    pixels = torch.randint(256, (2, 3, SIDE, SIDE), dtype=torch.uint8)
    its_own = Preprocessing(SIDE, 1.0, (0.1, 0.2, 0.3), (0.25, 0.5, 1.0))
    teacher = Teacher(MeanColors(), its_own.mean, its_own.std, gray=False, classes=["a", "b", "c"])
    fitted = teacher_for(["c", "a"], HALVES, teacher, "distill.teacher=x")
    wanted = MeanColors()(its_own.normalize(pixels))[:, [2, 0]]
    assert torch.allclose(fitted(HALVES.normalize(pixels)), wanted, atol=1e-5)


def test_run_and_its_bundle_are_the_same_teacher(trained: Path, portable: Path) -> None:
    of_run, of_bundle = (open_teacher(str(path), 32, 3) for path in (trained / "run", portable))
    assert of_run.classes == of_bundle.classes
    assert (of_run.mean, of_run.std) == (of_bundle.mean, of_bundle.std)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(of_run.model.eval()(images), of_bundle.model.eval()(images), atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["distill.teacher=."], "distill.teacher=.: there is neither a run nor a bundle in it"),
        (["distill.teacher=resnet81"], "distill.teacher=resnet81: it is no folder, and as a model of timm: "),
        (["distill.teacher={run}", "model.in_chans=1"], "it takes color images, the model to train does not"),
        (["distill.teacher={run}", "data.root=others"], "it does not know the classes cat, dog of the data"),
        (["distill.teacher={run}", "distill.weight=1.5"], "distill.weight=1.5: it must lie between 0 and 1"),
        (["distill.teacher={run}", "distill.temperature=0"], "distill.temperature=0.0: it must be more than 0"),
    ],
)
def test_teacher_that_cannot_teach_is_refused_before_the_first_step(
    train: Train, run: Path, shared_shapes: Path, tmp_path: Path, settings: list[str], message: str
) -> None:
    (tmp_path / "others").mkdir()
    for name, own in (("cat", "circle"), ("dog", "square")):
        (tmp_path / "others" / name).symlink_to(shared_shapes / own)
    outcome = train(*(setting.format(run=run) for setting in settings))
    assert outcome.code == 2
    assert message in outcome.err
    assert len(outcome.err.strip().splitlines()) == 1
    assert not list(tmp_path.glob("runs/*/checkpoints/*"))


# --- runs --------------------------------------------------------------------------------------------


def test_logits_are_computed_once_where_nothing_changes_the_images(
    train: Train, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ("augment=none", f"distill.teacher={run}", "distill.weight=1")
    assert train(*settings, "hydra.run.dir=runs/kept").code == 0
    monkeypatch.setattr(distill, "MAX_KEPT_LOGITS", 0)
    assert train(*settings, "hydra.run.dir=runs/anew").code == 0
    kept, anew = ([line["loss"] for line in metrics(tmp_path / "runs" / name)] for name in ("kept", "anew"))
    assert kept == pytest.approx(anew, rel=1e-4)


def test_student_of_a_teacher_alone_comes_to_agree_with_it(train: Train, run: Path, tmp_path: Path) -> None:
    settings = ("augment=none", f"distill.teacher={run}", "distill.weight=1", "train.epochs=8", "optim.lr=0.01")
    assert train(*settings, "hydra.run.dir=runs/a").code == 0
    losses = [line["train_loss"] for line in metrics(tmp_path / "runs/a") if line["split"] == "val"]
    assert losses[-1] < 0.5 * losses[0]


def test_resumed_student_equals_the_uninterrupted_one(
    train: Train, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ("augment=strong", f"distill.teacher={run}", "train.log_every_steps=1")
    assert_resumed_equals_whole(train, settings, 3, tmp_path / "runs", monkeypatch)


def test_teacher_whose_classes_have_no_names_is_taken_at_its_number_of_classes(
    train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlops_img.training.teacher.build_model", lambda *_: published(3))
    outcome = train("distill.teacher=someones_model")
    assert outcome.code == 0
    assert "distill.teacher=someones_model does not name its classes" in outcome.out
    monkeypatch.setattr("mlops_img.training.teacher.build_model", lambda *_: published(1000))
    outcome = train("distill.teacher=someones_model")
    assert outcome.code == 2
    assert "its weights know 1000 classes, the data have 3" in outcome.err


def published(classes: int) -> nn.Module:
    """Return a model as timm does, with weights for so many classes."""
    model = MeanColors()
    model.pretrained_cfg = {"num_classes": classes}  # type: ignore[assignment]
    return model
