"""The summary of a multirun: its jobs ranked, as a table, a CSV file and a figure.

It is built from the job folders, so it works with every launcher and includes failed jobs.
"""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from mlops_img.core.files import write_atomically, write_text
from mlops_img.core.text import text_table
from mlops_img.reporting.folds import summarize_folds
from mlops_img.runs.folder import ERROR_FILE

if TYPE_CHECKING:
    from mlops_img.evaluation.metrics import Metric

COLUMNS = (
    "rank",
    "job",
    "status",
    "metric",
    "value",
    "value_low",
    "value_high",
    "test.top1",
    "test.top1_low",
    "test.top1_high",
    "wall_seconds",
    "overrides",
    "error",
)

TEST_COLUMN = 3  # index in the terminal table
INTERVAL = " (95 % interval)"

_started: Path | None = None


class MultirunSummary(Callback):
    """A Hydra callback that stores the folder of a multirun for `summarize_multirun`."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Store the folder."""
        global _started
        _started = Path(config.hydra.sweep.dir)


def summarize_multirun() -> None:
    """Summarize the multirun of this process, if any, even if a job failed."""
    global _started
    folder, _started = _started, None
    if folder is None or not folder.is_dir():
        return
    rows = rank_jobs(folder)
    if rows:
        write_summary(folder, rows)
        print(format_table(rows))
        for line in summarize_folds(folder, rows):
            print(line)
        print(f"summary: {folder / 'summary.csv'}")


def rank_jobs(folder: Path) -> list[dict[str, Any]]:
    """Return one row per job folder, best first, failed and unfinished jobs last."""
    rows = [_read_job(job) for job in sorted(folder.iterdir()) if (job / ".hydra").is_dir()]
    sign = -1 if any(_higher_is_better(row["metric"]) for row in rows) else 1
    rows.sort(key=lambda row: (row["value"] is None, sign * (row["value"] or 0), row["job"]))
    for rank, row in enumerate(rows, start=1):
        row["rank"] = rank if row["value"] is not None else ""
    return rows


def write_summary(folder: Path, rows: list[dict[str, Any]]) -> None:
    """Write summary.csv and summary.png."""
    from mlops_img.reporting.figures import multirun_figure
    from mlops_img.reporting.style import png_bytes

    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(folder / "summary.csv", text.getvalue())
    metric = rows[0]["metric"]
    figure = png_bytes(multirun_figure(rows, metric=metric, maximize=_higher_is_better(metric)))
    write_atomically(folder / "summary.png", lambda file: file.write(figure))


def _higher_is_better(metric: str) -> bool:
    return bool(_metrics()[metric.removeprefix("val.")].higher_is_better)


def _metrics() -> dict[str, Metric]:
    from mlops_img.evaluation.metrics import METRICS  # imports PyTorch, which is slow and not needed for `--help`

    return METRICS


def format_table(rows: list[dict[str, Any]]) -> str:
    """Format the ranking for the terminal, accuracies with their 95 % intervals."""
    metric = rows[0]["metric"] + (INTERVAL if any(row["value_low"] is not None for row in rows) else "")
    lines: list[tuple[str, ...]] = [("rank", "job", metric, f"test top-1{INTERVAL}", "time", "settings")]
    for row in rows:
        settings = row["overrides"] if row["status"] == "ok" else f"{row['overrides']}  {row['status']}: {row['error']}"
        lines.append(
            (
                str(row["rank"] or "-"),
                str(row["job"]),
                _with_interval(row, "value"),
                _with_interval(row, "test.top1"),
                _number(row["wall_seconds"], ".0f"),
                settings,
            )
        )
    if not any(line[TEST_COLUMN] for line in lines[1:]):  # no test split, or no finished job
        lines = [line[:TEST_COLUMN] + line[TEST_COLUMN + 1 :] for line in lines]
    return text_table(lines, left=(len(lines[0]) - 1,))


def _read_job(job: Path) -> dict[str, Any]:
    overrides = yaml.safe_load((job / ".hydra" / "overrides.yaml").read_text(encoding="utf-8")) or []
    config = yaml.safe_load((job / ".hydra" / "config.yaml").read_text(encoding="utf-8")) or {}
    metric = config.get("optimized_metric", "val.top1")
    error, summary = job / ERROR_FILE, job / "summary.json"
    row = dict.fromkeys(COLUMNS, None) | {
        "job": job.name,
        "overrides": " ".join(overrides),
        "metric": metric,
        "error": "",
    }
    if error.is_file():
        return row | {"status": "failed", "error": error.read_text(encoding="utf-8").strip().splitlines()[-1]}
    if not summary.is_file():
        return row | {"status": "unfinished"}
    measured = json.loads(summary.read_text(encoding="utf-8"))
    # Runs without a test split have no test metrics, and summaries of earlier versions have no intervals.
    kept = {
        name: measured.get(name) for name in ("test.top1", "wall_seconds", *(f"test.{name}" for name in _metrics()))
    }
    for name, source in (("value", metric), ("test.top1", "test.top1")):
        kept[f"{name}_low"], kept[f"{name}_high"] = measured.get(f"{source}_interval") or (None, None)
    return row | {"status": "ok", "value": measured[metric], **kept}


def _with_interval(row: dict[str, Any], name: str) -> str:
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return _number(row[name], ".4f") + ("" if low is None else f" ({low:.4f} to {high:.4f})")


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
