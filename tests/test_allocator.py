"""Memory that is freed and wanted again comes without the kernel's help. In processes of their own: it cannot be taken back."""

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


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's allocator is told")
def test_freed_memory_is_kept_where_that_is_asked_for():
    pages = 32 * 2**20 // 4096
    # All of them once more would be 40 times as many; numpy asks for large pages, which are fewer.
    assert page_faults("kept") < pages // 64
    assert page_faults("plain") > 40 * 16
