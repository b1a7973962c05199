"""The contents of a bundle: its manifest, programs, samples and model card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from mlops_img import __version__
from mlops_img.bundle.manifest import (
    FORMAT,
    Candidate,
    Manifest,
    ModelInfo,
    PreprocessingInfo,
    Program,
    Pruning,
    Quality,
    Sample,
    TestTimeAugmentation,
)
from mlops_img.compression.candidates import BuiltCandidate
from mlops_img.compression.context import ExportContext
from mlops_img.compression.measure import quality
from mlops_img.compression.quantize import calibration_rows
from mlops_img.config.export import ExportOptions
from mlops_img.core.files import read_json, write_text
from mlops_img.core.text import markdown_table
from mlops_img.data.sources.split_origin import noted_splits
from mlops_img.evaluation.calibration import fit_temperature
from mlops_img.evaluation.confidence import with_interval
from mlops_img.evaluation.metrics import METRICS
from mlops_img.evaluation.splits import read_pixels
from mlops_img.evaluation.trained import FinishedRun
from mlops_img.monitoring.reference import write_reference
from mlops_img.reporting.pictures import shrink
from mlops_img.runs.provenance import hardware

TEMPLATES = Path(__file__).parent / "templates"
HEAD = ("", "top-1 (95 % interval)", "drop (95 % interval)", "cosine", "MB", "ms, 1 image", "images/s, 16", "")


def describe(
    folder: Path,
    run: FinishedRun,
    context: ExportContext,
    built: Sequence[BuiltCandidate],
    chosen: BuiltCandidate,
    *,
    name: str,
    version: str,
    pruning: Pruning | None,
    tta: TestTimeAugmentation | None,
    options: ExportOptions,
) -> Manifest:
    """Write samples and drift reference into `folder`, drop programs that are not needed, and return the manifest.

    Args:
        folder: of the bundle.
        run: that it is made from.
        context: of the export.
        built: all candidates; the first one is fp32.
        chosen: the one that the bundle uses.
        name, version: of the bundle.
        pruning: None if nothing was pruned.
        tta: None if the programs average over no views.
        options: of the export.
    """
    outputs, statistics = chosen.outputs, context.before.statistics
    assert outputs is not None
    assert statistics is not None
    temperature = fit_temperature(outputs.predictions)
    return Manifest(
        format=FORMAT,
        name=name,
        version=version,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        model=model_info(run, context),
        classes=run.trained.classes,
        preprocessing=PreprocessingInfo(**run.trained.preprocessing.to_dict()),
        tta=tta,
        temperature=temperature,
        precision=chosen.candidate.precision,
        programs=keep_programs(folder, chosen, fallback=built[0]),
        candidates=[one.candidate for one in built],
        pruning=pruning,
        before=quality(context.before.predictions, context.classes, "val"),
        after=quality(outputs.predictions, context.classes, "val"),
        test=of_test(run),
        drift=write_reference(
            folder,
            outputs.features,
            statistics,
            outputs.predictions.probabilities(temperature),
            options.drift_sample,
        ),
        samples=write_samples(folder, run, options.samples),
        provenance=provenance(run),
        files={},
    )


def keep_programs(folder: Path, chosen: BuiltCandidate, fallback: BuiltCandidate) -> list[Program]:
    """Remove the programs that the bundle does not need; return the others, the best first.

    The fallback is portable fp32: a quantized program that is not compiled is slower.
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


def model_info(run: FinishedRun, context: ExportContext) -> ModelInfo:
    """Describe the model, from the run's configuration and the model itself."""
    config = run.config.model
    pretrained = getattr(context.model, "pretrained_cfg", None) or {}
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
        parameters=sum(weights.numel() for weights in context.model.parameters()),
        macs=context.macs.total,
    )


def of_test(run: FinishedRun) -> dict[str, float | tuple[float, float]]:
    """Return the run's own evaluation on its test split; nothing where it has none."""
    summary = read_json(run.folder.summary)
    return {key.removeprefix("test."): value for key, value in summary.items() if key.startswith("test.")}


def provenance(run: FinishedRun) -> dict[str, Any]:
    """Return the provenance of the bundle: the run, the versions and the machine."""
    return {
        "run": run.folder.path.name,
        "trained": read_json(run.folder.path / "provenance.json"),
        "exported": {"mlops_img": __version__, "torch": torch.__version__, "hardware": hardware()},
    }


def write_samples(folder: Path, run: FinishedRun, count: int) -> list[Sample]:
    """Write a few small validation images of different classes, to try the model on."""
    images = run.dataset.val
    samples = []
    for place, row in enumerate(calibration_rows(images.labels, count, run.config.seed).tolist()):
        (folder / "samples").mkdir(exist_ok=True)
        name = f"samples/{place}.png"
        Image.fromarray(shrink(read_pixels(images, row, run.trained.preprocessing))).save(folder / name)
        samples.append(Sample(file=name, label=run.trained.classes[int(images.labels[row])]))
    return samples


def candidates_table(candidates: Sequence[Candidate]) -> str:
    """Return what was tried as a Markdown table; the drop is in points, positive is worse."""
    return markdown_table([HEAD, *(_row(candidate) for candidate in candidates)])


def metrics_table(manifest: Manifest) -> str:
    """Return every metric of `METRICS` as a Markdown table: on validation and, if there was one, on the test split."""
    columns = {
        "validation, before compression": manifest.before.model_dump(),
        "validation, as exported": manifest.after.model_dump(),
    }
    if manifest.tta is not None:
        columns = {"validation, without test-time augmentation": manifest.tta.without.model_dump()} | columns
    if manifest.test:
        plain = "" if manifest.tta is None else ", without test-time augmentation"
        columns[f"test, before compression{plain}"] = manifest.test
    rows = [("", *columns), ("Images", *(f"{column['n']:,.0f}" for column in columns.values()))]
    for name, metric in METRICS.items():
        rows.append((metric.label, *(_cell(column, name) for column in columns.values())))
    return markdown_table(rows)


def _cell(measured: Mapping[str, Any], name: str) -> str:
    value = measured.get(name)
    if value is None:
        return ""
    return with_interval(value, measured.get("top1_interval") if name == "top1" else None)


def write_model_card(folder: Path, manifest: Manifest) -> None:
    """Write README.md: what the model is, how good, how fast, where it came from."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=False,  # Markdown
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("model_card.md.j2").render(
        manifest=manifest,
        table=candidates_table(manifest.candidates),
        metrics=metrics_table(manifest),
        splits=noted_splits(manifest.provenance["trained"]),
    )
    write_text(folder / "README.md", page)


def _row(candidate: Candidate) -> tuple[str, ...]:
    kept = len(candidate.kept_fp32)
    spared = f"{kept} layer{'s' if kept > 1 else ''} in fp32" if kept else ""
    note = "; ".join(filter(None, [spared, candidate.note]))
    if candidate.quality is None or candidate.top1_drop_interval is None:
        return (candidate.precision, *[""] * 6, note)
    low, high = candidate.top1_drop_interval
    return (
        candidate.precision,
        _top1(candidate.quality),
        f"{candidate.top1_drop:.2f} ({low:.2f} to {high:.2f})",
        f"{candidate.cosine:.4f}",
        f"{(candidate.bytes or 0) / 1e6:.1f}",
        f"{candidate.milliseconds:.2f}",
        f"{candidate.images_per_second:.0f}",
        note,
    )


def _top1(quality: Quality) -> str:
    """Return 0.9420 (0.8843 to 0.9717), as the drop beside it is written."""
    interval = quality.top1_interval
    return f"{quality.top1:.4f}" + (f" ({interval[0]:.4f} to {interval[1]:.4f})" if interval else "")
