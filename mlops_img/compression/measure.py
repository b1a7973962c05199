"""What a program is worth: how well it predicts, how fast, and how far it is from the fp32 model."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import bootstrap
from torch import Tensor

from mlops_img.bundle.manifest import Quality
from mlops_img.bundle.programs import Runner
from mlops_img.compression.capture import example_images
from mlops_img.core.memory import freed_memory_kept
from mlops_img.data.loader import Batch
from mlops_img.evaluation.confidence import top1_interval
from mlops_img.evaluation.metrics import Predictions, evaluation
from mlops_img.preprocessing.transforms import Preprocessing

RESAMPLES = 2000
CONFIDENCE = 0.95
TIMED_SECONDS = 1.5  # for each batch size


@dataclass(frozen=True)
class Outputs:
    """What a program says of a split, on the CPU.

    Attributes:
        predictions: logits, labels and rows.
        features: float32 (n, d).
    """

    predictions: Predictions
    features: Tensor


@torch.inference_mode()
@freed_memory_kept()
def run_over(run: Runner, batches: Iterable[Batch], max_batch: int) -> Outputs:
    """Run a program over batches of any size, each image once."""
    logits, features, labels, rows = [], [], [], []
    for batch in batches:
        for part in batch.images.split(max_batch):
            said = run(part)
            logits.append(said[0].float().cpu())
            features.append(said[1].float().cpu())
        labels.append(batch.labels)
        rows.append(batch.rows)
    predictions = Predictions(torch.cat(logits), torch.cat(labels), torch.cat(rows))
    return Outputs(predictions, torch.cat(features))


def quality(predictions: Predictions, classes: list[str], split: str) -> Quality:
    """Return how good the predictions are; calibration before temperature scaling."""
    found = evaluation(predictions, classes, paths=[""] * (int(predictions.rows.max()) + 1), temperature=1.0)
    names = ("n", "top1", "top5", "f1_macro", "loss", "ece")
    return Quality(
        split=split,
        top1_interval=top1_interval(found["top1"], found["n"]),
        **{name: found[name] for name in names},
    )


def top1_drop(before: Predictions, after: Predictions, seed: int) -> tuple[float, tuple[float, float]]:
    """Return by how many points top-1 fell, and its 95 % interval by a bootstrap over the images.

    The bootstrap is paired: what counts is on how many images the two differ, so a small set tells more than
    two separate intervals would.
    """
    right = [(said.logits.argmax(1) == said.labels).double().numpy() for said in (before, after)]
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


def seconds_per_call(run: Runner, preprocessing: Preprocessing, batch: int) -> list[float]:
    """Time calls with this many images for a second or two; returns the seconds of each."""
    images = example_images(preprocessing, batch)
    return timed(lambda: run(images), TIMED_SECONDS)


def timed(call: Callable[[], object], seconds: float) -> list[float]:
    """Time a call again and again, at least five times after two to warm up; CUDA's work is waited for."""
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
