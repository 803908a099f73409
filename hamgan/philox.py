"""Philox 4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") for many keys
at once, bit for bit what TensorFlow's kernels draw for one.

TensorFlow has no stateless draw with a batch of keys. On CPUs a loop over them is as fast as this,
and is traced sooner. Accelerators would take the loop's rounds one after another: a thousand and
more in a step of 128 examples a core, each with 160 to 250 instructions that hardly do anything
(v5e).
"""

import math

import tensorflow as tf

# The multipliers, and what the keys grow by from round to round.
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_GROWTH = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_WORD = 2**32 - 1
# The key by which TensorFlow scrambles a key, which is the counter then.
SCRAMBLE = 0x02461E293EC8F720


def integers(shape, keys, limit):
    """`tf.random.stateless_uniform(shape, key, 0, limit, tf.int32, alg="philox")` for each of keys.

    Args:
      shape: of what is drawn for one key, Python integers.
      keys: integers [B, 2] of 32 bits.
      limit: Python integer, 1 to 2^31 - 1.

    Returns:
      int32 [B, *shape].

    Raises:
      ValueError: a limit out of its range.
    """
    if not 1 <= limit < 2**31:
        raise ValueError(f"limit must be from 1 to 2^31 - 1, got {limit}.")
    count = math.prod(shape)
    words = _words_of(keys, -(-count // 4)) % tf.constant(limit, tf.uint64)
    rows = tf.reshape(words, [-1, 4 * words.shape[1]])[:, :count]
    # int32 comes last: GPUs keep it in the host's memory, and copy.
    return tf.cast(tf.reshape(rows, [tf.shape(keys)[0], *shape]), tf.int32)


def bits(keys):
    """`tf.random.stateless_uniform([], key, None, None, tf.int32, alg="philox")` for each of keys.

    Args:
      keys: integers [B, 2] of 32 bits.

    Returns:
      int32 [B], all of whose 32 bits are drawn.
    """
    words = _words_of(keys, 1)[:, 0, 0]
    # Two's complement; what a cast makes of a number out of range is nobody's promise.
    negative = tf.cast(words >= tf.constant(2**31, tf.uint64), tf.int64)
    return tf.cast(tf.cast(words, tf.int64) - negative * 2**32, tf.int32)


def _words_of(keys, groups):
    """`_words` of the first groups, uint64 [B, groups, 4]."""
    keys = tf.ensure_shape(tf.cast(keys, tf.int32), [None, 2])
    return _words(keys, tf.range(groups, dtype=tf.int32))


@tf.function(
    autograph=False,
    input_signature=[tf.TensorSpec([None, 2], tf.int32), tf.TensorSpec([None], tf.int32)],
)
def _words(keys, groups):
    """Four words for each key [B, 2] and each number [G] of a group, uint64 [B, G, 4].

    A function, so that its 300 operations are traced once. All of them have kernels for GPUs.
    """
    # Negative halves fill the upper words with ones, as TensorFlow's cast does.
    wide = tf.cast(keys, tf.uint64)
    first, second = wide[:, :1], wide[:, 1:]
    scramble = [tf.constant(half, tf.uint64) for half in (SCRAMBLE & _WORD, SCRAMBLE >> 32)]
    counter = [half for number in (first, second) for half in _halves(number)[::-1]]
    mixed = _rounds(counter, scramble)
    counter = [tf.cast(groups, tf.uint64), tf.zeros([], tf.uint64), *mixed[2:]]
    return tf.stack(_rounds(counter, mixed[:2]), axis=-1)


def _rounds(counter, key):
    """Words 0 to 3 of a counter and 0 and 1 of a key, as uint64 below 2^32 -> words 0 to 3."""
    multipliers = [tf.constant(number, tf.uint64) for number in _MULTIPLIERS]
    word = tf.constant(_WORD, tf.uint64)
    for index in range(_ROUNDS):
        (high_0, low_0), (high_2, low_2) = (
            _halves(counter[2 * i] * multipliers[i]) for i in range(2)
        )
        keys = [
            (key[i] + tf.constant(index * _GROWTH[i] & _WORD, tf.uint64)) & word for i in range(2)
        ]
        counter = [high_2 ^ counter[1] ^ keys[0], low_2, high_0 ^ counter[3] ^ keys[1], low_0]
    return counter


def _halves(number):
    """The upper and the lower 32 bits of uint64."""
    upper = tf.bitwise.right_shift(number, tf.constant(32, tf.uint64))
    return upper, number & tf.constant(_WORD, tf.uint64)
