"""Two logical CPUs for every test: what replicas share is tested on any machine."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import tensorflow as tf  # noqa: E402

# Before the first tensor: TensorFlow's devices are fixed when it starts. Tests that say no device
# run on CPU:0 as ever.
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)
