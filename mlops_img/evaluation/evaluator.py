"""Predicting whole image sets, and loading the model of a checkpoint for it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import nn

from mlops_img.config.train import Config, ModelConfig
from mlops_img.core.distributed import World
from mlops_img.core.memory import freed_memory_kept
from mlops_img.core.precision import Precision, to_device
from mlops_img.data.loader import handle_bad_images, loader_workers, make_loader, none_decodable
from mlops_img.data.sampler import sequential_batches
from mlops_img.data.skipped import SkippedImages
from mlops_img.data.sources.base import ImageSet
from mlops_img.evaluation.predictions import (
    Predictions,
    checked,
    collect_predictions,
    join_predictions,
    predict_batches,
)
from mlops_img.models.build import build_model
from mlops_img.preprocessing.transforms import Preprocessing
from mlops_img.runs.checkpoint import read_checkpoint


@dataclass(frozen=True)
class Evaluator:
    """Predict whole image sets, each image exactly once; several ranks take turns with the batches."""

    preprocessing: Preprocessing
    precision: Precision
    batch_size: int
    workers: int
    skip_bad: bool
    world: World = field(default_factory=World)

    @classmethod
    def of(
        cls, config: Config, preprocessing: Preprocessing, precision: Precision, world: World | None = None
    ) -> Evaluator:
        """Return the evaluator of a configuration."""
        return cls(
            preprocessing,
            precision,
            batch_size=config.train.eval_batch_size or 2 * config.train.batch_size,
            workers=loader_workers(config.data.workers, precision.device),
            skip_bad=config.data.on_bad_image == "skip",
            world=world or World(),
        )

    def on_this_rank(self) -> Evaluator:
        """Return an evaluator that predicts everything in this process."""
        return replace(self, world=World())

    @freed_memory_kept()
    def predict(self, model: nn.Module, images: ImageSet) -> tuple[Predictions, dict[str, str]]:
        """Return the predictions, and the images that were skipped as a mapping from path to reason.

        On ranks other than 0, both are of this rank's batches only.

        Raises:
            UserError: An image cannot be decoded and `skip_bad` is False.
        """
        skipped = SkippedImages()
        batches = make_loader(
            images,
            self.preprocessing.crop,
            sequential_batches(len(images), self.batch_size)[self.world.rank :: self.world.size],
            decode=self.preprocessing.decode,
            workers=self.workers,
            device=self.precision.device,
        )
        note = skipped if self.skip_bad else None
        if self.world.alone:
            readable = handle_bad_images(batches, images, note, min_images=0)
            return collect_predictions(model, readable, self.preprocessing, self.precision), skipped.as_dict()
        # Another rank may have the only images that can be decoded, so this one may be left with none.
        dealt = (batch for batch in handle_bad_images(batches, images, note, keep_empty=True) if len(batch.labels))
        own = predict_batches(model, dealt, self.preprocessing, self.precision)
        return self._gathered(own, skipped)

    def _gathered(self, own: Predictions, skipped: SkippedImages) -> tuple[Predictions, dict[str, str]]:
        """Return what all ranks predicted and skipped, on rank 0, and what was given on the others."""
        parts = self.world.gather((own.logits, own.labels, own.rows, skipped.as_dict()))
        if not self.world.leads:
            return own, skipped.as_dict()
        for part in parts:
            skipped.merge(part[3])
        if skipped and not any(len(part[2]) for part in parts):
            raise none_decodable(skipped)
        joined = join_predictions(Predictions(*part[:3]) for part in parts)
        return checked(joined), skipped.as_dict()


@dataclass(frozen=True)
class TrainedModel:
    """The model of a run's best checkpoint, ready to predict."""

    model: nn.Module
    classes: list[str]
    preprocessing: Preprocessing
    fingerprint: str  # of the training data


def load_trained(path: Path, precision: Precision) -> TrainedModel:
    """Build the model of a checkpoint and load its weights, on the device, in evaluation mode.

    Raises:
        UserError: The checkpoint is missing or damaged.
    """
    content = read_checkpoint(path)
    preprocessing = Preprocessing.from_dict(content["preprocessing"])
    settings = content["config"]
    model = build_model(
        ModelConfig(**settings["model"]), len(content["classes"]), preprocessing.image_size, load_weights=False
    )
    model.load_state_dict(content["model"])
    model = to_device(model, precision.device, channels_last=settings["train"]["channels_last"])
    return TrainedModel(model.eval(), content["classes"], preprocessing, content["fingerprint"])
