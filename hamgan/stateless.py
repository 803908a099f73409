"""Random numbers as pure functions of a key, one key per example.

Every number that a run draws - noise, labels, initial bases - is keyed by (seed, stream, step,
index of the example in the global batch). A forward pass can therefore be repeated, and its result
depends neither on how a batch is cut nor on the number of replicas. `tf.random.*` with op seeds
gives neither, and on TPUs it isn't reproducible at all.
"""

import math

import numpy as np
import tensorflow as tf

from hamgan import devices, philox
from hamgan.parts import registered

# The same key must give the same numbers on a CPU and on a TPU. So the algorithm is named, because
# the default differs between devices; and only integers are drawn, because XLA makes other floats
# of the same bits than TensorFlow does.
_ALGORITHM = tf.random.Algorithm.PHILOX.value
_SCRAMBLE = np.array([philox.SCRAMBLE], np.uint64)
_UPPER = np.array([0, 1], np.uint64)
_FLOATS = 2**24  # so many numbers below 1 at one distance float32 holds

# Streams under a run's seed. A number once given stays, so that old runs can be repeated.
TRAINING, EVALUATION, ROLLED_BACK = range(3)
# What the numbers of one example are for.
NOISE, LABELS, GENERATOR_BASES, DISCRIMINATOR_BASES, AUGMENTATION, CONSISTENCY = range(6)


def key(seed, *path):
    """A key that is reached from `seed` along `path`.

    Args:
      seed: Python integer in [0, 2^63) or integer tensor.
      *path: integers or integer tensors (stream, step, ...); a different path gives an independent
        key.

    Returns:
      int32 tensor [2].
    """
    return fold(_key_of(tf.convert_to_tensor(seed)), *path)


def _key_of(seed):
    """The lower and the upper 32 bits of a seed, int32 [2]: no two seeds have one key."""
    upper = 0
    if seed.dtype == tf.int64:
        upper = tf.cast(tf.bitwise.right_shift(seed, tf.constant(32, tf.int64)), tf.int32)
    return tf.stack([tf.cast(seed, tf.int32), upper])


def fold(parent, *path):
    """The key [2] that is reached from the key `parent` [2] along `path`, as in `key`."""
    for part in path:
        # The key's type and value would follow the type of `part`: a step counter is int64, a
        # Python integer int32.
        parent = _fold_in(parent, tf.cast(part, tf.int32))
    return parent


def fold_each(parents, part):
    """`fold(parent, part)` of every parent: [B, 2] int32 from keys [B, 2] and one integer."""
    parents = tf.cast(parents, tf.int32)
    if devices.kind() == "CPU":
        return tf.map_fn(lambda parent: fold(parent, part), parents)
    bits = philox.bits(parents)
    return tf.stack([bits, tf.broadcast_to(tf.cast(part, tf.int32), tf.shape(bits))], axis=1)


def _fold_in(parent, part):
    """`tf.random.experimental.stateless_fold_in` of two int32."""
    bits = tf.raw_ops.StatelessRandomUniformFullIntV2(shape=[], dtype=tf.int32, **_philox(parent))
    return tf.stack([bits, part])


def _philox(key):
    """What TensorFlow's kernels take of a key [2], the same as its Python functions make of it.

    Those need four times as many operations for an algorithm that is named; a step's graph has a
    thousand fewer by this, and is there sooner. (`tf.raw_ops.StatelessRandomGetKeyCounter` would be
    one, but XLA's makes others of negative numbers.)
    """
    mixed = tf.raw_ops.StatelessRandomUniformFullIntV2(
        shape=[2], key=_SCRAMBLE, counter=tf.cast(key, tf.uint64), alg=_ALGORITHM, dtype=tf.uint64
    )
    # Operations that GPUs have for this type.
    return dict(key=mixed[:1], counter=mixed * _UPPER, alg=_ALGORITHM)


def fresh_keys(count):
    """Keys that differ at every call, [count, 2] int32: what a caller without a seed gets."""
    limits = tf.int32
    return tf.random.uniform([count, 2], limits.min, limits.max, tf.int32)


def example_keys(parent, indices):
    """One key per example, `fold(parent, index)`: [B, 2] int32 from a key [2] and the examples'
    indices [B].
    """
    indices = tf.cast(indices, tf.int32)
    # A fold puts its number beside a hash of the whole parent, so the hash is the same for every
    # example.
    parent_hash = fold(parent, 0)[0]
    return tf.stack([tf.broadcast_to(parent_hash, tf.shape(indices)), indices], axis=1)


def _integers(shape, key, limit):
    """`tf.random.stateless_uniform` of int32 in [0, limit)."""
    return tf.raw_ops.StatelessRandomUniformIntV2(
        shape=tf.constant(shape, tf.int32), minval=0, maxval=limit, **_philox(key)
    )


def _floats(integers):
    """Integers below _FLOATS -> [0, 1)."""
    return tf.cast(integers, tf.float32) * (1 / _FLOATS)


def _per_example(make, keys, *, drawn, limit, shape, dtype):
    """What `make` makes, [B, *shape], of integers in [0, limit) of each key in keys [B, 2].

    Args:
      make: function int32 [*drawn] -> [*shape] of type dtype, of one example or, with an axis more
        in front, of all.
    """
    if devices.kind() != "CPU":
        return make(philox.integers(drawn, keys, limit))
    rows = tf.map_fn(
        lambda key: make(_integers(drawn, key, limit)), keys, fn_output_signature=dtype
    )
    # Of no examples the loop says no shape.
    return tf.reshape(rows, [tf.shape(keys)[0], *shape])


@registered
def normal(shape, keys):
    """N(0, 1), float32 [B, *shape]; row i is a function of keys[i] alone."""

    def make(integers):
        # Box and Muller (1958).
        radius, angle = tf.unstack(_floats(integers), axis=-1 - len(shape))
        return tf.sqrt(-2 * tf.math.log(1 - radius)) * tf.cos(2 * math.pi * angle)

    return _per_example(make, keys, drawn=[2, *shape], limit=_FLOATS, shape=shape, dtype=tf.float32)


@registered
def uniform(shape, keys):
    """U(0, 1), float32 [B, *shape]; row i is a function of keys[i] alone."""
    return _per_example(_floats, keys, drawn=shape, limit=_FLOATS, shape=shape, dtype=tf.float32)


def truncated_normal(shape, keys, bound):
    """N(0, 1) within [-bound, bound], float32 [B, *shape]; row i is a function of keys[i] alone.

    Args:
      bound: number, or float32 scalar tensor.
    """
    # The distribution function turned round; half a step of the uniform numbers, so that none is at
    # an end.
    u = uniform(shape, keys) + 2**-25
    share = (
        tf.math.erf(bound / math.sqrt(2)) if tf.is_tensor(bound) else math.erf(bound / math.sqrt(2))
    )
    return math.sqrt(2) * tf.math.erfinv((2 * u - 1) * share)


def labels(num_classes, keys):
    """Uniform class labels in [0, num_classes), int32 [B]; entry i is a function of keys[i]
    alone.
    """
    return _per_example(tf.identity, keys, drawn=[], limit=num_classes, shape=[], dtype=tf.int32)


def generator_inputs(parent, indices, *, latent_dim, num_classes):
    """A generator's inputs for examples `indices` [B] under the key `parent` [2].

    Returns:
      z [B, latent_dim] from N(0, 1), labels [B] uniform, keys [B, 2] of the initial bases; each row
      a function of the key and the example's index alone.
    """

    def keys(purpose):
        return example_keys(fold(parent, purpose), indices)

    return (
        normal([latent_dim], keys(NOISE)),
        labels(num_classes, keys(LABELS)),
        keys(GENERATOR_BASES),
    )
