"""The kind of device that a graph is built for: what is fastest there isn't so elsewhere."""

import contextlib

import tensorflow as tf

_planned = None


def for_cpu():
    """Whether what is traced now will run on CPUs."""
    if _planned is not None:
        return _planned == "CPU"
    return not (tf.config.list_physical_devices("TPU") or tf.config.list_physical_devices("GPU"))


@contextlib.contextmanager
def planned(kind):
    """What is traced within is for devices of a kind that this host need not have.

    Args:
      kind: 'CPU', 'GPU' or 'TPU'; None: what this host has.
    """
    global _planned
    before, _planned = _planned, kind
    try:
        yield
    finally:
        _planned = before
