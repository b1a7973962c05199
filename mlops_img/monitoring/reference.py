"""The drift reference: features and statistics of the validation images, against which drift is measured.

`drift_reference.safetensors` holds a sample of the validation images, one row each, and the quantiles of all
of them:

    features             float16 (m, d)      what the classifier saw
    statistics           float32 (m, 5)      of the pixels; see STATISTICS
    confidence           float32 (m,)        calibrated probability of the predicted class
    predicted            int64 (m,)          the predicted class
    feature_quantiles    float32 (q, d)      at QUANTILES
    statistic_quantiles  float32 (q, 5)
    confidence_quantiles float32 (q,)
    predicted_counts     int64 (classes,)
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from mlops_img.bundle.manifest import DriftReference

STATISTICS = ("brightness", "contrast", "saturation", "sharpness", "color_balance")
QUANTILES = (0.0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1.0)
FILE = "drift_reference.safetensors"
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


def image_statistics(images: Tensor) -> Tensor:
    """Return simple measures of uint8 images (n, 3, h, w) as float32 (n, 5).

    brightness: mean luma; contrast: its standard deviation; saturation: mean of (max - min) over the channels;
    sharpness: mean absolute difference of neighboring lumas; color_balance: mean red less mean blue. All in
    units of the full range, so within 0 and 1, the last within -1 and 1.
    """
    pixels = images.float() / 255
    luma = (pixels * pixels.new_tensor(LUMA).view(1, 3, 1, 1)).sum(1)
    edges = [luma.diff(dim=dimension).abs().flatten(1).mean(1) for dimension in (1, 2)]
    means = pixels.mean((2, 3))
    return torch.stack(
        [
            luma.mean((1, 2)),
            luma.flatten(1).std(1, correction=0),
            (pixels.amax(1) - pixels.amin(1)).mean((1, 2)),
            (edges[0] + edges[1]) / 2,
            means[:, 0] - means[:, 2],
        ],
        dim=1,
    ).nan_to_num()


def write_reference(
    folder: Path, features: Tensor, statistics: Tensor, probabilities: Tensor, sample: int
) -> DriftReference:
    """Write the reference into a bundle's folder; returns its entry in the manifest.

    Args:
        folder: of the bundle.
        features: float32 (n, d).
        statistics: float32 (n, 5), of `image_statistics`.
        probabilities: float32 (n, classes), calibrated.
        sample: how many rows are kept.
    """
    n, levels = len(features), torch.tensor(QUANTILES)
    kept = torch.randperm(n, generator=torch.Generator().manual_seed(0))[:sample].sort().values
    confidence, predicted = probabilities.max(1)
    tensors = {
        "features": features[kept].half(),
        "statistics": statistics[kept],
        "confidence": confidence[kept],
        "predicted": predicted[kept],
        "feature_quantiles": _quantiles(features, levels),
        "statistic_quantiles": _quantiles(statistics, levels),
        "confidence_quantiles": _quantiles(confidence.unsqueeze(1), levels).squeeze(1),
        "predicted_counts": predicted.bincount(minlength=probabilities.shape[1]),
    }
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / FILE)
    return DriftReference(
        file=FILE,
        images=n,
        sample=len(kept),
        features=features.shape[1],
        statistics=list(STATISTICS),
        quantiles=list(QUANTILES),
    )


def _quantiles(values: Tensor, levels: Tensor) -> Tensor:
    """Return float32 (q, columns); column by column, since torch.quantile refuses more than 16 million values."""
    return torch.stack([torch.quantile(column, levels) for column in values.float().unbind(1)], dim=1)
