"""Load limit: a worker admits as many images as it can answer in time, and refuses further ones."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from mlops_img.serving.errors import Code, RequestError
from mlops_img.serving.telemetry import ADMITTED_IMAGES

# Share of the timeout that all admitted images may take together. The rest covers uneven images and machines.
TIMEOUT_SHARE = 0.5
# Weight of the newest image in the moving average of the seconds per image.
SMOOTHING = 0.05


class Admission:
    """Counts the admitted images of one worker.

    Attributes:
        queue: the most images that may be admitted at once.
        timeout: seconds within which a request must be answered.
        admitted: images that wait or are worked on.
        seconds_per_image: moving average under load; 0 while nothing is known.
    """

    def __init__(self, queue: int, timeout: float) -> None:
        self.queue = queue
        self.timeout = timeout
        self.admitted = 0
        self.seconds_per_image = 0.0

    @property
    def capacity(self) -> int:
        """How many images may be admitted at once."""
        if not self.seconds_per_image:
            return self.queue
        return max(1, min(self.queue, int(TIMEOUT_SHARE * self.timeout / self.seconds_per_image)))

    @contextmanager
    def reserve(self, images: int = 1) -> Iterator[Reservation]:
        """Admit a request with so many images until the block ends. Called before its body is read.

        Raises:
            RequestError: overloaded.
        """
        reservation = Reservation(self)
        reservation.resize(images)
        try:
            yield reservation
        finally:
            reservation.resize(0)

    def observe(self, seconds: float) -> None:
        """Update the average with the time that one image took."""
        self.seconds_per_image += (seconds - self.seconds_per_image) * (SMOOTHING if self.seconds_per_image else 1.0)


@dataclass
class Reservation:
    """The images for which one request is admitted."""

    admission: Admission
    images: int = 0

    def resize(self, images: int) -> None:
        """Change the number of images, once the form has been read and they can be counted.

        Raises:
            RequestError: overloaded; the reservation stays as it was.
        """
        admission = self.admission
        others = admission.admitted - self.images
        # An idle worker admits any request, however large.
        if others and images > self.images and others + images > admission.capacity:
            wait = max(1, math.ceil(admission.admitted * admission.seconds_per_image))
            raise RequestError(Code.OVERLOADED, "The service is overloaded. Retry later.", retry_after=wait)
        admission.admitted = others + images
        ADMITTED_IMAGES.inc(images - self.images)
        self.images = images
