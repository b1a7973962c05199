"""Opening a bundle wherever it is: `mlops_img.load`."""

from __future__ import annotations

from pathlib import Path

from mlops_img.bundle.folder import read_manifest
from mlops_img.bundle.predictor import Predictor
from mlops_img.core.device import find_device
from mlops_img.registry.locate import local_bundle


def load(path: str | Path = "bundles/latest", *, device: str = "auto") -> Predictor:
    """Open a bundle, verify its checksums, and load its best program for this machine.

    Args:
        path: the bundle's folder; gs://bucket/folder; or bentoml:name:version, of BentoML's model store.
        device: auto, cpu, cuda or cuda:<number>.

    Raises:
        UserError: there is no bundle, it is damaged or cannot be downloaded, there is no such device, or none of its
            programs runs here.
    """
    folder = local_bundle(str(path), "path")
    return Predictor(folder, read_manifest(folder), find_device(device, "device"))
