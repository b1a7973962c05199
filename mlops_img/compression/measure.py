"""Measures of a model and its programs: work, accuracy, speed, and how far from the fp32 model."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from scipy.stats import bootstrap
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mlops_img.bundle.manifest import Quality
from mlops_img.bundle.programs import Runner
from mlops_img.compression.capture import ExportableModel, example_images
from mlops_img.core.memory import freed_memory_kept
from mlops_img.data.batch import Batch
from mlops_img.evaluation.confidence import top1_interval
from mlops_img.evaluation.metrics import METRICS, Predictions
from mlops_img.evaluation.result import build_result
from mlops_img.monitoring.reference import image_statistics
from mlops_img.preprocessing.transforms import Preprocessing

RESAMPLES = 2000
CONFIDENCE = 0.95
LINEAR_OPERATORS = (torch.ops.aten.mm, torch.ops.aten.addmm)
TIMED_SECONDS = 1.5  # for each batch size


@dataclass(frozen=True)
class Outputs:
    """Outputs of a program on a split, on the CPU.

    Attributes:
        predictions: logits, labels and rows.
        features: float32 (n, d).
        statistics: of the images, float32 (n, 5), if requested; see `monitoring.reference.image_statistics`.
    """

    predictions: Predictions
    features: Tensor
    statistics: Tensor | None = None


class Macs(NamedTuple):
    """Multiply-accumulates of a model for one image, and the share of them in linear layers."""

    total: int
    linear_share: float


@torch.inference_mode()
@freed_memory_kept()
def run_over(runner: Runner, batches: Iterable[Batch], max_batch: int, *, with_statistics: bool = False) -> Outputs:
    """Run a program over batches of any size, each image once."""
    logits, features, labels, rows, statistics = [], [], [], [], []
    for batch in batches:
        for part in batch.images.split(max_batch):
            outputs = runner(part)
            logits.append(outputs[0].float().cpu())
            features.append(outputs[1].float().cpu())
        if with_statistics:
            statistics.append(image_statistics(batch.images))
        labels.append(batch.labels)
        rows.append(batch.rows)
    predictions = Predictions(torch.cat(logits), torch.cat(labels), torch.cat(rows))
    return Outputs(predictions, torch.cat(features), torch.cat(statistics) if with_statistics else None)


def quality(predictions: Predictions, classes: list[str], split: str) -> Quality:
    """Compute every metric of `METRICS`, and the calibration error before temperature scaling."""
    result = build_result(predictions, classes, paths=[""] * (int(predictions.rows.max()) + 1), temperature=1.0)
    metrics = {name: float(result[name]) for name in (*METRICS, "ece")}
    return Quality(
        split=split,
        n=result["n"],
        top1_interval=top1_interval(result["top1"], result["n"]),
        # JSON has no NaN: a metric of a plugin may be undefined for a split.
        **{name: value if math.isfinite(value) else None for name, value in metrics.items()},  # type: ignore[arg-type]
    )


def top1_drop(before: Predictions, after: Predictions, seed: int) -> tuple[float, tuple[float, float]]:
    """Return by how many points top-1 fell, and its 95 % interval by a bootstrap over the images.

    The bootstrap is paired: the interval depends on the number of images on which the two differ, so it is narrower
    than that of two separate measurements.
    """
    right = [(each.predicted == each.labels).double().numpy() for each in (before, after)]
    lost = 100 * (right[0] - right[1])
    if (lost == lost[0]).all():
        return float(lost[0]), (float(lost[0]), float(lost[0]))
    found = bootstrap(
        (lost,),
        np.mean,
        n_resamples=RESAMPLES,
        confidence_level=CONFIDENCE,
        method="percentile",
        vectorized=True,
        batch=100,
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(lost.mean()), (float(found.low), float(found.high))


def cosine(before: Predictions, after: Predictions) -> float:
    """Return the cosine between the two logits, mean over the images."""
    return torch.nn.functional.cosine_similarity(before.logits, after.logits, dim=1).mean().item()


def seconds_per_call(runner: Runner, preprocessing: Preprocessing, batch: int) -> list[float]:
    """Time calls with this many images for a second or two; returns the seconds of each."""
    images = example_images(preprocessing, batch)
    return timed(lambda: runner(images), TIMED_SECONDS)


def timed(call: Callable[[], object], seconds: float) -> list[float]:
    """Time repeated calls, at least five after two to warm up; CUDA is synchronized after each."""
    taken: list[float] = []
    with torch.inference_mode(), freed_memory_kept():
        call()
        call()
        while len(taken) < 5 or sum(taken) < seconds:
            start = time.perf_counter()
            call()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            taken.append(time.perf_counter() - start)
    return taken


def count_macs(exportable: ExportableModel) -> Macs:
    """Count the multiply-accumulates for one image."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        exportable(example_images(exportable.preprocessing, 1))
    by_operator = counter.get_flop_counts()["Global"]
    total = sum(by_operator.values())
    linear = sum(count for operator, count in by_operator.items() if operator in LINEAR_OPERATORS)
    return Macs(total // 2, linear / max(total, 1))


@torch.no_grad()
def by_sensitivity(
    exportable: nn.Module, images: Tensor, kinds: tuple[type[nn.Module], ...] = (nn.Linear, nn.Conv2d)
) -> list[str]:
    """Return the names of the layers of these kinds, the one whose rounding changes the logits most first.

    Each layer in turn computes as if in int8, all others in fp32.

    Args:
        exportable: in evaluation mode.
        images: uint8 (n, 3, side, side), of the training set.
        kinds: classes of layers, of `nn.Linear` and `nn.Conv2d`.
    """
    exact, _ = exportable(images)
    errors = {}
    for name, layer in exportable.named_modules():
        if isinstance(layer, kinds) and isinstance(layer, nn.Linear | nn.Conv2d):
            with _rounded(layer):
                rounded, _ = exportable(images)
            errors[name] = (rounded - exact).square().mean().item()
    return sorted(errors, key=errors.__getitem__, reverse=True)


@contextmanager
def _rounded(layer: nn.Conv2d | nn.Linear) -> Iterator[None]:
    """Round a layer's weights, by channel, and its inputs to 8 bits."""
    weight = layer.weight.data
    scale = (weight.flatten(1).abs().amax(1) / 127).clamp_min(1e-12)
    zero = torch.zeros_like(scale, dtype=torch.int32)
    handle = layer.register_forward_pre_hook(lambda _, inputs: (_round_input(inputs[0]),))
    layer.weight.data = torch.fake_quantize_per_channel_affine(weight, scale, zero, 0, -127, 127)
    try:
        yield
    finally:
        handle.remove()
        layer.weight.data = weight


def _round_input(values: Tensor) -> Tensor:
    low, high = min(values.min().item(), 0.0), max(values.max().item(), 0.0)
    scale = max((high - low) / 255, 1e-12)
    return torch.fake_quantize_per_tensor_affine(values, scale, round(-low / scale), 0, 255)
