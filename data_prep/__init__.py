"""Jobs that turn images into TFDS data sets, which `hamgan.data.ImageDataset` reads."""

import os

# Before TensorFlow is imported, as in hamgan/cli: its C++ log begins with errors that are none.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
