"""What a bundle holds besides its manifest: programs, samples, and where all of it came from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from PIL import Image

from mlops_img import __version__
from mlops_img.bundle.manifest import ModelInfo, Program, Sample
from mlops_img.compression.candidates import Built, Subject
from mlops_img.compression.capture import Servable
from mlops_img.compression.layers import count_macs
from mlops_img.compression.quantize import calibration_rows
from mlops_img.core.files import read_json
from mlops_img.evaluation.evaluator import read_pixels
from mlops_img.evaluation.trained import FinishedRun
from mlops_img.reporting.pictures import shrink
from mlops_img.runs.folder import hardware


def keep_programs(folder: Path, chosen: Built, fallback: Built) -> list[Program]:
    """Remove the programs that the bundle does not need; return the others, the best first.

    Behind the chosen ones comes portable fp32: a quantized program that is not compiled is slower than that.
    """
    compiled = [program for program in chosen.programs if program.compiled_for is not None]
    portable = [program for one in (fallback, chosen) for program in one.programs if program.compiled_for is None]
    if not compiled:
        portable.reverse()
    programs = list({program.file: program for program in (*compiled, *portable)}.values())
    for path in (folder / "programs").iterdir():
        if f"programs/{path.name}" not in [program.file for program in programs]:
            path.unlink()
    return programs


def model_info(run: FinishedRun, subject: Subject) -> ModelInfo:
    """Say which model it is, from the run's configuration and the model itself."""
    config = run.config.model
    pretrained = getattr(subject.model, "pretrained_cfg", None) or {}
    options = {
        "in_chans": config.in_chans,
        "stem_stride": config.stem_stride,
        "drop_path_rate": config.drop_path_rate,
        **config.kwargs,
    }
    return ModelInfo(
        name=config._target_ or config.name,
        options=options,
        weights=config.weights if config.weights in ("none", "hub") else Path(config.weights).name,
        license=pretrained.get("license") if config.weights == "hub" else None,
        parameters=sum(weights.numel() for weights in subject.model.parameters()),
        macs=count_macs(Servable(subject.model, subject.preprocessing))[0],
    )


def of_test(run: FinishedRun) -> dict[str, float | tuple[float, float]]:
    """Return the run's own evaluation on its test split; nothing where it has none."""
    summary = read_json(run.folder.summary)
    return {key.removeprefix("test."): value for key, value in summary.items() if key.startswith("test.")}


def provenance(run: FinishedRun) -> dict[str, Any]:
    """Say what the bundle was made from, with what, and where."""
    return {
        "run": run.folder.path.name,
        "trained": read_json(run.folder.path / "provenance.json"),
        "exported": {"mlops_img": __version__, "torch": torch.__version__, "hardware": hardware()},
    }


def write_samples(folder: Path, run: FinishedRun, count: int) -> list[Sample]:
    """Write validation images of different classes, small, for people to try the model on."""
    images = run.dataset.val
    samples = []
    for place, row in enumerate(calibration_rows(images.labels, count, run.config.seed).tolist()):
        (folder / "samples").mkdir(exist_ok=True)
        name = f"samples/{place}.png"
        Image.fromarray(shrink(read_pixels(images, row, run.trained.preprocessing))).save(folder / name)
        samples.append(Sample(file=name, label=run.trained.classes[int(images.labels[row])]))
    return samples
