"""How a program of ours takes memory from the system."""

import ctypes
import os
import pathlib
import sys
import threading
import time
from collections.abc import Callable

# Of malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8
_NEVER = -1
# Share of the memory there is that is kept free, at most, and seconds between two looks at it.
_KEPT_SHARE, _SECONDS = 0.2, 0.5
_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
_VARIABLES = ("MALLOC_ARENA_MAX", "MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_")


def keep_freed_memory() -> bool:
    """Have glibc keep memory that is freed, for the next one who asks; False where that is left as it was.

    XLA on a CPU allocates its buffers anew at every step. glibc takes large ones from the system and gives them back each time, and
    the kernel clears every page again (benchmarks/allocator.py measures what that costs). The price is memory: the process
    keeps what it had at its peak, and of programs of several sizes, as batches of few and of many rows are, the peak of each, since
    small objects come to lie between. What is free and kept is therefore given back whenever it is more than a fifth of the memory
    that there is. Only programs call this, and first of all, since threads that have allocated keep an arena of their own; a library
    leaves its process as it is. Who sets MALLOC_ARENA_MAX, MALLOC_MMAP_MAX_ or MALLOC_TRIM_THRESHOLD_ in the environment has chosen
    already.
    """
    if sys.platform != "linux" or any(name in os.environ for name in _VARIABLES):
        return False
    try:
        library = ctypes.CDLL(None)
        mallopt, trim, kept = library.mallopt, library.malloc_trim, _kept_in(library)
    except (OSError, AttributeError):
        # Not every C library has them; glibc since 2.33.
        return False
    if not all([mallopt(_M_ARENA_MAX, 1), mallopt(_M_MMAP_MAX, 0), mallopt(_M_TRIM_THRESHOLD, _NEVER)]):
        return False
    limit = int(_KEPT_SHARE * _memory())
    threading.Thread(target=_give_back, args=(kept, trim, limit), name="allocator", daemon=True).start()
    return True


class _MallocInfo(ctypes.Structure):
    """struct mallinfo2."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()
    ]


def _kept_in(library: ctypes.CDLL) -> Callable[[], int]:
    """Tells how many bytes of the process are in memory and not in use: what is free, and the program itself."""
    info = library.mallinfo2
    info.restype = _MallocInfo
    page = os.sysconf("SC_PAGE_SIZE")

    def kept() -> int:
        resident, shared = map(int, pathlib.Path("/proc/self/statm").read_text(encoding="ascii").split()[1:3])
        return (resident - shared) * page - info().uordblks

    return kept


def _memory() -> int:
    """Bytes that this process may have: the machine's, or what its container is allowed."""
    found = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for path in map(pathlib.Path, _LIMITS):
        try:
            found.append(int(path.read_text(encoding="ascii")))
        except (OSError, ValueError):
            # There is none, or it is "max".
            continue
    return min(found)


def _give_back(kept: Callable[[], int], trim: Callable[[int], int], limit: int) -> None:
    while True:
        time.sleep(_SECONDS)
        if kept() > limit:
            trim(0)
            # What cannot be given back is no hole: asking again and again would only cost.
            limit = max(limit, kept() + limit // 4)
