"""Where the result of an evaluation goes in the run folder, so that none replaces the run's own."""

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

# What two evaluations are compared by; paths may differ, for a data set may move.
FIGURES = ("n", "loss", "top1", "ece_calibrated", "temperature", "confusion")

log = logging.getLogger(__name__)


def place_of_own(run: FinishedRun, result: dict[str, Any]) -> str | None:
    """Return the folder below evaluation/ for a result on the run's own data; None is evaluation/ itself.

    What training itself found (evaluation/<split>.json as summary.json has it) is not replaced by other figures,
    e.g. those of another precision: they get a folder named by the device and the precision, or by the data
    where these have changed.
    """
    split = result["split"]
    path = run.folder.path / "evaluation" / f"{split}.json"
    try:
        before, summary = read_json(path), read_json(run.folder.summary)
    except ValueError:
        return None
    noted = {name: value for name, value in before.items() if f"{split}.{name}" in summary}
    from_training = bool(noted) and all(value == summary[f"{split}.{name}"] for name, value in noted.items())
    again = json.loads(json.dumps({name: result[name] for name in FIGURES}))
    if not from_training or all(before.get(name, again[name]) == again[name] for name in FIGURES):
        return None
    log.warning("%s, the result of the training, is kept: this one differs", path)
    if run.dataset.fingerprint != run.trained.fingerprint:
        return f"changed-{run.dataset.fingerprint[:8]}"
    return f"{run.precision.device.type}-{str(run.precision.dtype).removeprefix('torch.')}"


def write_result(
    run: RunFolder, result: dict[str, Any], read_image: Callable[[int], NDArray[np.uint8]], place: str | None
) -> tuple[Path, Path]:
    """Write the result as JSON and as a report; return the paths of both.

    Args:
        run: the run folder.
        result: of one split.
        read_image: returns the image of an index, uint8 (height, width, 3).
        place: folder below evaluation/ that gets both, the report in report/; None: evaluation/ and the run's
            own report/.
    """
    folder = run.path / "evaluation" / (place or "")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{result['split']}.json"
    write_json(path, result)
    return path, write_report(run.path, result, read_image, folder / "report" if place else None)
