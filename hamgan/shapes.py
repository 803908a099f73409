"""What layers ask of their inputs' shapes."""

import keras
import tensorflow as tf


def sizes(x):
    """The shape of x, integers where they are known and scalars where not."""
    dynamic = tf.shape(x)
    return [dynamic[axis] if size is None else size for axis, size in enumerate(x.shape)]


def check_map(layer, shape):
    """Feature maps are [B, H, W, C] with a known number of channels.

    TensorFlow's own kernels end the process at some other ranks.

    Args:
      layer: the layer that asks, for the error.
      shape: of its input, `None` where a size is unknown.

    Raises:
      ValueError: another rank, an unknown one, or an unknown number of channels; or Keras is set to
        'channels_first'.
    """
    kind = type(layer).__name__
    if keras.config.image_data_format() != "channels_last":
        raise ValueError(
            f"{kind}: keras.config.image_data_format() must be 'channels_last', since maps are "
            f"[B, H, W, C], got {keras.config.image_data_format()!r}."
        )
    _check(kind, shape, "[B, H, W, C]")


def check_rows(layer, shape):
    """As `check_map`, for [B, C]."""
    _check(type(layer).__name__, shape, "[B, C]")


def _check(kind, shape, expected):
    rank = expected.count(",") + 1
    sizes = None if getattr(shape, "rank", 0) is None else tuple(shape)
    if sizes is None or len(sizes) != rank or sizes[-1] is None:
        raise ValueError(f"{kind}: the input must be {expected} with C known, got shape {sizes}.")


def class_labels(layer, labels):
    """Labels [B] int of labels [B] or [B, 1].

    Args:
      layer: the layer that asks, for the error.
      labels: integers, or the float32 that a Keras `Input` is of where nothing else is said.

    Raises:
      ValueError: another shape, or a type that can't hold class numbers.
    """
    kind = type(layer).__name__
    labels = tf.convert_to_tensor(labels)
    if labels.shape.rank not in (1, 2) or (labels.shape.rank == 2 and labels.shape[1] != 1):
        raise ValueError(f"{kind}: labels must be [B] or [B, 1], got shape {labels.shape}.")
    if not (labels.dtype.is_integer or labels.dtype in (tf.float32, tf.float64)):
        # bfloat16 has no 257: Keras has rounded the labels before any layer sees them.
        raise ValueError(
            f"{kind}: labels must be integers, got {labels.dtype.name}. In mixed precision Keras "
            'rounds labels that are floats: give the input dtype="int32".'
        )
    if not labels.dtype.is_integer:
        labels = tf.cast(labels, tf.int32)
    return labels[:, 0] if labels.shape.rank == 2 else labels
