"""HamGAN: class-conditional GANs with a matrix decomposition for global context, on TensorFlow and
Cloud TPUs.
"""

import importlib

__version__ = "0.1.0"

# Layers for anybody's model, `from hamgan import Hamburger`; TensorFlow is imported with the first.
_LAYERS = (
    "FixedBases",
    "Hamburger",
    "HamburgerV2",
    "HamburgerV2Plus",
    "LearnedBases",
    "RandomBases",
    "SelfAttention",
    "SparseAttention",
    "WarmStartBases",
)


def __getattr__(name):
    if name in _LAYERS:
        return getattr(importlib.import_module("hamgan.context"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return sorted({*globals(), *_LAYERS})
