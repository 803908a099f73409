"""HamGAN: class-conditional GANs with a matrix decomposition for global context, on TensorFlow and
Cloud TPUs.
"""

__version__ = "0.1.0"
