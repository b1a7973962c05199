"""libtiff writes its errors to standard error, hundreds of lines for a damaged file, bypassing the JSON log."""

from __future__ import annotations

import ctypes
import logging
import sys
from pathlib import Path

from PIL import features

MAPPED = Path("/proc/self/maps")

log = logging.getLogger(__name__)


def silence() -> bool:
    """Make libtiff write nothing. The access log has the reason of each refused image anyway.

    Returns:
        Whether it worked. If the library is not found, its messages stay.
    """
    if not features.check_codec("libtiff"):
        return True
    try:
        library = ctypes.CDLL(_library_path())
        for name in ("TIFFSetErrorHandler", "TIFFSetErrorHandlerExt", "TIFFSetWarningHandler"):
            setter = getattr(library, name)
            setter.argtypes, setter.restype = [ctypes.c_void_p], ctypes.c_void_p
            setter(None)
    except (OSError, AttributeError):
        log.warning("libtiff cannot be silenced: its messages go to standard error")
        return False
    return True


def _library_path() -> str | None:
    """Return the path of the library that Pillow loaded; None if Pillow is linked with it statically."""
    if MAPPED.exists():
        for line in MAPPED.read_text().splitlines():
            if "libtiff" in line:
                return line.split(maxsplit=5)[-1]
    bundled = Path(sys.modules["PIL"].__file__ or "").parent / ".dylibs"  # macOS
    return next(map(str, bundled.glob("libtiff*")), None)
