"""How far a measured accuracy can be trusted: its 95 % confidence interval."""

from __future__ import annotations

from collections.abc import Sequence

LEVEL = 0.95
# Below this, the interval is so wide that it decides what a figure is worth: 20 points at a top-1 of 0.5.
FEW_IMAGES = 100


def top1_interval(top1: float, n: int) -> tuple[float, float] | None:
    """Return the 95 % Wilson score interval of a share of `n` images; None where n is 0.

    It stays within 0 and 1 and holds for shares near 1, where the usual share +- 2 standard errors does not.
    """
    if n == 0:
        return None
    from scipy.stats import binomtest  # takes a second to import, and a terminal table needs `with_interval` alone

    found = binomtest(round(top1 * n), n).proportion_ci(confidence_level=LEVEL, method="wilson")
    return float(found.low), float(found.high)


def with_interval(value: float, interval: Sequence[float] | None) -> str:
    """Return an accuracy and its interval for a line of text: 0.9420 (95 % interval 0.8843 to 0.9717)."""
    if interval is None:
        return f"{value:.4f}"
    return f"{value:.4f} (95 % interval {interval[0]:.4f} to {interval[1]:.4f})"


def small_split_warning(split: str, n: int, interval: Sequence[float] | None) -> str | None:
    """Return what to say about an accuracy that rests on fewer than `FEW_IMAGES` images; None where it does not."""
    if n >= FEW_IMAGES or interval is None:
        return None
    low, high = interval
    images = f"{n} image{'s' * (n != 1)}"
    return (
        f"the {split} split has only {images}: the 95 % interval of its top-1, {low:.4f} to {high:.4f}, "
        f"is {100 * (high - low):.0f} points wide. More {split} images would narrow it"
    )
