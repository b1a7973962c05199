"""What every form of an exported model is built from and measured on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mlops_img.compression.capture import ExportableModel
from mlops_img.compression.measure import Macs, Outputs, count_macs, run_over
from mlops_img.compression.quantize import calibration_rows
from mlops_img.config.export import ExportConfig
from mlops_img.data.batch import Batch
from mlops_img.data.loader import handle_bad_images, make_loader
from mlops_img.data.sampler import BatchIndices, batches_of, sequential_batches
from mlops_img.data.skipped import SkippedImages
from mlops_img.data.sources.base import ImageSet
from mlops_img.errors import UserError, did_you_mean
from mlops_img.evaluation.trained import FinishedRun
from mlops_img.preprocessing.transforms import Preprocessing
from mlops_img.preprocessing.views import VIEWS, View

BATCH = 32  # images per batch of validation and calibration


@dataclass(frozen=True)
class ExportContext:
    """A trained model, and the data that its forms are measured on.

    Attributes:
        model: in fp32 on the CPU, in evaluation mode.
        preprocessing: of the model.
        classes: names.
        validation: returns the batches of the validation split, anew with each call.
        calibration: training images, uint8 (n, 3, side, side) each.
        before: outputs of the fp32 model on the validation split, with image statistics.
        views: of an image, over which a program averages.
        macs: multiply-accumulates of the model.
        device: that the programs are made for.
        max_batch: largest batch of a program.
        max_drop: of top-1, in points, that is accepted.
        compile: whether AOTInductor packages are made.
        seed: of the bootstrap.
        keep_fp32: names of layers that are not quantized.
    """

    model: nn.Module
    preprocessing: Preprocessing
    classes: list[str]
    validation: Callable[[], Iterable[Batch]]
    calibration: list[Tensor]
    before: Outputs
    views: Sequence[View]
    macs: Macs
    device: torch.device
    max_batch: int
    max_drop: float
    compile: bool
    seed: int
    keep_fp32: Sequence[str] = ()

    def exportable(self) -> ExportableModel:
        """Return the fp32 model as programs run it."""
        return ExportableModel(self.model, self.preprocessing, views=self.views)


def make_context(run: FinishedRun, model: nn.Module, config: ExportConfig) -> ExportContext:
    """Read calibration images and measure the fp32 model.

    Raises:
        UserError: `quantize.keep_fp32` names a layer that the model does not have, or an image cannot be decoded.
    """
    layers = [name for name, _ in model.named_modules() if name]
    for name in config.quantize.keep_fp32:
        if name not in layers:
            raise UserError(f"quantize.keep_fp32: the model has no layer {name!r}.{did_you_mean(name, layers)}")
    views = VIEWS[config.export.tta]
    exportable = ExportableModel(model, run.trained.preprocessing, views=views)
    validation = Validation(run)
    return ExportContext(
        model=model,
        preprocessing=run.trained.preprocessing,
        classes=run.trained.classes,
        validation=validation,
        calibration=_calibration(run, config),
        before=run_over(exportable, validation(), config.export.max_batch, with_statistics=True),
        views=views,
        macs=count_macs(exportable),
        device=run.precision.device,
        max_batch=config.export.max_batch,
        max_drop=config.export.max_accuracy_drop,
        compile=config.export.compile,
        seed=run.config.seed,
        keep_fp32=config.quantize.keep_fp32,
    )


class Validation:
    """The batches of the validation split, anew with each call."""

    def __init__(self, run: FinishedRun) -> None:
        self.run = run

    def __call__(self) -> Iterator[Batch]:
        """Read the images in order, each once; one that cannot be decoded is skipped or an error, as in the run."""
        images = self.run.dataset.val
        return _read(self.run, images, sequential_batches(len(images), BATCH))


def _calibration(run: FinishedRun, config: ExportConfig) -> list[Tensor]:
    images = run.dataset.train
    rows = calibration_rows(images.labels, config.quantize.calibration_images, run.config.seed)
    return [batch.images for batch in _read(run, images, batches_of(rows, BATCH))]


def _read(run: FinishedRun, images: ImageSet, sampler: list[BatchIndices]) -> Iterator[Batch]:
    preprocessing = run.trained.preprocessing
    workers = run.evaluator().workers
    loaded = make_loader(images, preprocessing.crop, sampler, decode=preprocessing.decode, workers=workers)
    skipped = SkippedImages() if run.config.data.on_bad_image == "skip" else None
    return handle_bad_images(loaded, images, skipped, min_images=0)
