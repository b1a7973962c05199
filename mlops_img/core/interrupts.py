"""SIGTERM and Ctrl-C as a request to stop at the next step or batch."""

from __future__ import annotations

import logging
import signal
import threading
from types import FrameType, TracebackType

SIGNALS = (signal.SIGTERM, signal.SIGINT)

log = logging.getLogger(__name__)


class StopRequest:
    """Within its block, the first signal sets `requested`; a second Ctrl-C interrupts at once.

    Args:
        announcement: what the process will do, for the log.
    """

    def __init__(self, announcement: str) -> None:
        self.announcement = announcement
        self.requested = False
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> StopRequest:
        # Only the main thread may set handlers; elsewhere (a notebook's, a launcher's) they stay as they are.
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True
        log.warning("%s: %s", signal.Signals(number).name, self.announcement)
