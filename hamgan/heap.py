"""Memory of a step on CPU cores, kept for the next step.

A step makes and frees the same gigabytes again and again. glibc gives a large block back to the
system when it is freed and asks for it anew: at full size 150,000 to 220,000 pages a step, which
the system fills with zeros. Kept in one heap they are 10 to 9,000. Measured on two cores (AMD EPYC
with AVX2, batch 4, float32, five processes each in turns): 0.93 of the time, 0.96 of the memory;
with a heap for each thread 0.95 and 1.2. Steps of the digits take as long as before.
"""

import ctypes
import os
import platform

# Of malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -2, -3, -8
# More threads than these would wait for the one heap; there nothing was measured.
_MOST_CORES = 8
# What the user has chosen stays.
_CHOICES = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")


def keep():
    """Lets this process keep freed memory, on Linux with glibc and few cores.

    Returns:
      Whether it does; not where the environment has settings of malloc's.
    """
    chosen = any(name.startswith(_CHOICES) for name in os.environ)
    few = len(os.sched_getaffinity(0)) <= _MOST_CORES if hasattr(os, "sched_getaffinity") else False
    if chosen or not few or platform.libc_ver()[0] != "glibc":
        return False
    set_option = ctypes.CDLL(None).mallopt
    return all(
        [
            set_option(_MMAP_THRESHOLD, 2**30),
            set_option(_TRIM_THRESHOLD, 2**31 - 1),
            set_option(_TOP_PAD, 2**28),
            set_option(_ARENA_MAX, 1),
        ]
    )
