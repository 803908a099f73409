"""What the device says of its own health while it trains.

All of it is a few numbers per step or per host call, read from tensors that the step has at hand.
"""

import tensorflow as tf

from hamgan.layers import layers_of
from hamgan.spectral import SpectralLayer


def sizes(tensors):
    """Half the squared norm of each of {name: tensor}: one pass over each and no copy.

    Not finite where an entry isn't, or is so large (above 1e19) that its square isn't.

    Returns:
      {name: float32 scalar}.
    """
    return {name: tf.nn.l2_loss(tf.convert_to_tensor(tensor)) for name, tensor in tensors.items()}


def sizes_of_variables(kind, network):
    """`sizes` of a network's variables, {'KIND/VARIABLE': scalar}."""
    return sizes({f"{kind}/{variable.path}": variable for variable in network.variables})


def norm(sizes):
    """The norm of all tensors joined, from their `sizes`."""
    return tf.sqrt(2 * tf.reduce_sum(tf.stack(list(sizes.values()))))


def first_bad(values):
    """The index of the first entry of a vector that isn't finite, int32; -1 where all are."""
    bad = ~tf.math.is_finite(values)
    return tf.where(tf.reduce_any(bad), tf.argmax(bad, output_type=tf.int32), -1)


def spectral_layers(network):
    """{name: layer} of the spectrally normalised layers of a network, by their names in
    checkpoints.
    """
    layers = layers_of(network, SpectralLayer)
    return {layer.kernel.path.removesuffix("/kernel"): layer for layer in layers}
