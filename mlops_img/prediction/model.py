"""The model of a batch prediction: a bundle's program, or the best checkpoint of a run."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mlops_img.bundle.folder import MANIFEST, read_manifest, sha256
from mlops_img.bundle.predictor import Predictor
from mlops_img.config.commands import EvaluateTrainConfig
from mlops_img.config.predict import PredictConfig
from mlops_img.core.device import find_device
from mlops_img.errors import UserError
from mlops_img.evaluation.trained import open_trained
from mlops_img.preprocessing.transforms import Preprocessing
from mlops_img.registry.locate import local_bundle

BATCH_SIZE = 64


@dataclass(frozen=True)
class Model:
    """A model ready to predict.

    Attributes:
        location: as it was given, e.g. run=runs/latest.
        sha256: of the run's checkpoint; or of the bundle's manifest, which holds those of all its files.
        classes: their names, in the order of the logits.
        temperature: divisor of the logits.
        precision: what it computes in, e.g. fp32, bf16, int8-static.
        preprocessing: from a file to the pixels.
        device: that it runs on.
        batch_size: images at once.
        logits: from pixels, uint8 (n, 3, side, side), to logits, float32 (n, classes) on the CPU.
    """

    location: str
    sha256: str
    classes: Sequence[str]
    temperature: float
    precision: str
    preprocessing: Preprocessing
    device: torch.device
    batch_size: int
    logits: Callable[[Tensor], Tensor]


def open_model(config: PredictConfig) -> Model:
    """Open the bundle or the run.

    Raises:
        UserError: it is missing or damaged, does not run here, or takes fewer images at once than batch_size.
    """
    device = find_device(_device(config.device), "device")
    return _from_run(config, device) if config.bundle is None else _from_bundle(config, device)


def _device(name: str) -> str:
    """Return the name of the device; torchrun numbers the processes of a machine, and each takes a GPU of its own."""
    number = os.environ.get("LOCAL_RANK", "")
    if name == "auto" and number.isdigit() and torch.cuda.is_available():
        return f"cuda:{int(number) % torch.cuda.device_count()}"
    return name


def _from_bundle(config: PredictConfig, device: torch.device) -> Model:
    assert config.bundle is not None
    folder = local_bundle(config.bundle)
    predictor = Predictor(folder, read_manifest(folder), device)
    most = predictor.program.max_batch
    if config.batch_size is not None and config.batch_size > most:
        raise UserError(
            f"batch_size={config.batch_size}: the program of bundle={config.bundle} takes at most {most} images at "
            f"once. Use batch_size={most}, or export with a larger export.max_batch"
        )
    return Model(
        location=f"bundle={config.bundle}",
        sha256=sha256(folder / MANIFEST),
        classes=predictor.manifest.classes,
        temperature=predictor.manifest.temperature,
        precision=predictor.program.precision,
        preprocessing=predictor.preprocessing,
        device=device,
        batch_size=config.batch_size or min(BATCH_SIZE, most),
        logits=lambda pixels: predictor.run(pixels)[0],
    )


def _from_run(config: PredictConfig, device: torch.device) -> Model:
    assert config.run is not None
    run = open_trained(config.run, train=EvaluateTrainConfig(device=str(device), precision=config.precision))
    model, preprocessing, precision = run.trained.model, run.trained.preprocessing, run.precision

    @torch.inference_mode()
    def logits(pixels: Tensor) -> Tensor:
        with precision.autocast():
            outputs: Tensor = model(preprocessing.normalize(pixels.to(device, non_blocking=True)))
        return outputs.float().cpu()

    return Model(
        location=f"run={config.run}",
        sha256=sha256(run.folder.checkpoints / "best.pt"),
        classes=run.trained.classes,
        temperature=run.temperature(),
        precision=str(precision.dtype).removeprefix("torch."),
        preprocessing=preprocessing,
        device=device,
        batch_size=config.batch_size or BATCH_SIZE,
        logits=logits,
    )
