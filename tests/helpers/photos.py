"""Photos for the tests of the audit, and its findings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from mlops_img.audit import audit
from mlops_img.config.commands import AuditConfig
from mlops_img.config.data import FolderConfig
from mlops_img.data.audit.findings import Duplicates, Findings

CLASSES = ("cat", "dog")
SPLITS = ("train", "val", "test")


def photo(seed: int, width: int = 96, height: int = 80) -> Image.Image:
    """Return an image with detail at every scale, like a photo."""
    generator = np.random.default_rng(seed)
    layers = [
        Image.fromarray(generator.integers(0, 256, (side, side, 3), dtype=np.uint8)).resize(
            (width, height), Image.Resampling.BICUBIC
        )
        for side in (4, 12, 40)
    ]
    blended = Image.blend(Image.blend(layers[0], layers[1], 0.4), layers[2], 0.2)
    assert isinstance(blended, Image.Image)
    return blended


def audit_folder(root: Path, bits: int = 3, workers: int | None = 2) -> Findings:
    return audit(AuditConfig(data=FolderConfig(root=str(root), workers=workers), near_duplicate_bits=bits))


def names(group: Duplicates, root: Path) -> set[str]:
    return {str(Path(image.path).relative_to(root)) for image in group.images}
