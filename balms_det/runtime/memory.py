"""What becomes of memory that is freed."""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_MB = 1024 * 1024


def keep_freed_memory() -> None:
    """Keep what is freed for what is allocated next, for the rest of the process.

    Otherwise what an iteration of training on a processor frees goes back to the kernel, which
    clears every page of it for the next iteration: some tenth of a small network's time. Tensors
    above 32 MB go back as before. Without glibc nothing changes.
    """
    libc = _glibc()
    if libc is not None:
        libc.mallopt(_M_TRIM_THRESHOLD, 1024 * _MB)
        libc.mallopt(_M_MMAP_THRESHOLD, 32 * _MB)  # the largest that it takes


def give_back_freed_memory() -> bool:
    """Return to the kernel what was freed and is kept; False without glibc, where it cannot."""
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)
    return libc is not None


def _glibc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim") else None
