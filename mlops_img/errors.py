"""User errors and the exit codes of every command."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USER_ERROR = 2
EXIT_STOPPED = 75  # EX_TEMPFAIL of sysexits.h: stopped on request, and can be resumed


class UserError(Exception):
    """An error that the user can fix; its one line says what, where and how.

    Commands print it without a traceback and exit with `EXIT_USER_ERROR`.
    """


class StoppedOnRequest(SystemExit):
    """SIGTERM or Ctrl-C arrived and what was done is saved; leaves the process with `EXIT_STOPPED`."""

    def __init__(self) -> None:
        super().__init__(EXIT_STOPPED)


def did_you_mean(wrong: str, valid: Iterable[str], *, count: int = 1) -> str:
    """Return " Did you mean 'x'?" for the valid names nearest to `wrong`, or an empty string."""
    close = difflib.get_close_matches(wrong, list(valid), n=count, cutoff=0.5)
    return f" Did you mean {' or '.join(repr(name) for name in close)}?" if close else ""
