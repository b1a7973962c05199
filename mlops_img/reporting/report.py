"""The report of a run: a self-contained HTML page, and its figures as PNG files.

Images are embedded in the page. It has no scripts, and its content security policy blocks scripts and external
resources. The report is built from the files of the run folder; nothing is measured again.
"""

from __future__ import annotations

import io
import json
import math
import os.path
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.figure import Figure
from numpy.typing import NDArray
from omegaconf import OmegaConf
from PIL import Image

from mlops_img.core.files import read_json, write_atomically
from mlops_img.data.sources.split_origin import SplitOrigin, noted_splits
from mlops_img.evaluation.confidence import small_split_warning, top1_interval
from mlops_img.evaluation.confusion import most_confused
from mlops_img.evaluation.metrics import METRICS
from mlops_img.reporting import figures
from mlops_img.reporting.pictures import contact_sheet, data_uri, embed, shrink
from mlops_img.reporting.range_figure import lr_range_figure
from mlops_img.reporting.style import DPI, percent, png_bytes
from mlops_img.runs.folder import RunFolder

CONFUSED_PAIRS = 15
PAGE_DPI = 92  # CSS pixels per inch of a figure
LISTED_SKIPPED = 50
SPLIT_NAMES = {"train": "training", "val": "validation", "test": "test"}


class Metrics(NamedTuple):
    """The lines of metrics.jsonl, sorted by step, and the number of unreadable lines."""

    training: list[dict[str, Any]]
    validation: list[dict[str, Any]]
    unreadable: int


class Chart(NamedTuple):
    """A figure on the page: a data URI, and its width in CSS pixels."""

    uri: str
    width: int


def write_report(
    run_dir: Path,
    evaluation: dict[str, Any],
    read_image: Callable[[int], NDArray[np.uint8]],
    folder: Path | None = None,
) -> Path:
    """Write `folder/index.html` and its figures as PNG files, and return the path of the page.

    Replaces an earlier report in the folder and removes figures that no longer apply.

    Args:
        run_dir: The run folder. Each of metrics.jsonl, config.yaml, summary.json and provenance.json may be missing.
        evaluation: The content of evaluation/<split>.json.
        read_image: Returns the image at an index of the evaluated split, decoded, uint8 (h, w, 3). Called for the
            mistakes only.
        folder: The folder of the report; `run_dir/report` if it is None.
    """
    folder = folder or run_dir / "report"
    folder.mkdir(parents=True, exist_ok=True)
    metrics = read_metrics(run_dir)
    mistakes = evaluation.get("mistakes") or []
    images = [shrink(read_image(mistake["index"])) for mistake in mistakes]

    charts: dict[str, Chart] = {}
    for name, figure in _figures(run_dir, evaluation, metrics, images):
        path = folder / f"{name}.png"
        path.unlink(missing_ok=True)
        if figure:
            png = png_bytes(figure)
            path.write_bytes(png)
            charts[name] = Chart(data_uri(png, "png"), round(Image.open(io.BytesIO(png)).width * PAGE_DPI / DPI))

    sheet = folder / "mistakes.png"
    sheet.unlink(missing_ok=True)
    if mistakes:
        sheet.write_bytes(contact_sheet(images, [_mistake_caption(mistake) for mistake in mistakes]))
    samples = run_dir / "report" / "training_samples.png"

    provenance = read_json(run_dir / "provenance.json")
    splits = noted_splits(provenance)
    if splits:  # shown in a separate table
        provenance["data"].pop("splits")
    config_text = _read_text(run_dir / "config.yaml")
    base, names = _without_common_folder([mistake["path"] for mistake in mistakes])
    split_name = SPLIT_NAMES.get(evaluation["split"], evaluation["split"])
    interval = top1_interval(evaluation["top1"], evaluation["n"])
    page = _template().render(
        run_name=run_dir.resolve().name,
        model_name=OmegaConf.select(OmegaConf.create(config_text), "model.name") if config_text else None,
        evaluation=evaluation,
        split_name=split_name,
        origin=SplitOrigin(**evaluation["origin"]).text(evaluation["split"]) if "origin" in evaluation else None,
        splits=splits,
        top1_interval=interval,
        few_images=small_split_warning(split_name, evaluation["n"], interval),
        summary=read_json(run_dir / "summary.json"),
        speed=_speed(metrics, read_json(run_dir / "summary.json")),
        metrics=metrics,
        measured={name: metric for name, metric in METRICS.items() if name != "top5" or len(evaluation["classes"]) > 5},
        charts=charts,
        training_samples=data_uri(samples.read_bytes(), "png") if samples.exists() else None,
        drawn_classes=figures.drawn_classes(len(evaluation["classes"])),
        confused_pairs=most_confused(evaluation["confusion"], evaluation["classes"], CONFUSED_PAIRS),
        mistakes=[(m, name, embed(image)) for m, name, image in zip(mistakes, names, images, strict=True)],
        mistakes_folder=base,
        skipped=evaluation.get("skipped") or [],
        listed_skipped=LISTED_SKIPPED,
        config_text=config_text,
        provenance=provenance,
    )
    return _write_page(folder / "index.html", page)


def read_metrics(run_dir: Path) -> Metrics:
    """Read metrics.jsonl of the run folder; the file may be missing."""
    lines, unreadable = RunFolder(run_dir).read_metrics()
    ordered = sorted(lines, key=lambda line: line["step"])
    return Metrics(
        training=[line for line in ordered if line["split"] == "train"],
        validation=[line for line in ordered if line["split"] == "val"],
        unreadable=unreadable,
    )


def _figures(
    run_dir: Path, evaluation: dict[str, Any], metrics: Metrics, images: list[NDArray[np.uint8]]
) -> Iterator[tuple[str, Figure | None]]:
    """Yield the name of each figure and the figure, or None if there is no data, so that only one is in memory."""
    has_curves = metrics.training or metrics.validation
    yield (
        "learning_curves",
        figures.learning_curves_figure(metrics.training, metrics.validation) if has_curves else None,
    )
    found = read_json(RunFolder(run_dir).lr_range)
    yield "lr_range", lr_range_figure(found) if found else None
    yield "confusion", figures.confusion_figure(evaluation["confusion"], evaluation["classes"])
    yield "per_class", figures.per_class_figure(evaluation["per_class"])
    yield (
        "reliability",
        figures.reliability_figure(evaluation["reliability"], evaluation.get("reliability_calibrated")),
    )


def _mistake_caption(mistake: dict[str, Any]) -> str:
    return f"{mistake['label']}\n→ {mistake['predicted']}\n{percent(mistake['confidence'])}"


def _without_common_folder(paths: list[str]) -> tuple[str | None, list[str]]:
    """Split absolute paths into their common folder and the rest; relative paths are kept, with None as the folder."""
    if not paths or not all(map(os.path.isabs, paths)):
        return None, paths
    folder = os.path.commonpath([os.path.dirname(path) for path in paths])
    return folder, [os.path.relpath(path, folder) for path in paths]


def _speed(metrics: Metrics, summary: dict[str, Any]) -> dict[str, float | None]:
    """Return images per second (of the run, or the median of the logged values) and the peak memory use in GB."""
    speeds = [line["images_per_second"] for line in metrics.training if line.get("images_per_second")]
    memory = [line["memory_gb"] for line in metrics.training if line.get("memory_gb")]
    return {
        "images_per_second": summary.get("images_per_second") or (median(speeds) if speeds else None),
        "memory_gb": max(memory, default=None),
    }


def _template() -> Any:
    # Names in a report (classes, paths, options) are untrusted input: always escape. Jinja's select_autoescape decides
    # by the file extension and would not escape in a ".j2" file.
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": _number,
        "percent": percent,
        "exact_percent": lambda share: "unknown" if share is None else f"{share * 100:.1f} %",
        "duration": _duration,
        "flat": _flat,
    }
    return environment.get_template("report.html.j2")


def _number(value: float | None, digits: int = 3) -> str:
    return "unknown" if value is None or not math.isfinite(value) else f"{value:,.{digits}f}"


def _duration(seconds: float) -> str:
    """Format a duration: 75 -> "1 min 15 s"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{seconds:.1f} s"


def _flat(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Flatten a nested mapping into rows: {"git": {"commit": "1f"}} -> [("git.commit", "1f")]."""
    if isinstance(value, dict) and value:
        return [row for key, inner in value.items() for row in _flat(inner, f"{prefix}.{key}" if prefix else key)]
    return [(prefix, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))]


def _read_text(path: Path) -> str | None:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else None


def _write_page(path: Path, page: str) -> Path:
    """Write the page atomically, so that it is never incomplete, even if the process is killed."""
    # File names that are not UTF-8 contain lone surrogates, which cannot be encoded.
    content = page.encode(errors="backslashreplace")
    write_atomically(path, lambda file: file.write(content))
    return path
