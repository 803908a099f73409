"""A replica's batch in parts, computed one after the other for less memory."""

import tensorflow as tf

from hamgan import devices, guard


def total(function, real, indices, *, count, networks):
    """What the parts of a batch add up to.

    The parts are rounds of a loop where there can be one, so that the graph doesn't grow with their
    number. All of them normalise by the same sigma, and u moves on once, as with the whole batch.

    Args:
      function: ({name: tensor [b / count, ...]}, indices [b / count]) -> (gradients, {name: float32
        scalar}) of a part.
      real: {name: tensor [b, ...]}.
      indices: [b] of its examples in the global batch.
      count: how many parts, a divisor of b.
      networks: whose kernels keep their spectral norm in all parts.

    Returns:
      (gradients, their sum; {name: mean of the values over the parts}).
    """
    if count == 1:
        return function(real, indices)
    layers = [layer for network in networks for layer in guard.spectral_layers(network).values()]
    vectors = [tf.convert_to_tensor(layer.u) for layer in layers]
    size = indices.shape[0] // count

    def of_part(number):
        for layer, u in zip(layers, vectors, strict=True):
            layer.u.assign(u)
        part = {name: _part(value, number, count, size) for name, value in real.items()}
        gradients, values = function(part, _part(indices, number, count, size))
        return list(gradients), values

    def add(number, gradients, sums):
        more, values = of_part(number)
        gradients = [a + b for a, b in zip(gradients, more, strict=True)]
        return number + 1, gradients, sums + tf.stack(list(values.values()))

    # The first part stands by itself, so that a loop knows what it adds up.
    gradients, values = of_part(0)
    state = 1, gradients, tf.stack(list(values.values()))
    if _can_loop():
        _, gradients, sums = tf.while_loop(
            lambda number, *_: number < count, add, state, parallel_iterations=1
        )
    else:
        for _ in range(1, count):
            # Side by side the parts would take the memory of the whole batch.
            with tf.control_dependencies(state[1]):
                state = add(*state)
        _, gradients, sums = state
    means = tf.unstack(sums / count)
    return gradients, dict(zip(values, means, strict=True))


def _part(value, number, count, size):
    return tf.reshape(value, [count, size, *value.shape[1:]])[number]


def _can_loop():
    """Whether what replicas do together may stand in a loop: not with a mirrored strategy, whose
    replicas meet outside of any.
    """
    replicas = tf.distribute.get_replica_context().num_replicas_in_sync
    return replicas == 1 or devices.kind() == "TPU"
