"""A generator as an ONNX graph: noise and labels to pixels, for runtimes without TensorFlow."""

import io

import numpy as np
import tensorflow as tf

from hamgan.export import saved_model
from hamgan.run import records

OPSET = 17


def _import_tf2onnx():
    try:
        import onnx
        import tf2onnx
    except ImportError as error:
        raise ValueError(
            f"ONNX needs the extra onnx ({error}): pip install 'hamgan[onnx]'."
        ) from None
    return tf2onnx, onnx


def check():
    """ValueError unless an ONNX graph can be written, before anything is computed."""
    _import_tf2onnx()


def save(path, generator, *, seed=0):
    """Writes a graph of the inputs z float32 [B, latent_dim] and label int64 [B], and the output
    pixels float32 [B, S, S, 3] in [-1, 1].

    ONNX has no keyed random numbers: the initial bases are constants, those of the SavedModel's
    images from noise. It has no assertions either: whoever calls the graph sees to it that noise is
    finite and labels are those of classes, one for each row.

    Raises:
      ValueError: the extra `onnx` isn't installed.
    """
    tf2onnx, _ = _import_tf2onnx()
    bases = _constant_bases(generator, seed)

    @tf.function(
        input_signature=[
            tf.TensorSpec([None, generator.latent_dim], tf.float32, "z"),
            tf.TensorSpec([None], tf.int64, "label"),
        ]
    )
    def pixels(z, label):
        more = {}
        if bases:
            more["initial"] = lambda keys: {
                ham: tf.repeat(tf.constant(of), tf.shape(z)[0], axis=0) for ham, of in bases.items()
            }
        keys = tf.zeros([tf.shape(z)[0], 2], tf.int32)
        found = generator(z, tf.cast(label, tf.int32), training=False, keys=keys, **more)
        return {"pixels": found}

    proto, _ = tf2onnx.convert.from_function(
        pixels, input_signature=pixels.input_signature, opset=OPSET
    )
    buffer = io.BytesIO(proto.SerializeToString())
    records.write_whole(path, buffer.getvalue())


def _constant_bases(generator, seed):
    """{ham: [1, S, D, R]} of a generator with a Hamburger, else nothing."""
    module = getattr(generator, "context", None)
    if not hasattr(module, "initial"):
        return {}
    initial = module.initial(saved_model.keys_of_noise(seed, 1))
    return {ham: np.asarray(of) for ham, of in initial.items()}
