"""The command line: flags, and the configuration that gin files give."""

import os

# Before TensorFlow is imported: on a machine without a GPU its C++ log begins with CUDA errors.
# What matters is raised in Python.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
