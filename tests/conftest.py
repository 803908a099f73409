"""Two logical CPUs for every test: what replicas share is tested on any machine. Where TensorFlow
has no XLA for CPUs, tests that ask for it are skipped.
"""

import importlib.metadata
import os
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import pytest  # noqa: E402
import tensorflow as tf  # noqa: E402

# Before the first tensor: TensorFlow's devices are fixed when it starts. Tests that say no device
# run on CPU:0 as ever.
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)

_NO_COMPILER = "could not find registered transfer manager for platform Host"


def _is_tpu_wheel():
    try:
        return bool(importlib.metadata.version("tensorflow-tpu"))
    except importlib.metadata.PackageNotFoundError:
        return False


def pytest_runtest_setup(item):
    """A run that must end by HAMGAN_TESTS_UNTIL (seconds since 1970) leaves out what is slow and
    hasn't begun by then, visibly.
    """
    until = os.environ.get("HAMGAN_TESTS_UNTIL")
    if until and time.time() > float(until) and item.get_closest_marker("slow"):
        pytest.skip("this run's time is used up (HAMGAN_TESTS_UNTIL)")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """TensorFlow's TPU wheel compiles for TPUs only: with it, XLA on a CPU is skipped."""
    try:
        return (yield)
    except Exception as error:
        if _NO_COMPILER in str(error) and _is_tpu_wheel():
            pytest.skip("tensorflow-tpu has no XLA for CPUs")
        raise
