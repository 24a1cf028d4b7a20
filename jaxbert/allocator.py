"""How a program of ours takes memory from the system."""

import ctypes
import sys

# Of malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8
_NEVER = 2**31 - 1


def keep_freed_memory() -> bool:
    """Have the C library keep memory that is freed, for the next one who asks; whether it can.

    XLA on a CPU allocates its buffers anew at every step. glibc takes large ones from the system and gives them back each time, and
    the kernel clears every page again: a fifth of a step of a small model (benchmarks/allocator.py). The process keeps the memory that
    it had at its peak. Only programs call this, and first of all, since threads that have allocated keep an arena of their own; a
    library leaves its process as it is. MALLOC_ARENA_MAX, MALLOC_TRIM_THRESHOLD_ and MALLOC_MMAP_MAX_ in the environment do the same.
    """
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        # Not every C library has it.
        return False
    return all([mallopt(_M_ARENA_MAX, 1), mallopt(_M_MMAP_MAX, 0), mallopt(_M_TRIM_THRESHOLD, _NEVER)])
