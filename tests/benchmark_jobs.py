"""Jobs that the tests run in processes of their own, and `in_process` for others."""

import os
import signal

import tensorflow as tf

from hamgan.benchmarks import measure


def in_process(job, arguments, *, environment=None):
    """Runs a job here instead of in a process of its own; memory is then what this process makes of
    it.
    """
    del environment
    yield from job(**arguments)


def fail(*, values):
    yield from values
    print("what a library prints isn't taken for a result")
    raise ValueError("that was all")


def be_killed():
    yield 1
    os.kill(os.getpid(), signal.SIGKILL)


def take_memory(*, peak, too_much):
    """Yields the peak memory of a call that takes `peak` bytes and gives them back, then keeps
    `too_much`.
    """

    def call(size):
        return tf.reduce_sum(tf.fill([size // 4], 1.0))

    measure.peak_memory(lambda: call(1000))
    yield measure.peak_memory(lambda: call(peak))
    kept = bytearray(too_much)
    # The watch takes a moment.
    signal.pause()
    del kept
