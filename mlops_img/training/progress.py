"""How far the run is: a bar in a terminal, plain lines elsewhere."""

from __future__ import annotations

import logging
import sys

from tqdm import tqdm

log = logging.getLogger(__name__)


class Progress:
    """Shows the steps of a run as they are done."""

    def __init__(self, step: int, total: int) -> None:
        self.total = total
        self.terminal = sys.stderr.isatty()
        self.bar = tqdm(
            total=total, initial=step, unit="step", disable=not self.terminal, dynamic_ncols=True, leave=False
        )

    def show(self, step: int, loss: float, images_per_second: float) -> None:
        """Show the step reached, its loss and the speed."""
        self.bar.n = step
        self.bar.set_postfix_str(f"loss {loss:.3f}, {images_per_second:.0f} images/s")
        if not self.terminal:
            log.info("step %d/%d  loss %.4f  %.0f images/s", step, self.total, loss, images_per_second)

    def close(self) -> None:
        """Take the bar away."""
        self.bar.close()
