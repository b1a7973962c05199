"""The 95 % confidence interval of a measured accuracy."""

from __future__ import annotations

from collections.abc import Sequence

LEVEL = 0.95
# With fewer images the interval is wide, over 19 points at a top-1 of 0.5, and a warning is shown.
FEW_IMAGES = 100


def top1_interval(top1: float, n: int) -> tuple[float, float] | None:
    """Return the 95 % Wilson score interval of a share of `n` images, or None if n is 0.

    It stays within 0 and 1 and is valid for shares near 1, unlike the normal approximation.
    """
    if n == 0:
        return None
    from scipy.stats import binomtest  # the import takes a second, and `with_interval` does not need it

    found = binomtest(round(top1 * n), n).proportion_ci(confidence_level=LEVEL, method="wilson")
    return float(found.low), float(found.high)


def with_interval(value: float, interval: Sequence[float] | None) -> str:
    """Format an accuracy with its interval: 0.9420 (95 % interval 0.8843 to 0.9717)."""
    if interval is None:
        return f"{value:.4f}"
    return f"{value:.4f} (95 % interval {interval[0]:.4f} to {interval[1]:.4f})"


def small_split_warning(split: str, n: int, interval: Sequence[float] | None) -> str | None:
    """Return a warning if the accuracy was measured on fewer than `FEW_IMAGES` images, else None."""
    if n >= FEW_IMAGES or interval is None:
        return None
    low, high = interval
    images = f"{n} image{'s' * (n != 1)}"
    return (
        f"the {split} split has only {images}: the 95 % interval of its top-1, {low:.4f} to {high:.4f}, "
        f"is {100 * (high - low):.0f} points wide. More {split} images would narrow it"
    )
