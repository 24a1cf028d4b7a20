"""How a program of ours takes memory from the system."""

import ctypes
import os
import sys

# Of malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8
_NEVER = -1
_VARIABLES = ("MALLOC_ARENA_MAX", "MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_")


def keep_freed_memory() -> bool:
    """Have glibc keep memory that is freed, for the next one who asks; False where that is left as it was.

    XLA on a CPU allocates its buffers anew at every step. glibc takes large ones from the system and gives them back each time, and
    the kernel clears every page again (benchmarks/allocator.py measures what that costs). The price is memory: the process
    keeps what it had at its peak, and holes between small objects may raise that. Only programs call this, and first of all, since
    threads that have allocated keep an arena of their own; a library leaves its process as it is. Who sets MALLOC_ARENA_MAX,
    MALLOC_MMAP_MAX_ or MALLOC_TRIM_THRESHOLD_ in the environment has chosen already.
    """
    if sys.platform != "linux" or any(name in os.environ for name in _VARIABLES):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        # Not every C library has it.
        return False
    return all([mallopt(_M_ARENA_MAX, 1), mallopt(_M_MMAP_MAX, 0), mallopt(_M_TRIM_THRESHOLD, _NEVER)])
