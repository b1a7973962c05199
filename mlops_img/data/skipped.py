"""The record of images that could not be decoded (data.on_bad_image=skip)."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from mlops_img.core.files import read_json, write_json

log = logging.getLogger(__name__)


class SkippedImages:
    """Paths of images that could not be decoded, and the reason for each, in the order in which they were found.

    A caller creates it, passes it to `mlops_img.data.loader.handle_bad_images` to be filled, and reads it afterwards.
    It is false while it is empty.
    """

    def __init__(self, reasons: Mapping[str, str] | None = None) -> None:
        self._reasons = dict(reasons or {})

    def __len__(self) -> int:
        return len(self._reasons)

    def add(self, path: str, reason: str) -> None:
        """Record an image; log a warning the first time, not once per epoch."""
        if path not in self._reasons:
            log.warning("left out %s: %s", path, reason)
        self._reasons[path] = reason

    def merge(self, reasons: Mapping[str, str]) -> None:
        """Record images that another rank skipped."""
        for path, reason in reasons.items():
            self.add(path, reason)

    def as_dict(self) -> dict[str, str]:
        """Return a copy: path to reason."""
        return dict(self._reasons)

    @classmethod
    def read(cls, path: Path) -> SkippedImages:
        """Read what `write` wrote; empty if there is no such file."""
        return cls(read_json(path))

    def write(self, path: Path) -> None:
        """Write JSON, atomically: an object from path to reason."""
        write_json(path, self._reasons)
