"""Predicting with a bundle: `mlops_img.load("bundles/latest").predict(["photo.jpg"])`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mlops_img.bundle.manifest import Manifest, Program
from mlops_img.bundle.prediction import ClassProbability, Prediction
from mlops_img.bundle.programs import CannotRunError, LoadedProgram, load_program
from mlops_img.errors import UserError
from mlops_img.preprocessing.decode import BadImageError
from mlops_img.preprocessing.transforms import Preprocessing, stack

log = logging.getLogger(__name__)

# A path; the bytes of a file; a Pillow image; or pixels, uint8 (3, height, width).
ImageLike = str | Path | bytes | Image.Image | Tensor


def most_probable(logits: Tensor, temperature: float, top_k: int) -> tuple[Tensor, Tensor]:
    """Return the calibrated probabilities and the indices of the `top_k` most probable classes, or of all if fewer.

    Args:
        logits: float32 (n, classes).
        temperature: divisor of the logits.
        top_k: how many.

    Returns:
        Float32 and int64 (n, k), the most probable first.
    """
    values, indices = (logits / temperature).softmax(1).topk(min(top_k, logits.shape[1]))
    return values, indices


class Predictor:
    """A bundle ready to predict; threads may share it."""

    def __init__(self, folder: Path, manifest: Manifest, device: torch.device, only: Program | None = None) -> None:
        """Make the first of the manifest's programs that runs here ready, or `only` that one."""
        self.folder = folder
        self.manifest = manifest
        self.device = device
        self.preprocessing = Preprocessing.from_dict(manifest.preprocessing.model_dump())
        self.program, self._run = self._choose([only] if only else manifest.programs)

    def predict(self, images: Sequence[ImageLike], *, top_k: int = 5) -> list[Prediction]:
        """Predict images, in their order.

        Args:
            images: paths, bytes of image files, Pillow images or uint8 (3, height, width) pixels.
            top_k: how many classes each prediction lists.

        Raises:
            BadImageError: one cannot be decoded completely.
            OSError: a file cannot be read.
        """
        return [
            prediction
            for start in range(0, len(images), self.program.max_batch)
            for prediction in self.interpret(
                self.run(stack([self.prepare(image) for image in images[start : start + self.program.max_batch]]))[0],
                top_k,
            )
        ]

    def prepare(self, image: ImageLike) -> Tensor:
        """Decode, resize and crop one image to uint8 (3, side, side), as evaluation does."""
        if isinstance(image, str | Path):
            image = Path(image).read_bytes()
        if isinstance(image, Tensor):
            if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3 or 0 in image.shape:
                raise BadImageError(
                    f"a tensor must be uint8 (3, height, width), this is {image.dtype} {tuple(image.shape)}"
                )
            pixels = np.ascontiguousarray(image.permute(1, 2, 0).cpu().numpy())
        else:
            pixels = self.preprocessing.decode(image)
        return self.preprocessing.crop(pixels)

    @property
    def concurrent(self) -> bool:
        """Whether several threads gain by calling `run` at the same time; otherwise they wait for one another."""
        return self._run.concurrent

    def run(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Run the program on uint8 (n, 3, side, side), n at most its `max_batch`; logits and features on the CPU."""
        logits, features = self._run(pixels)
        return logits.float().cpu(), features.float().cpu()

    def interpret(self, logits: Tensor, top_k: int = 5) -> list[Prediction]:
        """Turn logits (n, classes) into predictions."""
        classes = self.manifest.classes
        best, order = most_probable(logits, self.manifest.temperature, top_k)
        found = []
        for shares, indices in zip(best.tolist(), order.tolist(), strict=True):
            ranked = [
                ClassProbability(label=classes[index], index=index, probability=share)
                for share, index in zip(shares, indices, strict=True)
            ]
            found.append(Prediction(**ranked[0].model_dump(), top_k=ranked))
        return found

    def _choose(self, programs: Sequence[Program]) -> tuple[Program, LoadedProgram]:
        refused = []
        for program in programs:
            try:
                runner = load_program(self.folder, program, self.device, self.preprocessing.image_size)
            except CannotRunError as error:
                refused.append(f"{program.file}: {error}")
                continue
            if refused:
                log.warning("%s is used; %s", program.file, "; ".join(refused))
            return program, runner
        raise UserError(f"bundle {self.folder}: no program in it runs here: {'; '.join(refused)}. Export the run here")
