"""What the device says of its own health while it trains.

All of it is a few numbers per step or per host call, read from tensors that the step has at hand.
"""

import tensorflow as tf

from hamgan.spectral import SpectralLayer


def sizes(tensors):
    """Half the squared norm of each tensor, [len(tensors)] float32: one pass over each and no copy.

    Not finite where an entry isn't, or is so large (above 1e19) that its square isn't.
    """
    return tf.stack([tf.nn.l2_loss(tf.convert_to_tensor(tensor)) for tensor in tensors])


def norm(sizes):
    """The norm of all tensors joined, from their `sizes`."""
    return tf.sqrt(2 * tf.reduce_sum(sizes))


def first_bad(values):
    """The index of the first entry of a vector that isn't finite, int32; -1 where all are."""
    bad = ~tf.math.is_finite(values)
    return tf.where(tf.reduce_any(bad), tf.argmax(bad, output_type=tf.int32), -1)


def spectral_layers(network):
    """{name: layer} of the spectrally normalised layers of a network, by their names in
    checkpoints.
    """
    layers = [layer for layer in network._flatten_layers() if isinstance(layer, SpectralLayer)]
    return {layer.kernel.path.removesuffix("/kernel"): layer for layer in layers}
