"""Random numbers as pure functions of a key, one key per example.

Every number that a run draws - noise, labels, initial bases - is keyed by (seed, stream, step, index of the example
in the global batch). A forward pass can therefore be repeated, and its result depends neither on how a batch is cut
nor on the number of replicas. `tf.random.*` with op seeds gives neither, and on TPUs it isn't reproducible at all.
"""

import tensorflow as tf

# Named, because the default differs between devices: the same key must give the same numbers on a CPU and on a TPU.
_ALGORITHM = "philox"

# Streams under a run's seed. A number once given stays, so that old runs can be repeated.
TRAINING, EVALUATION = range(2)
# What the numbers of one example are for.
NOISE, LABELS, GENERATOR_BASES, DISCRIMINATOR_BASES = range(4)


def key(seed, *path):
    """A key that is reached from `seed` along `path`.

    Args:
      seed: Python integer or integer tensor.
      *path: integers or integer tensors (stream, step, ...); a different path gives an independent key.

    Returns:
      int32 tensor [2].
    """
    return fold(tf.stack([tf.cast(seed, tf.int32), 0]), *path)


def fold(parent, *path):
    """The key [2] that is reached from the key `parent` [2] along `path`, as in `key`."""
    for part in path:
        parent = tf.random.experimental.stateless_fold_in(parent, part, alg=_ALGORITHM)
    return parent


def fresh_keys(count):
    """Keys that differ at every call, [count, 2] int32: what a caller without a seed gets."""
    limits = tf.int32
    return tf.random.uniform([count, 2], limits.min, limits.max, tf.int32)


def example_keys(parent, indices):
    """One key per example: [B, 2] int32 from a key [2] and the examples' indices [B]."""
    indices = tf.cast(indices, tf.int32)
    return tf.stack([tf.broadcast_to(parent[0], tf.shape(indices)), parent[1] + indices], axis=1)


def _per_example(draw, keys, dtype):
    # A loop over examples, because TensorFlow has no stateless draw with a batch of keys. Its bodies are a few
    # microseconds each, beside milliseconds for the networks.
    return tf.map_fn(draw, keys, fn_output_signature=dtype)


def normal(shape, keys):
    """N(0, 1), float32 [B, *shape]; row i is a function of keys[i] alone."""
    return _per_example(lambda k: tf.random.stateless_normal(shape, k, alg=_ALGORITHM), keys, tf.float32)


def uniform(shape, keys):
    """U(0, 1), float32 [B, *shape]; row i is a function of keys[i] alone."""
    return _per_example(lambda k: tf.random.stateless_uniform(shape, k, alg=_ALGORITHM), keys, tf.float32)


def labels(num_classes, keys):
    """Uniform class labels in [0, num_classes), int32 [B]; entry i is a function of keys[i] alone."""
    return _per_example(
        lambda k: tf.random.stateless_uniform([], k, 0, num_classes, tf.int32, alg=_ALGORITHM), keys, tf.int32
    )


def generator_inputs(parent, indices, *, latent_dim, num_classes):
    """A generator's inputs for examples `indices` [B] under the key `parent` [2].

    Returns:
      z [B, latent_dim] from N(0, 1), labels [B] uniform, keys [B, 2] of the initial bases; each row a function of the
      key and the example's index alone.
    """

    def keys(purpose):
        return example_keys(fold(parent, purpose), indices)

    return normal([latent_dim], keys(NOISE)), labels(num_classes, keys(LABELS)), keys(GENERATOR_BASES)
