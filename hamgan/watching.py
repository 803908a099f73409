"""What a run tells of itself while it goes: time spent waiting for input, memory."""

import collections
import resource
import sys

import tensorflow as tf

GIB = 2**30


class TimedBatches(collections.namedtuple("TimedBatches", ["batches", "seconds"])):
    """An iterator over batches that adds up, on the host and inside the device loop, how long
    `next` takes.

    It is an upper bound of what input costs. Where a device works ahead of the host (GPU, TPU),
    part of it may be hidden behind the device's work. On a CPU, operations of the step that need no
    batch run meanwhile; a single core may finish them before it reads the clock.

    Attributes (a tuple of them, so that a traced function takes other batches without being traced
    again):
      batches: an iterator of `tf.data` or of a strategy.
      seconds: float64 variable, the sum.
    """

    @classmethod
    def of(cls, batches):
        """Times the iterator `batches`."""
        with tf.device("CPU:0"):
            return cls(batches, tf.Variable(0.0, dtype=tf.float64, trainable=False))

    def __next__(self):
        asked = tf.timestamp()
        # A graph has no order of its own: each reading of the clock is tied to what it is to
        # measure.
        with tf.control_dependencies([asked]):
            batch = next(self.batches)
        with tf.control_dependencies(tf.nest.flatten(batch, expand_composites=True)):
            self.seconds.assign_add(tf.timestamp() - asked)
        return batch

    def waited(self):
        """Seconds since the last call of this method."""
        seconds = float(self.seconds.numpy())
        self.seconds.assign(0.0)
        return seconds


def memory():
    """{name: GiB}: peak of this process on the host, and peak of the fullest accelerator where
    TensorFlow tells it.
    """
    # Kilobytes on Linux, bytes on macOS.
    unit = 1 if sys.platform == "darwin" else 1024
    found = {"memory/host_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GIB}
    peaks = []
    for device in tf.config.list_logical_devices():
        if device.device_type in ("GPU", "TPU"):
            try:
                peaks.append(tf.config.experimental.get_memory_info(device.name)["peak"] / GIB)
            except (ValueError, tf.errors.OpError):  # not every runtime keeps count
                pass
    return {**found, "memory/device_gib": max(peaks)} if peaks else found


def losses_of_gan(metrics):
    """{name: text} of both losses, for the progress bar."""
    return {
        "D": f"{metrics['loss/discriminator']:.3f}",
        "G": f"{metrics['loss/generator']:.3f}",
    }
