"""What a command's process needs from its environment, whatever it was started from."""

from __future__ import annotations

import io
import os
import sys


def prepare_process() -> None:
    """Make text, file names and figures independent of the locale and of a notebook's settings.

    In a locale that is not UTF-8, file names beyond ASCII cannot be written: the command then starts again in
    Python's UTF-8 mode, as the same process.
    """
    if sys.getfilesystemencoding() != "utf-8":
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, "PYTHONUTF8": "1"})
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # PYTHONIOENCODING may ask for another encoding
    # A notebook hands its own backend to the commands it starts, and it need not be installed here. Figures are
    # drawn without any.
    os.environ["MPLBACKEND"] = "agg"
