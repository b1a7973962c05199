"""How fast the images go through, and how long the loop waits for them."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from mlops_img.data.loader import Batch


@dataclass
class Speed:
    """Images per second, and the share of the time that went into waiting for data."""

    images: int = 0
    waited: float = 0.0
    since: float = field(default_factory=time.perf_counter)

    def timed(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yield the batches that have images, noting how long each took to come."""
        iterator = iter(batches)
        while True:
            asked = time.perf_counter()
            batch = next(iterator, None)
            self.waited += time.perf_counter() - asked
            if batch is None:
                return
            self.images += len(batch.labels)
            yield batch

    def restart(self) -> None:
        """Measure anew from now."""
        self.images, self.waited, self.since = 0, 0.0, time.perf_counter()

    @property
    def images_per_second(self) -> float:
        """Images trained on per second since the last restart."""
        return self.images / (time.perf_counter() - self.since)
