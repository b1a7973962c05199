"""libtiff writes what is wrong with a file to standard error, hundreds of lines for one, past the JSON log."""

from __future__ import annotations

import ctypes
import logging
import sys
from pathlib import Path

from PIL import features

MAPPED = Path("/proc/self/maps")

log = logging.getLogger(__name__)


def silence() -> bool:
    """Have libtiff write nothing; what it found is answered and logged as the request's reason anyway.

    Returns:
        Whether it does. If the library is not found, its lines stay.
    """
    if not features.check_codec("libtiff"):
        return True
    try:
        library = ctypes.CDLL(_loaded())
        for name in ("TIFFSetErrorHandler", "TIFFSetErrorHandlerExt", "TIFFSetWarningHandler"):
            setter = getattr(library, name)
            setter.argtypes, setter.restype = [ctypes.c_void_p], ctypes.c_void_p
            setter(None)
    except (OSError, AttributeError):
        log.warning("libtiff cannot be silenced: its messages go to standard error")
        return False
    return True


def _loaded() -> str | None:
    """Return the file of the library that Pillow uses; None where the process itself has its functions."""
    if MAPPED.exists():
        for line in MAPPED.read_text().splitlines():
            if "libtiff" in line:
                return line.split(maxsplit=5)[-1]
    bundled = Path(sys.modules["PIL"].__file__ or "").parent / ".dylibs"  # macOS
    return next(map(str, bundled.glob("libtiff*")), None)
