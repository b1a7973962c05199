"""Write the results of the evaluate command without replacing those of the training."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlops_img.core.files import read_json, write_json
from mlops_img.evaluation.trained import FinishedRun
from mlops_img.reporting.report import write_report
from mlops_img.runs.folder import RunFolder

# Two evaluations are compared by these keys. Paths may differ, because data sets can be moved.
FIGURES = ("n", "loss", "top1", "ece_calibrated", "temperature", "confusion")

log = logging.getLogger(__name__)


def result_subfolder(run: FinishedRun, result: dict[str, Any]) -> str | None:
    """Return the subfolder of evaluation/ for a result on the data of the run, or None for evaluation/ itself.

    The result of the training (evaluation/<split>.json, if it matches summary.json) is not replaced by a different one,
    e.g. with another precision. The subfolder is named after the device and the precision, or after the data if they
    have changed.
    """
    split = result["split"]
    path = run.folder.path / "evaluation" / f"{split}.json"
    try:
        before, summary = read_json(path), read_json(run.folder.summary)
    except ValueError:
        return None
    stored = {name: value for name, value in before.items() if f"{split}.{name}" in summary}
    from_training = bool(stored) and all(value == summary[f"{split}.{name}"] for name, value in stored.items())
    again = json.loads(json.dumps({name: result[name] for name in FIGURES}))
    if not from_training or all(before.get(name, again[name]) == again[name] for name in FIGURES):
        return None
    log.warning("%s is the result of the training and is kept: this result differs", path)
    if run.dataset.fingerprint != run.trained.fingerprint:
        return f"changed-{run.dataset.fingerprint[:8]}"
    return f"{run.precision.device.type}-{str(run.precision.dtype).removeprefix('torch.')}"


def write_result(
    run: RunFolder, result: dict[str, Any], read_image: Callable[[int], NDArray[np.uint8]], place: str | None
) -> tuple[Path, Path]:
    """Write the result as JSON and as a report, and return the paths of both.

    Args:
        run: The run folder.
        result: The result of one split.
        read_image: Returns the image at an index, uint8 (height, width, 3).
        place: The subfolder of evaluation/ for the JSON file, with the report in its report/. None writes to
            evaluation/ and to report/ of the run.
    """
    folder = run.path / "evaluation" / (place or "")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{result['split']}.json"
    write_json(path, result)
    return path, write_report(run.path, result, read_image, folder / "report" if place else None)
