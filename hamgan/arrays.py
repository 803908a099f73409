"""Named arrays in one file."""

import io
import zipfile

import numpy as np
import tensorflow as tf


def load(path):
    """{name: array} of an .npz file, local or remote.

    Raises:
      ValueError: it can't be read.
    """
    try:
        with tf.io.gfile.GFile(path, "rb") as file, np.load(io.BytesIO(file.read())) as arrays:
            return dict(arrays)
    except (
        ValueError,
        OSError,
        EOFError,
        AttributeError,
        zipfile.BadZipFile,
        tf.errors.OpError,
    ) as error:
        raise ValueError(f"{path} can't be read as an .npz file: {error}") from error
