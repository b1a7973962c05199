"""Colors, text and file output that all figures share.

Figures use matplotlib's object interface instead of pyplot, whose global state would keep every figure of a multirun
in memory. No display is needed.
"""

from __future__ import annotations

import io
import warnings

from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from mlops_img.reporting.pictures import INK, printable

MUTED, GRID = "#66717d", "#e3e7eb"
BLUE, PALE_BLUE, ORANGE, RED = "#2f6f9f", "#b9d0e2", "#c8703a", "#b03a3a"
BLUES = LinearSegmentedColormap.from_list("blues", ["#ffffff", "#9fc3de", BLUE, "#143a57"])
DPI = 150


def new_figure(width: float, height: float) -> Figure:
    """Create an empty figure; `width` and `height` are in inches."""
    return Figure(figsize=(width, height), layout="constrained")


def style_axes(axes: Axes, title: str = "") -> None:
    """Apply the common look to the axes and set their title."""
    axes.set_title(title, loc="left", fontsize=10.5, fontweight="bold", color=INK)
    axes.spines[:].set_color(GRID)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK, labelsize=9, length=0)
    axes.set_axisbelow(True)


def annotate(axes: Axes, text: str, x: float, y: float, points: float) -> None:
    """Write `text` to the right of the data point (x, y), `points` points away."""
    axes.annotate(text, (x, y), (points, 0), textcoords="offset points", va="center", fontsize=8, color=INK)


def png_bytes(figure: Figure) -> bytes:
    """Render a figure as a PNG file at 150 dpi on white, without the empty space around it."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # Characters that the font lacks are drawn as boxes. The tables of the report show the names in full.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(buffer, format="png", dpi=DPI, facecolor="white", bbox_inches="tight", pad_inches=0.08)
    return buffer.getvalue()


def percent(share: float) -> str:
    """Format a share between 0 and 1 as whole percent, "97 %". Only exactly 1 is formatted as "100 %"."""
    return "> 99 %" if 0.995 <= share < 1 else f"{share:.0%}".replace("%", " %")


def plain_text(text: str, width: int) -> str:
    """Cut text to `width` characters and escape dollar signs, which start a formula in matplotlib."""
    return printable(text, width).replace("$", r"\$")
