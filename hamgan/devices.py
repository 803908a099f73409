"""The kind of device that a graph is built for: what is fastest there isn't so elsewhere."""

import contextlib

import tensorflow as tf

KINDS = ("TPU", "GPU", "CPU")
_planned = None


def kind():
    """The kind of device that will run what is traced now, one of `KINDS`: what is `planned`, else
    that of the strategy, else the first that this host has.
    """
    if _planned is not None:
        return _planned
    if tf.distribute.has_strategy():
        strategy = tf.distribute.get_strategy()
        if isinstance(strategy, tf.distribute.TPUStrategy):
            return "TPU"
        device = tf.DeviceSpec.from_string(strategy.extended.worker_devices[0])
        return device.device_type
    return next(kind for kind in KINDS if tf.config.list_physical_devices(kind))


@contextlib.contextmanager
def planned(kind):
    """What is traced within is for devices of a kind that this host need not have.

    Args:
      kind: one of `KINDS`; None: what this host has.

    Raises:
      ValueError: another kind.
    """
    if kind not in (None, *KINDS):
        raise ValueError(f"The kind of device must be one of {', '.join(KINDS)}, got {kind!r}.")
    global _planned
    before, _planned = _planned, kind
    try:
        yield
    finally:
        _planned = before
