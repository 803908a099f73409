"""The command line: flags, and the configuration that gin files give."""

import os
import platform

# Before TensorFlow is imported: on a machine without a GPU its C++ log begins with CUDA errors.
# What matters is raised in Python.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# TensorFlow takes oneDNN's kernels by itself where the processor has instructions for networks
# (AVX-512 VNNI, AMX). On two cores of an AMD EPYC with AVX2 the digits' step takes 0.75 to 0.87 of
# the time with them, the full-size one 0.98 to 1.02.
if platform.machine() in ("x86_64", "AMD64"):
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
