"""Who may come in: as many images as can be answered in time, and no more."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

from mlops_img.serving.errors import Code, RequestError
from mlops_img.serving.telemetry import INSIDE

# The share of the timeout that the images inside may take together: the rest is for uneven images and machines.
FILLED = 0.5
SMOOTHING = 0.05


class Admission:
    """Counts the images inside, and refuses further ones at the door, before their bytes are read."""

    def __init__(self, queue: int, timeout: float) -> None:
        self.queue = queue
        self.timeout = timeout
        self.inside = 0
        # Seconds that one image takes when the service has much to do; learnt from those that were answered.
        self.cost = 0.0

    @property
    def places(self) -> int:
        """How many images may be inside at once."""
        if not self.cost:
            return self.queue
        return max(1, min(self.queue, int(FILLED * self.timeout / self.cost)))

    @contextmanager
    def enter(self, images: int = 1, *, held: int = 0) -> Iterator[None]:
        """Hold places while the block lasts, in addition to those that the request holds already.

        Raises:
            RequestError: there are not so many.
        """
        # To an empty house whoever comes is let in.
        if self.inside + images > self.places and self.inside > held:
            wait = max(1, math.ceil(self.inside * self.cost))
            raise RequestError(Code.OVERLOADED, "There is too much to do: come again shortly.", retry_after=wait)
        self.inside += images
        INSIDE.inc(images)
        try:
            yield
        finally:
            self.inside -= images
            INSIDE.dec(images)

    def learn(self, seconds: float) -> None:
        """Note what an image has cost."""
        self.cost += (seconds - self.cost) * (SMOOTHING if self.cost else 1.0)
