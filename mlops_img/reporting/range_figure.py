"""The figure of a learning-rate range test."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure

from mlops_img.reporting.style import BLUE, GRID, MUTED, ORANGE, annotate, new_figure, style_axes


def lr_range_figure(found: dict[str, Any]) -> Figure:
    """Plot the smoothed loss over the learning rate and mark the chosen one; `found` is lr_range.json."""
    figure = new_figure(5.5, 3.2)
    axes = figure.subplots()
    axes.plot(found["rates"], found["losses"], color=BLUE)
    axes.axvline(found["chosen"], color=ORANGE, linewidth=1.2)
    lowest, highest = min(found["losses"]), found["losses"][0]
    annotate(axes, f"chosen: {found['chosen']:.2g}", found["chosen"], lowest + 0.95 * (highest - lowest), 5)
    style_axes(axes, "Learning-rate range test")
    axes.set_xscale("log")
    axes.set_ylim(top=highest + 0.3 * (highest - lowest))  # where it diverges is not of interest
    axes.set_xlabel("learning rate", color=MUTED)
    axes.set_ylabel("training loss, smoothed", color=MUTED)
    axes.grid(axis="y", color=GRID)
    return figure
