"""How the process keeps the memory that a step gives back, for the next step to use."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

# Options of mallopt(3), from malloc.h.
TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX = -1, -3, -4
NEVER = -1
# Where glibc's own thresholds come to rest once a program has freed a large block.
USUAL_MMAP_THRESHOLD = 32 * 2**20
USUAL_MMAP_MAX = 65536

_kept = False


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Keep freed host memory in the process for as long as this lasts.

    By default glibc takes each large tensor fresh from the kernel and hands it back when it is freed, so on
    a CPU every step pays for clearing the same pages again: a tenth or more of its time. Nothing happens
    under another C library, or where the environment says how malloc is to behave (MALLOC_..., GLIBC_TUNABLES).
    """
    global _kept
    libc = _glibc()
    if _kept or libc is None or _told_by_environment():
        yield
        return
    libc.mallopt(MMAP_MAX, 0)
    libc.mallopt(TRIM_THRESHOLD, NEVER)
    _kept = True
    try:
        yield
    finally:
        libc.mallopt(MMAP_MAX, USUAL_MMAP_MAX)
        libc.mallopt(MMAP_THRESHOLD, USUAL_MMAP_THRESHOLD)
        libc.mallopt(TRIM_THRESHOLD, 2 * USUAL_MMAP_THRESHOLD)
        libc.malloc_trim(0)
        _kept = False


@cache
def _glibc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim") else None


def _told_by_environment() -> bool:
    return any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ)
