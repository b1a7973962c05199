"""Progress of a run: steps done, images per second, memory used."""

from __future__ import annotations

import logging
import resource
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import torch
from tqdm import tqdm

from mlops_img.data.batch import Batch

log = logging.getLogger(__name__)


class Progress:
    """Shows the steps of a run: as a bar in a terminal, as plain lines elsewhere."""

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
        """Remove the bar."""
        self.bar.close()


@dataclass
class Speed:
    """Images per second, and the seconds spent waiting for data."""

    ranks: int = 1  # which train on as many images each
    images: int = 0
    waited: float = 0.0
    since: float = field(default_factory=time.perf_counter)

    def timed(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yield the batches, noting how long each took to come."""
        iterator = iter(batches)
        while True:
            start = time.perf_counter()
            batch = next(iterator, None)
            self.waited += time.perf_counter() - start
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
        return self.images * self.ranks / (time.perf_counter() - self.since)


def memory_gb(device: torch.device) -> float:
    """Return the most memory used so far in GB: the device's, or on a CPU the process's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB here
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
