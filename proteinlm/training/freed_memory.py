"""Memory that a step has freed, kept for the next one instead of being given back to the system."""

from __future__ import annotations

import ctypes
import os
import platform

# parameters of glibc's mallopt (malloc.h)
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
_NEVER = (1 << 31) - 1


def keep_freed_memory() -> bool:
    """Have this process keep the memory that it frees, and return whether it does now.

    glibc takes every buffer of 32 MiB or more from the system and gives it back when it is freed, so each
    large activation costs page faults anew, 5 % of a training step on a CPU. Kept, it is used again; the
    process then holds its peak until it ends. Where there is no glibc, or the user has tuned it by
    ``MALLOC_`` variables or ``GLIBC_TUNABLES``, nothing is changed.
    """
    is_tuned = any(name.startswith("MALLOC_") for name in os.environ) or "glibc.malloc" in os.getenv(
        "GLIBC_TUNABLES", ""
    )
    if is_tuned or platform.libc_ver()[0] != "glibc":
        return False
    library = ctypes.CDLL(None)
    return all(library.mallopt(name, value) == 1 for name, value in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, _NEVER)))
