"""The C library's allocator, in steps that ask for the same memory again and again."""

import contextlib
import ctypes
import os

# Of glibc's `mallopt`, and what is set: blocks below the largest limit that it takes come from the
# heap, and the heap's end goes back to the system where more than this is free.
TRIM_THRESHOLD, MMAP_THRESHOLD = (-1, 512 << 20), (-3, 32 << 20)


def keep_freed_memory() -> None:
    """Let the process keep what a step frees, for the next one.

    glibc gives the heap's end back to the system, and every step would touch the same pages anew: a
    quarter of a small Trans-Net's time. Other C libraries are left as they are, and so is one whose
    limits the environment sets (`MALLOC_TRIM_THRESHOLD_`). No number depends on it.
    """
    if any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        return
    with contextlib.suppress(OSError, AttributeError, TypeError):
        library = ctypes.CDLL(None)
        _ = library.gnu_get_libc_version  # no other library has it
        for parameter, limit in (MMAP_THRESHOLD, TRIM_THRESHOLD):
            library.mallopt(parameter, limit)
