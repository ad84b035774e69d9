"""The allocator of the C library, settled for training on a CPU."""

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h


def keep_buffers() -> bool:
    """Have glibc keep the memory that a step frees, for the next step; for the whole process, once and for all.

    By default every buffer above 32 MiB is mapped from the system when it is made and unmapped when it is freed, and
    the system clears each of its pages again: at a batch of 256 small images that can cost a third of a step. The
    process then holds its peak until it ends.

    Returns:
        Whether there was something to settle: not with other C libraries, which are left as they are.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, -1))
