"""What the parts of one run share."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from mlops_img.data.skipped import SkippedImages
from mlops_img.runs.folder import RunFolder
from mlops_img.runs.tracking import Tracker
from mlops_img.training.setup import Setup


class RunClock:
    """The seconds that a run has taken, those before it was resumed included."""

    def __init__(self) -> None:
        self.started = time.perf_counter()

    def add(self, seconds: float) -> None:
        """Count what the run took before it was resumed."""
        self.started -= seconds

    @property
    def seconds(self) -> float:
        """Seconds so far."""
        return time.perf_counter() - self.started


@dataclass(frozen=True)
class RunContext:
    """A run under way.

    Attributes:
        setup: model, data and the rest.
        folder: of the run.
        tracker: of its metrics.
        clock: started with the run.
        skipped: training images that could not be decoded; grows while training.
    """

    setup: Setup
    folder: RunFolder
    tracker: Tracker
    clock: RunClock
    skipped: SkippedImages = field(default_factory=SkippedImages)
