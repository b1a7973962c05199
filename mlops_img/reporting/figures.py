"""The figures of a run, drawn from results that were computed elsewhere."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import cycle
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from scipy.sparse import csr_array

from mlops_img.evaluation.confusion import Stored, confused_pairs, read_confusion
from mlops_img.reporting.pictures import INK
from mlops_img.reporting.style import (
    BLUE,
    BLUES,
    GRID,
    MUTED,
    ORANGE,
    PALE_BLUE,
    RED,
    annotate,
    new_figure,
    plain_text,
    style_axes,
)

MAX_COUNTED_CLASSES = 20  # counts in the cells of a larger confusion matrix are illegible
MAX_NAMED_CLASSES = 50  # class names on the axes of a larger confusion matrix are illegible
MAX_DRAWN_CLASSES = 400  # cells of a larger confusion matrix are smaller than a pixel: draw the most confused classes
MAX_CONFUSED_CLASSES = 40
MAX_BARS = 40  # 20 worst and 20 best
MAX_JOBS = 40


def learning_curves_figure(training: Sequence[dict[str, Any]], validation: Sequence[dict[str, Any]]) -> Figure:
    """Plot loss, validation top-1 and learning rate over the steps.

    `training` and `validation` are the lines of metrics.jsonl of that split, in the order of their steps.
    Missing and non-finite values leave a gap.
    """
    figure = new_figure(11, 3.4)
    loss, top1, rate = figure.subplots(1, 3, sharex=True)
    points: dict[str, Any] = {"marker": "o", "markersize": 3.5}
    loss.plot(*_series(training, "loss"), color=PALE_BLUE, linewidth=1, label="train, each logged step")
    loss.plot(*_series(validation, "train_loss"), color=BLUE, label="train, mean of the epoch", **points)
    loss.plot(*_series(validation, "loss"), color=ORANGE, label="validation", **points)
    loss.legend(frameon=False, fontsize=8, labelcolor=INK)
    top1.plot(*_series(validation, "top1"), color=ORANGE, **points)
    top1.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
    _mark_best(top1, *_series(validation, "top1"))
    rate.plot(*_series(training, "lr"), color=BLUE, **(points if len(training) < 3 else {}))
    rate.yaxis.set_major_formatter("{x:g}")
    for axes, title in ((loss, "Loss"), (top1, "Validation top-1"), (rate, "Learning rate")):
        style_axes(axes, title)
        axes.set_xlabel("step", color=MUTED)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.grid(axis="y", color=GRID)
    loss.set(xlim=(0, None), ylim=(0, None))
    rate.set_ylim(bottom=0)
    return figure


def drawn_classes(count: int) -> int:
    """Return how many of `count` classes the confusion matrix shows."""
    return count if count <= MAX_DRAWN_CLASSES else MAX_CONFUSED_CLASSES


def confusion_figure(confusion: Stored, classes: Sequence[str]) -> Figure:
    """Plot the confusion matrix: rows are labels, columns predictions.

    The color is the share of the row, on a square-root scale, so that the rare mistakes of a good model are visible.
    Up to 20 classes, cells show counts; up to 50, axes show class names. Of more than 400 classes, the 40 of the
    most confused pairs are shown, with the classes of a pair next to each other.
    """
    matrix = read_confusion(confusion, len(classes))
    totals = matrix.sum(axis=1)
    shown = list(range(len(classes)))
    if drawn_classes(len(classes)) < len(classes):
        shown = _most_confused_classes(matrix, drawn_classes(len(classes)))
        classes = [classes[label] for label in shown]
    counts = matrix[shown][:, shown].toarray()
    shares = counts / np.maximum(totals[shown], 1)[:, None]
    size = min(10.0, max(4.2, 1.9 + 0.42 * len(classes)))
    figure = new_figure(size + 0.9, size)
    axes = figure.add_subplot()
    cells = axes.imshow(shares, cmap=BLUES, norm=PowerNorm(0.5, vmin=0, vmax=1))
    style_axes(axes)
    named = len(classes) <= MAX_NAMED_CLASSES
    unit = "" if named else " (class index)"
    axes.set_xlabel(f"predicted{unit}", color=MUTED)
    axes.set_ylabel(f"label{unit}", color=MUTED)
    if named:
        names = [plain_text(name, 18) for name in classes]
        upright = max(map(len, names), default=0) <= max(2, 24 // max(len(names), 1))
        axes.set_xticks(range(len(names)), names, rotation=0 if upright else 90)
        axes.set_yticks(range(len(names)), names)
        axes.tick_params(labelsize=9 if len(names) <= MAX_COUNTED_CLASSES else 7)
    if len(classes) <= MAX_COUNTED_CLASSES:
        for row, column in zip(*np.nonzero(counts), strict=True):
            color = "white" if shares[row, column] > 0.35 else INK
            style: dict[str, Any] = {"ha": "center", "va": "center", "color": color, "fontsize": 8.5}
            axes.text(column, row, f"{counts[row, column]}", **style)
    bar = figure.colorbar(cells, ax=axes, shrink=0.7, ticks=[0, 0.01, 0.05, 0.25, 0.5, 1], format="{x:.0%}")
    bar.set_label("share of the label's images", color=MUTED, fontsize=9)
    bar.ax.tick_params(colors=INK, labelsize=8, length=0)
    bar.outline.set_visible(False)
    return figure


def _most_confused_classes(matrix: csr_array, count: int) -> list[int]:
    """Return the `count` classes of the most confused pairs, padded with other classes if there are too few."""
    pairs = confused_pairs(matrix, limit=count)
    found = dict.fromkeys(label for pair in pairs for label in pair[:2])
    return list(found | dict.fromkeys(range(matrix.shape[0])))[:count]


def per_class_figure(per_class: Sequence[dict[str, Any]]) -> Figure:
    """Plot the F1 of every class as bars, worst first; of more than 40 classes, the 20 worst and the 20 best.

    Rows are {"name", "support", "precision", "recall", "f1"}. Classes without images are omitted.
    """
    ranked = sorted((row for row in per_class if row["support"]), key=_f1)
    if len(ranked) <= MAX_BARS:
        figure = new_figure(7.2, 0.9 + 0.27 * max(len(ranked), 2))
        _f1_bars(figure.add_subplot(), ranked, "F1 by class, worst first")
        return figure
    half = MAX_BARS // 2
    figure = new_figure(11, 0.9 + 0.27 * half)
    _f1_bars(figure.add_subplot(1, 2, 1), ranked[:half], f"F1: the {half} worst of {len(ranked)} classes")
    _f1_bars(figure.add_subplot(1, 2, 2), ranked[-half:][::-1], f"F1: the {half} best")
    return figure


def reliability_figure(before: Sequence[dict[str, Any]], calibrated: Sequence[dict[str, Any]] | None) -> Figure:
    """Plot a reliability diagram: accuracy by confidence in bins of equal width, and the images in each bin.

    Bins are {"confidence": mean or None, "accuracy": share or None, "count"}. `calibrated` are the bins after
    temperature scaling, drawn in a second panel. The bars of a calibrated model end on the diagonal (Guo et al.
    2017, "On calibration of modern neural networks").
    """
    panels = [("As trained" if calibrated else "Reliability", before)]
    if calibrated:
        panels.append(("After temperature scaling", calibrated))
    figure = new_figure(4.4 * len(panels), 4.8)
    grid = figure.add_gridspec(2, len(panels), height_ratios=(3, 1))
    most = max((part["count"] for _, bins in panels for part in bins), default=0)
    for place, (title, bins) in enumerate(panels):
        top, below = figure.add_subplot(grid[0, place]), figure.add_subplot(grid[1, place])
        _reliability_panel(top, below, bins, title)
        below.set_ylim(0.7, max(most, 1) * 2)
        if place == 0:
            top.set_ylabel("accuracy", color=MUTED)
            below.set_ylabel("images", color=MUTED)
    return figure


def multirun_figure(rows: list[dict[str, Any]], metric: str = "value", maximize: bool = True) -> Figure:
    """Plot the jobs of a multirun ranked by their value, best on top, failed jobs at the bottom.

    Rows are {"job", "overrides", "value": float or None, "status": "ok" or the kind of failure}; at most 40 are drawn.
    Dots instead of bars, because the values lie close together and the axis does not start at zero.
    """
    finished, failed = [row for row in rows if _has_value(row)], [row for row in rows if not _has_value(row)]
    finished.sort(key=lambda row: float(row["value"]), reverse=maximize)
    shown = (finished + failed)[:MAX_JOBS]
    values = [float(row["value"]) for row in finished[:MAX_JOBS]]

    figure = new_figure(9, 1.1 + 0.34 * max(len(shown), 2))
    axes = figure.add_subplot()
    left_out = f" ({len(shown)} of {len(rows)} shown)" if len(shown) < len(rows) else ""
    style_axes(axes, f"Jobs by {plain_text(metric, 40)}{left_out}")
    axes.plot(values, range(len(values)), "o", color=BLUE, markersize=7, clip_on=False)
    for place, value in enumerate(values):
        annotate(axes, f"{value:.4g}", value, place, 9)
    for place, row in enumerate(shown[len(values) :], start=len(values)):
        text = "x no value" if row["status"] == "ok" else f"x {row['status']}"
        axes.text(0.01, place, text, transform=axes.get_yaxis_transform(), va="center", fontsize=9, color=RED)
    names = [f"#{row['job']}  {plain_text(str(row['overrides']), 60)}" for row in shown]
    axes.set_yticks(range(len(shown)), names)
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.margins(x=0.12)
    axes.grid(color=GRID)
    axes.set_xlabel(plain_text(metric, 40), color=MUTED)
    if not values:
        axes.set_xticks([])
    return figure


def latency_figure(timings: Sequence[dict[str, Any]]) -> Figure:
    """Plot latency (median to 99th percentile) and throughput of programs over the batch size.

    Rows are {"program", "batch", "p50" ms, "p99" ms, "images_per_second"}.
    """
    figure = new_figure(9, 3.6)
    latency, throughput = figure.subplots(1, 2)
    for color, name in zip(cycle((BLUE, ORANGE, RED, MUTED)), dict.fromkeys(row["program"] for row in timings)):
        rows = sorted((row for row in timings if row["program"] == name), key=lambda row: row["batch"])
        batches, middle = [row["batch"] for row in rows], [row["p50"] for row in rows]
        latency.plot(batches, middle, "o-", color=color)
        latency.vlines(batches, middle, [row["p99"] for row in rows], color=color, linewidth=1)
        throughput.plot(
            batches, [row["images_per_second"] for row in rows], "o-", color=color, label=plain_text(name, 40)
        )
    for axes, title in ((latency, "Milliseconds per call: median to p99"), (throughput, "Images per second")):
        style_axes(axes, title)
        axes.set_xlabel("images per call", color=MUTED)
        axes.grid(axis="y", color=GRID)
        axes.set_xticks(sorted({row["batch"] for row in timings}))
        axes.set_ylim(bottom=0)
    throughput.legend(loc="upper left", frameon=False, fontsize=8, labelcolor=INK)
    return figure


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def _has_value(job: dict[str, Any]) -> bool:
    return job["status"] == "ok" and math.isfinite(_number(job["value"]))


def _series(lines: Sequence[dict[str, Any]], key: str) -> tuple[list[float], list[float]]:
    """Return steps and values of the lines that have the key; non-finite values become NaN, a gap in the plot."""
    present = [line for line in lines if line.get(key) is not None]
    values = np.asarray([line[key] for line in present], dtype=float)
    return [line["step"] for line in present], np.where(np.isfinite(values), values, np.nan).tolist()


def _mark_best(axes: Axes, steps: list[float], values: list[float]) -> None:
    if not np.isfinite(values).any():
        return
    best = int(np.nanargmax(values))
    axes.axhline(values[best], color=MUTED, linewidth=0.8, linestyle=(0, (4, 3)))
    text = f"best {values[best]:.1%} at step {steps[best]:,}".replace("%", " %")
    axes.text(0.98, 0.05, text, transform=axes.transAxes, ha="right", va="bottom", fontsize=8.5, color=INK)


def _f1(row: dict[str, Any]) -> float:
    """Return the F1 of a class, or 0 if it is undefined."""
    return float(np.nan_to_num(_number(row["f1"])))


def _f1_bars(axes: Axes, rows: Sequence[dict[str, Any]], title: str) -> None:
    style_axes(axes, title)
    scores = [_f1(row) for row in rows]
    axes.barh(range(len(rows)), scores, height=0.68, color=BLUE)
    axes.set_yticks(range(len(rows)), [plain_text(row["name"], 26) for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter("{x:.1f}")
    axes.grid(axis="x", color=GRID)
    for place, (row, score) in enumerate(zip(rows, scores, strict=True)):
        annotate(axes, f"{score:.2f}  (n = {row['support']:,})", score, place, 5)


def _reliability_panel(top: Axes, below: Axes, bins: Sequence[dict[str, Any]], title: str) -> None:
    width = 1 / max(len(bins), 1)
    centers = [(place + 0.5) * width for place in range(len(bins))]
    style_axes(top, title)
    style_axes(below)
    top.bar(centers, [part["accuracy"] or 0.0 for part in bins], width=width * 0.92, color=PALE_BLUE)
    top.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
    filled = [part for part in bins if part["count"]]
    means = [part["confidence"] for part in filled]
    top.plot(means, [part["accuracy"] for part in filled], "o", color=BLUE, markersize=4.5)
    below.bar(centers, [part["count"] for part in bins], width=width * 0.92, color=MUTED)
    # A good model puts nearly every image into the last bin: a linear scale would hide the others.
    below.set_yscale("log")
    below.yaxis.set_major_formatter("{x:,.0f}")
    below.minorticks_off()
    for axes in (top, below):
        axes.set_xlim(0, 1)
        axes.grid(axis="y", color=GRID)
    top.set_ylim(0, 1.02)
    top.tick_params(labelbottom=False)
    below.set_xlabel("confidence", color=MUTED)
