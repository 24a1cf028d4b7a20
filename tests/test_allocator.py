"""Memory that is freed and wanted again comes without the kernel's help. In processes of their own: it cannot be taken back."""

import os
import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys, threading
from jaxbert.allocator import keep_freed_memory
if sys.argv[1] == "kept":
    assert keep_freed_memory()
import numpy

def work():
    for _ in range(20):
        numpy.ones(32 * 2**20, numpy.uint8)

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

work()
before = faults()
work()
thread = threading.Thread(target=work)
thread.start()
thread.join()
print(faults() - before)
"""


def page_faults(mode: str) -> int:
    """Pages that the kernel gave while 40 times 32 MiB were taken and given back, half of them in another thread."""
    done = subprocess.run([sys.executable, "-c", PROGRAM, mode], capture_output=True, text=True, check=True)
    return int(done.stdout)


LARGE = """
import ctypes, os, re, sys
from jaxbert.allocator import keep_freed_memory
assert keep_freed_memory() is (sys.argv[1] == "kept")
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]

def reserved():
    return int(re.search(r"VmData:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 2**20

before = reserved()
libc.free(libc.malloc(3 * 2**30))
print(reserved() - before)
"""


MANY_SIZES = """
import pathlib, sys, time
from jaxbert import allocator
if sys.argv[1] == "limited":
    allocator._KEPT_SHARE = 100 * 2**20 / allocator._memory()
assert allocator.keep_freed_memory()
import numpy

def resident():
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20

before, small = resident(), []
for size in range(40, 360, 40):
    numpy.ones(size * 2**20, numpy.uint8)
    # It lies behind the hole, which the next size is too large for.
    small.append(bytearray(2**16))
    time.sleep(0.1)
time.sleep(1.5)
print(resident() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's allocator is told")
def test_what_is_kept_has_a_limit():
    """Sizes that grow leave a hole each, 1,440 MiB in all."""
    left = {
        mode: float(
            subprocess.run([sys.executable, "-c", MANY_SIZES, mode], capture_output=True, text=True, check=True).stdout
        )
        for mode in ("unlimited", "limited")
    }
    assert left["limited"] < 150
    assert left["unlimited"] > 300


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's allocator is told")
def test_freed_memory_is_kept_where_that_is_asked_for():
    pages = 32 * 2**20 // 4096
    # All of them once more would be 40 times as many; numpy asks for large pages, which are fewer.
    assert page_faults("kept") < pages // 64
    assert page_faults("plain") > 40 * 16


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's allocator is told")
@pytest.mark.parametrize(("mode", "gibibytes"), [("kept", 3), ("chosen", 0)])
def test_however_large_it_is_unless_the_environment_has_chosen(mode: str, gibibytes: int):
    """3 GiB that nobody touches, and so cost nothing."""
    environment = os.environ | ({"MALLOC_TRIM_THRESHOLD_": "131072"} if mode == "chosen" else {})
    done = subprocess.run(
        [sys.executable, "-c", LARGE, mode], capture_output=True, text=True, check=True, env=environment
    )
    assert round(float(done.stdout)) == gibibytes
