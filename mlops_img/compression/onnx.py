"""The model as an ONNX file, for runtimes other than PyTorch."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim

from mlops_img.compression.capture import ExportableModel, example_images
from mlops_img.errors import UserError

MIN_COSINE = 0.9999


def write_onnx(exportable: ExportableModel, path: Path, max_batch: int) -> None:
    """Write the model as ONNX: input `images`, uint8 (n, 3, side, side); outputs `logits` and `features`.

    Raises:
        UserError: the packages that this needs are not installed.
    """
    try:
        import onnxscript  # noqa: F401
    except ImportError:
        raise UserError('export.onnx=true needs more packages: pip install "mlops_img[onnx]"') from None
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            exportable,
            (example_images(exportable.preprocessing).contiguous(),),
            path,
            input_names=["images"],
            output_names=["logits", "features"],
            dynamic_shapes=({0: Dim("batch", min=1, max=max_batch)},),
            dynamo=True,
            external_data=False,
            verbose=False,
        )


def check_onnx(path: Path, exportable: nn.Module, batches: Iterable[Tensor]) -> float:
    """Run the file by ONNX Runtime on these images, uint8 (n, 3, side, side), and compare its logits.

    Returns:
        The least cosine between its logits and the model's.

    Raises:
        UserError: they differ, or ONNX Runtime is not installed.
    """
    try:
        import onnxruntime
    except ImportError:
        raise UserError('export.onnx=true needs more packages: pip install "mlops_img[onnx]"') from None
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    least = 1.0
    for images in batches:
        with torch.inference_mode():
            exact = exportable(images)[0]
        logits = torch.from_numpy(session.run(["logits"], {"images": images.contiguous().numpy()})[0])
        least = min(least, torch.nn.functional.cosine_similarity(logits, exact, dim=1).min().item())
    if least < MIN_COSINE:
        raise UserError(
            f"model.onnx does not compute what the model computes (cosine {least:.4f}): use export.onnx=false"
        )
    return least
