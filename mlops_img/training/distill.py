"""Distillation: a model learns from a teacher's outputs besides the labels (arXiv:1503.02531)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from mlops_img.config.train import Config
from mlops_img.core.precision import Precision, to_device
from mlops_img.data.augment import BatchAugment, ImageAugment
from mlops_img.data.dataset import Dataset
from mlops_img.evaluation.evaluator import Evaluator
from mlops_img.training.teacher import Teacher, open_teacher, teacher_for

MAX_KEPT_LOGITS = 2**28  # a gigabyte in float32


@dataclass(frozen=True)
class Distillation:
    """The loss of a student that learns from a teacher.

    Attributes:
        teacher: in evaluation mode, on the device; takes the student's images and returns logits (n, classes).
        temperature: by which the logits of both are divided.
        weight: share of the teacher's loss, 0 to 1.
        kept: the teacher's logits for every training image, float32 (images, classes), where no augmentation changes
            the images; else None.
    """

    teacher: nn.Module
    temperature: float
    weight: float
    kept: Tensor | None = None

    def mix(
        self,
        loss: Tensor,
        logits: Tensor,
        images: Tensor,
        rows: Tensor,
        precision: Precision,
        share: Tensor | float = 1.0,
    ) -> Tensor:
        """Mix the loss of the labels with the divergence of the student's probabilities from the teacher's.

        Args:
            loss: of the labels, float ().
            logits: of the student, (n, classes).
            images: of the student, normalized and augmented, (n, channels, side, side).
            rows: of the images in the training set, int64 (n,), on the CPU.
            precision: of the student's forward pass.
            share: of these images in a forward pass that ranks divide; that of `loss` is in it already.
        """
        if self.kept is not None:
            given = self.kept[rows].to(logits.device)
        else:
            with torch.no_grad(), precision.autocast():
                given = self.teacher(images)
        divergence = functional.kl_div(
            (logits.float() / self.temperature).log_softmax(1),
            (given.float() / self.temperature).log_softmax(1),
            reduction="batchmean",
            log_target=True,
        )
        # The gradients of softened probabilities shrink with the square of the temperature.
        teachers = self.weight * self.temperature**2 * divergence
        return (1 - self.weight) * loss + teachers * share


def make_distillation(
    config: Config,
    dataset: Dataset,
    evaluator: Evaluator,
    augment: tuple[ImageAugment, BatchAugment],
    own_teacher: nn.Module | None = None,
) -> Distillation | None:
    """Load the teacher; None where there is none.

    Args:
        config: of the training.
        dataset: whose classes the teacher must know.
        evaluator: with the student's preprocessing, precision and device.
        augment: of the training images.
        own_teacher: with the student's preprocessing and classes, instead of the one that is configured.

    Raises:
        UserError: there is no such teacher, or it has other classes or channels, or cannot take the images.
    """
    options, preprocessing = config.distill, evaluator.preprocessing
    if own_teacher is not None:
        teacher = Teacher(own_teacher, preprocessing.mean, preprocessing.std, preprocessing.gray, dataset.classes)
    elif options.teacher is not None:
        teacher = open_teacher(options.teacher, preprocessing.image_size, len(dataset.classes))
    else:
        return None
    model = to_device(
        teacher_for(dataset.classes, preprocessing, teacher, f"distill.teacher={options.teacher}"),
        evaluator.precision.device,
        channels_last=config.train.channels_last,
    )
    kept = None
    unchanged = not (augment[0].changes or augment[1].changes) and config.train.resolution is None
    if unchanged and len(dataset.train) * len(dataset.classes) <= MAX_KEPT_LOGITS:
        kept = _logits_of_all(model, dataset, evaluator)
    return Distillation(model, options.temperature, options.weight, kept)


def _logits_of_all(model: nn.Module, dataset: Dataset, evaluator: Evaluator) -> Tensor:
    predictions, _ = evaluator.on_this_rank().predict(model, dataset.train)
    kept = torch.zeros(len(dataset.train), predictions.logits.shape[1])
    kept[predictions.rows] = predictions.logits
    return kept
