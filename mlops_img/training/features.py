"""Features of images: what enters a model's classifier, computed once and kept in a cache."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError
from safetensors.numpy import load_file, save
from torch import Tensor, nn
from tqdm import tqdm

from mlops_img.core.files import write_atomically
from mlops_img.core.memory import freed_memory_kept
from mlops_img.core.precision import Precision
from mlops_img.data.batch import Batch
from mlops_img.data.content_cache import cache_folder
from mlops_img.data.sources.base import ImageSet
from mlops_img.errors import UserError
from mlops_img.models.weights import classifier_names
from mlops_img.preprocessing.transforms import Preprocessing

DIGEST_BYTES = 16
READERS = 16
MAX_CACHE_BYTES = 4 * 2**30  # of all files together; the ones that were not used for longest go first
CACHE_FORMAT = 1

log = logging.getLogger(__name__)


def linear_classifier(model: nn.Module) -> nn.Linear:
    """Return the linear layer that maps a model's features to its logits.

    Raises:
        UserError: its classifier is anything else.
    """
    names = classifier_names(model)
    layers = [model.get_submodule(name) for name in names]
    if len(layers) == 1 and isinstance(layers[0], nn.Linear) and isinstance(layers[0].bias, Tensor):
        return layers[0]
    found = ", ".join(names) or "none found"
    raise UserError(
        f"probe=linear: the classifier of this model is not one linear layer with a bias ({found}). "
        "Use another model, or probe=none"
    )


@torch.no_grad()
def check_logits(model: nn.Module, images: Tensor) -> None:
    """Run the model on images to check that its logits are what its linear classifier returns.

    Args:
        model: left in the mode it was in.
        images: normalized, float32 (n, channels, side, side), on the model's device.

    Raises:
        UserError: it has no linear classifier, or changes what that returns.
    """
    returned: list[Tensor] = []
    hook = linear_classifier(model).register_forward_hook(lambda _, inputs, output: returned.append(output))
    was_training = model.training
    try:
        logits = model.eval()(images)
    finally:
        hook.remove()
        model.train(was_training)
    if not torch.allclose(logits, returned[-1], rtol=0, atol=0, equal_nan=True):
        raise UserError(
            "probe=linear: this model changes what its classifier returns (small_cnn's logit_scale, for example), so a "
            "classifier fitted on features would be wrong. Use another model, or probe=none"
        )


@freed_memory_kept()
@torch.inference_mode()
def compute_features(
    model: nn.Module, batches: Iterable[Batch], preprocessing: Preprocessing, precision: Precision, *, total: int
) -> tuple[NDArray[np.float16], NDArray[np.int64]]:
    """Run the model in evaluation mode; it is left in the mode it was in.

    Args:
        model: with one linear classifier.
        batches: of images as the loader yields them.
        preprocessing: normalizes them.
        precision: device and dtype.
        total: number of images, for the progress bar.

    Returns:
        Features, float16 (n, d), and the rows of the images that they belong to, int64 (n,).
    """
    taken: list[Tensor] = []
    hook = linear_classifier(model).register_forward_pre_hook(lambda _, inputs: taken.append(inputs[0]))
    was_training = model.training
    model.eval()
    features, rows = [], []
    try:
        with tqdm(total=total, desc="features", unit="image", disable=None, leave=False) as bar:
            for batch in batches:
                moved = batch.to(precision.device)
                with precision.autocast():
                    model(preprocessing.normalize(moved.images))
                features.append(taken.pop().flatten(1).half().cpu().numpy())
                rows.append(batch.rows.numpy())
                bar.update(len(batch.rows))
    finally:
        hook.remove()
        model.train(was_training)
    return np.concatenate(features), np.concatenate(rows)


def content_digests(images: ImageSet) -> NDArray[np.void]:
    """Return a digest of each image's file, or of the pixels of what is not a file; V16 (n,)."""

    def digest(path: str) -> bytes:
        try:
            content = images.read(path)
        except OSError:
            return bytes(DIGEST_BYTES)  # the loader reports it
        if isinstance(content, Image.Image):
            content = f"{content.mode} {content.size} ".encode() + content.tobytes()
        return hashlib.blake2b(content, digest_size=DIGEST_BYTES).digest()

    with ThreadPoolExecutor(READERS) as pool:
        return np.frombuffer(b"".join(pool.map(digest, images.paths)), f"V{DIGEST_BYTES}")


def backbone_digest(model: nn.Module) -> str:
    """Return a sha256 of all weights but those of the classifier."""
    head = tuple(f"{name}." for name in classifier_names(model))
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        if not name.startswith(head):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} ".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


class FeatureCache:
    """Features by the content of their image, in one file for each backbone and way of computing.

    It lies below XDG_CACHE_HOME or ~/.cache and may be deleted at any time. A file that is missing, damaged or cannot
    be written is not an error: features are then computed again.
    """

    def __init__(self, **key: object) -> None:
        """Open the cache file of what the features depend on besides the image: plain values by name."""
        contents = cache_folder()
        name = hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()[:32]
        self.path = None if contents is None else contents.with_name("features") / f"{name}.{CACHE_FORMAT}.safetensors"

    def load(self) -> tuple[NDArray[np.void], NDArray[np.float16]]:
        """Return the digests, V16 (n,), and their features, float16 (n, d)."""
        nothing = np.zeros(0, f"V{DIGEST_BYTES}"), np.zeros((0, 0), np.float16)
        if self.path is None or not self.path.is_file():
            return nothing
        try:
            content = load_file(self.path)
            digests = np.ascontiguousarray(content["digests"]).view(f"V{DIGEST_BYTES}").reshape(-1)
            features = content["features"]
            if features.dtype != np.float16 or features.ndim != 2 or len(features) != len(digests):
                raise ValueError("it has another layout")
            os.utime(self.path)
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            log.debug("%s is ignored: %s", self.path, error)
            return nothing
        return digests, features

    def add(self, digests: NDArray[np.void], features: NDArray[np.float16]) -> None:
        """Keep further features, unless the disk refuses."""
        if self.path is None or not len(digests):
            return
        known, before = self.load()  # again, since another process may have written meanwhile
        new = ~np.isin(_as_int(digests), _as_int(known))
        if len(before):
            digests, features = np.concatenate([known, digests[new]]), np.concatenate([before, features[new]])
        tensors: dict[str, NDArray[Any]] = {
            "digests": digests.view(np.uint8).reshape(-1, DIGEST_BYTES),
            "features": features,
        }
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self.path, lambda file: file.write(save(tensors)))
            _shrink(self.path.parent)
        except OSError as error:
            log.warning("the features are not kept: %s: %s", self.path, error.strerror)


def _as_int(digests: NDArray[np.void]) -> NDArray[np.int64]:
    """Return the first 8 bytes of each digest as a number, which numpy can sort."""
    return np.ascontiguousarray(digests).view(np.int64).reshape(-1, 2)[:, 0] if len(digests) else np.zeros(0, np.int64)


def _shrink(folder: Path) -> None:
    files: Sequence[Path] = sorted(folder.glob("*.safetensors"), key=lambda path: path.stat().st_mtime, reverse=True)
    size = 0
    for number, path in enumerate(files):
        size += path.stat().st_size
        if number and size > MAX_CACHE_BYTES:
            path.unlink(missing_ok=True)
