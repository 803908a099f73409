"""A replica's batch in parts, computed one after the other for less memory."""

import contextlib

import tensorflow as tf

from hamgan import guard


def parts(real, indices, count):
    """A batch in equal parts.

    Args:
      real: {name: tensor [b, ...]}.
      indices: [b] of its examples in the global batch.
      count: how many parts, a divisor of b.

    Returns:
      List of (real, indices) of each part.
    """
    if count == 1:
        return [(real, indices)]
    size = indices.shape[0] // count
    rows = [slice(first, first + size) for first in range(0, size * count, size)]
    return [({name: v[part] for name, v in real.items()}, indices[part]) for part in rows]


class Total:
    """What the parts of a batch add up to.

    Args:
      networks: whose kernels keep their spectral norm in all parts.

    Attributes:
      gradients: their sum, a list.
    """

    def __init__(self, networks):
        self.gradients, self._sums, self._count = None, None, 0
        self._layers = [
            layer for network in networks for layer in guard.spectral_layers(network).values()
        ]
        self._vectors = [tf.convert_to_tensor(layer.u) for layer in self._layers]

    @contextlib.contextmanager
    def next_part(self):
        """Within, a part is computed: side by side they would take the memory of the whole
        batch.
        """
        if self._count == 0:
            yield
            return
        with tf.control_dependencies(self.gradients):
            # All parts normalise by the same sigma, and u moves on once, as with the whole batch.
            for layer, u in zip(self._layers, self._vectors, strict=True):
                layer.u.assign(u)
            yield

    def add(self, gradients, values):
        """Args: the gradients of a part, a list, and {name: value} of its values."""
        self._count += 1
        if self.gradients is None:
            self.gradients, self._sums = gradients, values
        else:
            self.gradients = [a + b for a, b in zip(self.gradients, gradients, strict=True)]
            self._sums = {name: self._sums[name] + value for name, value in values.items()}

    def means(self):
        """{name: mean of the values over the parts}."""
        if self._count == 1:
            return dict(self._sums)
        return {name: value / self._count for name, value in self._sums.items()}
