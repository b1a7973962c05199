"""Make the process of a command independent of the environment that it was started in."""

from __future__ import annotations

import io
import os
import sys


def prepare_process() -> None:
    """Make text, file names and figures independent of the locale and of a notebook's settings.

    In a locale that is not UTF-8, file names with characters outside ASCII cannot be written. The command is then
    executed again, in the same process, in Python's UTF-8 mode.
    """
    if sys.getfilesystemencoding() != "utf-8":
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, "PYTHONUTF8": "1"})
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # PYTHONIOENCODING may set another encoding
    # The commands that a notebook starts inherit its Matplotlib backend, which may not be installed. Figures need only
    # the non-interactive one.
    os.environ["MPLBACKEND"] = "agg"
