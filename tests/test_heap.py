"""Whether freed memory is kept for the next step."""

import os
import platform
import subprocess
import sys

import pytest

from hamgan import heap

_GLIBC = platform.libc_ver()[0] == "glibc"
# Pages that the system fills anew for a block of 64 MB, taken and given back ten times.
_FAULTS = """
import resource
from hamgan import heap
print(heap.keep())
size = 2**26
def fault():
    b"x" * size
fault()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    fault()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def in_process(**more):
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(heap._CHOICES)
    }
    done = subprocess.run(
        [sys.executable, "-c", _FAULTS],
        env={**environment, **more},
        capture_output=True,
        text=True,
        check=True,
    )
    kept, faults = done.stdout.split()
    return kept == "True", int(faults)


@pytest.mark.skipif(not _GLIBC, reason="the settings are glibc's")
@pytest.mark.skipif((os.cpu_count() or 1) > heap._MOST_CORES, reason="this machine has many cores")
def test_blocks_come_back_from_the_heap():
    kept, faults = in_process()
    assert kept and faults < 100
    # A choice of the user's stands, and with it a page is new each time.
    kept, faults = in_process(MALLOC_MMAP_THRESHOLD_="65536")
    assert not kept and faults > 10 * 2**26 / os.sysconf("SC_PAGE_SIZE") * 0.9


def test_many_cores_and_other_libraries_are_left_alone(monkeypatch):
    for name in list(os.environ):
        if name.startswith(heap._CHOICES):
            monkeypatch.delenv(name)
    many = range(heap._MOST_CORES + 1)
    monkeypatch.setattr(heap.os, "sched_getaffinity", lambda _: many, raising=False)
    assert not heap.keep()
    monkeypatch.setattr(heap.os, "sched_getaffinity", lambda _: range(2))
    monkeypatch.setattr(heap.platform, "libc_ver", lambda: ("", ""))
    assert not heap.keep()
