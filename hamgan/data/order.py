"""The order of the training stream: a function of (seed, epoch, position in the epoch) alone."""

import functools
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from hamgan.data.places import file_of

# Named, because the default may differ between devices and the order must not.
_ALGORITHM = "philox"

# Files read at once, and records taken from each in turn: TFDS's own numbers. They are part of the
# order: other numbers, another stream.
_INTERLEAVE = 16

# What an epoch's flips are drawn with, beside the two keys that the epoch's own is split into.
_FLIPS = 2


def check_at_least(argument: str, value: int, minimum: int) -> None:
    """ValueError unless an argument is as large as it must be."""
    if value < minimum:
        raise ValueError(f"{argument} must be at least {minimum}, got {value}.")


def check_shard(shard_index: int, num_shards: int) -> None:
    """ValueError unless there is such a shard."""
    check_at_least("num_shards", num_shards, 1)
    if not 0 <= shard_index < num_shards:
        raise ValueError(
            f"shard_index must be in [0, num_shards) = [0, {num_shards}), got {shard_index}."
        )


def check_stream(
    *, batch_size: int, seed: int, start_batch: int, shard_index: int, num_shards: int
) -> None:
    """ValueError unless these are arguments of a training stream."""
    check_at_least("batch_size", batch_size, 1)
    check_at_least("start_batch", start_batch, 0)
    check_shard(shard_index, num_shards)
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed must be in [0, 2**63), got {seed}.")


def _files_of(elements, files):
    """Which files hold any of these elements, bool [number of files]."""
    numbers = [batch["number"] for batch in elements.batch(2**16).as_numpy_iterator()]
    return np.isin(np.arange(len(files["path"])), file_of(files, np.concatenate(numbers)))


def _flips(key, count):
    """Whether each position of an epoch is mirrored, bool [count]."""
    flip_key = tf.random.experimental.stateless_fold_in(key, _FLIPS, alg=_ALGORITHM)
    drawn = tf.random.stateless_uniform([count], flip_key, 0, 2, tf.int32, alg=_ALGORITHM)
    return drawn == 1


def shuffled(
    files: dict[str, np.ndarray],
    *,
    seed: int,
    start: int,
    read: Callable[[dict[str, tf.Tensor]], tf.data.Dataset],
    shuffle_buffer: int,
    flip: bool,
) -> tf.data.Dataset:
    """What `read` gives for every file, shuffled anew each epoch, for ever, from `start` on.

    The permutation doesn't depend on what is read: records and their numbers come in the same
    order.
    """
    num_files = len(files["path"])
    num_examples = int(files["take"].sum())
    first_epoch, skipped = divmod(start, num_examples)
    needed = np.full(num_files, True)
    if skipped and read is not numbers_of:
        again = functools.partial(shuffled, files, seed=seed, start=start, flip=flip)
        rest = again(read=numbers_of, shuffle_buffer=shuffle_buffer)
        needed = _files_of(rest.take(num_examples - skipped), files)

    # Threads cost more than numbers do.
    parallel = (
        {} if read is numbers_of else dict(num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    )

    def epoch_stream(epoch):
        # The buffer's seed would otherwise be mixed with the global one of tf.random.set_seed.
        # While tracing, this sets the seed of the traced function and of nothing else. Not 0:
        # after a 0, TensorFlow compares the buffer's seed in Python.
        tf.compat.v1.set_random_seed(1)
        is_first = epoch == first_epoch
        key = tf.stack([tf.constant(seed, tf.int64), epoch])
        file_key, buffer_key = tf.unstack(
            tf.random.experimental.stateless_split(key, 2, alg=_ALGORITHM)
        )
        file_order = tf.random.experimental.stateless_shuffle(
            tf.range(num_files), seed=file_key, alg=_ALGORITHM
        )
        columns = {**files, "needed": needed | ~is_first}
        shuffled_files = {name: tf.gather(column, file_order) for name, column in columns.items()}
        skip = tf.where(is_first, tf.constant(skipped, tf.int64), 0)
        elements = (
            tf.data.Dataset.from_tensor_slices(shuffled_files)
            .interleave(
                read,
                cycle_length=min(_INTERLEAVE, num_files),
                block_length=_INTERLEAVE,
                **parallel,
            )
            .shuffle(
                min(shuffle_buffer, num_examples),
                seed=buffer_key[0],
                reshuffle_each_iteration=False,
            )
            .skip(skip)
        )
        if not flip:
            return elements
        flips = tf.data.Dataset.from_tensor_slices(_flips(key, num_examples)[skip:])
        return tf.data.Dataset.zip(elements, flips).map(
            lambda element, flipped: {**element, "flip": flipped}
        )

    return tf.data.Dataset.counter(first_epoch).flat_map(epoch_stream)


def range_of(file: dict[str, tf.Tensor]) -> tf.data.Dataset:
    return tf.data.Dataset.range(file["first"], file["first"] + file["take"])


def numbers_of(file: dict[str, tf.Tensor]) -> tf.data.Dataset:
    """{'number'} of a file's records."""
    return tf.data.Dataset.zip({"number": range_of(file)})
