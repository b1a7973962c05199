"""Linear probe: the classifier fitted on features of the backbone as it is, before any training step."""

from __future__ import annotations

import dataclasses
import logging
import time
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from mlops_img.data.loader import Transform, handle_bad_images, make_loader
from mlops_img.data.sampler import BatchIndices
from mlops_img.data.sources.base import ImageSet
from mlops_img.training.context import RunContext
from mlops_img.training.features import (
    FeatureCache,
    backbone_digest,
    check_logits,
    compute_features,
    content_digests,
    linear_classifier,
)
from mlops_img.training.setup import Setup

MAX_ITERATIONS = 500
TOLERANCE = 1e-7  # of L-BFGS, in the loss

log = logging.getLogger(__name__)


class Examples(NamedTuple):
    """Features float32 (n, d) and labels int64 (n,)."""

    features: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Probe:
    """A fitted linear classifier.

    Attributes:
        weight, bias: float32 (classes, d) and (classes,), for the features as they are.
        l2: its penalty, the one of lowest validation loss.
        loss: mean cross-entropy on the training features, in nats, without the penalty.
        val_loss: that on the validation features.
    """

    weight: Tensor
    bias: Tensor
    l2: float
    loss: float
    val_loss: float


def probe(run: RunContext) -> float:
    """Fit the classifier of the run's model (and of its moving average); returns its training loss in nats.

    Raises:
        UserError: the model has no linear classifier, or changes its logits, or an image cannot be decoded.
    """
    setup, start = run.setup, time.perf_counter()
    config, side = setup.config.probe, setup.recipe.preprocessing.image_size
    blank = torch.zeros((1, 3, side, side), dtype=torch.uint8, device=setup.recipe.precision.device)
    check_logits(setup.state.model, setup.recipe.preprocessing.normalize(blank))
    views = [_crops(run, setup.dataset.train), *(_augmented(run, view) for view in range(config.augmented_views))]
    train = Examples(torch.cat([view.features for view in views]), torch.cat([view.labels for view in views]))
    val = _crops(run, setup.dataset.val)
    computed = time.perf_counter()
    fitted = fit_probe(train, val, len(setup.dataset.classes), config.l2)
    for model in {setup.state.model, setup.state.evaluated_model}:
        classifier = linear_classifier(model)
        with torch.no_grad():
            classifier.weight.copy_(fitted.weight)
            classifier.bias.copy_(fitted.bias)
    log.info(
        "probe: %d features of %d numbers in %.0f s, classifier in %.0f s (l2 %g, val loss %.4f)",
        len(train.labels),
        train.features.shape[1],
        computed - start,
        time.perf_counter() - computed,
        fitted.l2,
        fitted.val_loss,
    )
    return fitted.loss


def fit_probe(train: Examples, val: Examples, classes: int, penalties: list[float]) -> Probe:
    """Fit multinomial logistic regression on standardized features for each penalty; keep the best on validation.

    The penalty is half the sum of the squared weights, beside the mean cross-entropy. L-BFGS finds the minimum; each
    fit starts from that of the next larger penalty, and the first one that is worse on validation is the last.

    Args:
        train: to fit on.
        val: to choose the penalty on, by its cross-entropy.
        classes: number of classes.
        penalties: to try.
    """
    mean, std = train.features.mean(0), train.features.std(0, correction=0)
    scale = torch.where(std > 0, 1 / std, torch.zeros_like(std))
    inputs = (train.features - mean) * scale
    weight = torch.zeros(classes, inputs.shape[1], requires_grad=True)
    bias = torch.zeros(classes, requires_grad=True)
    best: Probe | None = None
    for l2 in sorted(penalties, reverse=True):
        loss = _minimize(inputs, train.labels, weight, bias, l2)
        with torch.no_grad():
            # Standardization becomes part of the classifier, which sees features as they are.
            folded = weight * scale
            shifted = bias - folded @ mean
            val_loss = functional.cross_entropy(val.features @ folded.T + shifted, val.labels).item()
        if best is not None and val_loss >= best.val_loss:
            break
        best = Probe(folded, shifted, l2, loss, val_loss)
    assert best is not None
    return best


def _minimize(inputs: Tensor, labels: Tensor, weight: Tensor, bias: Tensor, l2: float) -> float:
    optimizer = torch.optim.LBFGS(
        [weight, bias],
        max_iter=MAX_ITERATIONS,
        tolerance_grad=0,
        tolerance_change=TOLERANCE,
        line_search_fn="strong_wolfe",
    )

    def objective() -> Tensor:
        optimizer.zero_grad()
        value = functional.cross_entropy(inputs @ weight.T + bias, labels) + l2 / 2 * weight.square().sum()
        value.backward()
        return value

    optimizer.step(objective)
    with torch.no_grad():
        return functional.cross_entropy(inputs @ weight.T + bias, labels).item()


def _crops(run: RunContext, images: ImageSet) -> Examples:
    """Return the features of the images as evaluation sees them."""
    return _examples(run, images, run.setup.recipe.preprocessing.crop, epoch=0, augment=None)


def _augmented(run: RunContext, view: int) -> Examples:
    """Return the features of the training images as augmentation leaves them in this epoch."""
    setup = run.setup
    settings = [setup.config.seed, view, dataclasses.asdict(setup.config.augment)]
    return _examples(run, setup.dataset.train, setup.augment, epoch=view, augment=settings)


def _examples(run: RunContext, images: ImageSet, transform: Transform, *, epoch: int, augment: object) -> Examples:
    setup = run.setup
    digests = content_digests(images)
    if augment is not None:  # the transform depends on the image's place, too
        digests = _with_rows(digests)
    cache = FeatureCache(**_cache_key(setup, augment)) if setup.config.probe.cache else None
    known, kept = cache.load() if cache is not None else (digests[:0], np.zeros((0, 0), np.float16))
    place = {digest.tobytes(): number for number, digest in enumerate(known)}
    at = np.array([place.get(digest.tobytes(), -1) for digest in digests], np.int64)
    missing = np.flatnonzero(at < 0)
    if not len(missing):
        return _as_examples(kept[at], images.labels)
    if len(known):
        log.info("features of %d of %d images are in the cache", len(images) - len(missing), len(images))
    features, rows = _computed(run, images, transform, missing, epoch)
    if cache is not None:
        cache.add(digests[rows], features)
    there = np.flatnonzero(at >= 0)
    every = np.concatenate([there, rows])
    order = np.argsort(every, kind="stable")
    joined = np.concatenate([kept[at[there]], features]) if len(there) else features
    return _as_examples(joined[order], images.labels[every[order]])


def _computed(
    run: RunContext, images: ImageSet, transform: Transform, rows: NDArray[np.intp], epoch: int
) -> tuple[NDArray[np.float16], NDArray[np.int64]]:
    """Compute the features of these rows; those of images that cannot be decoded are left out."""
    setup = run.setup
    size = setup.evaluator.batch_size
    sampler = [BatchIndices(epoch, rows[start : start + size]) for start in range(0, len(rows), size)]
    recipe = setup.recipe
    batches = make_loader(
        images,
        transform,
        sampler,
        decode=recipe.preprocessing.decode,
        seed=setup.config.seed,
        workers=setup.evaluator.workers,
        device=recipe.precision.device,
    )
    skipped = run.skipped if setup.evaluator.skip_bad else None
    checked = handle_bad_images(batches, images, skipped, min_images=0)
    return compute_features(setup.state.model, checked, recipe.preprocessing, recipe.precision, total=len(rows))


def _cache_key(setup: Setup, augment: object) -> dict[str, object]:
    precision = setup.recipe.precision
    return {
        "backbone": backbone_digest(setup.state.model),
        "preprocessing": setup.recipe.preprocessing.to_dict(),
        "augment": augment,
        "dtype": str(precision.dtype),
        "device": precision.device.type,
    }


def _with_rows(digests: NDArray[np.void]) -> NDArray[np.void]:
    numbers = np.arange(len(digests), dtype=np.uint64)
    words = np.ascontiguousarray(digests).view(np.uint64).reshape(-1, 2).copy()
    words[:, 0] ^= numbers * np.uint64(0x9E3779B97F4A7C15)
    return words.view(digests.dtype).reshape(-1)


def _as_examples(features: NDArray[np.float16], labels: NDArray[np.int64]) -> Examples:
    return Examples(torch.from_numpy(features.astype(np.float32)), torch.from_numpy(labels))
