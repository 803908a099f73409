"""Attention over the whole image: Zhang et al. 2019 (SAGAN), Daras et al. 2020 ("Your Local GAN").

The layers are called as Hamburgers are; labels and keys have no effect.
"""

import keras
import numpy as np
import tensorflow as tf

from hamgan import arguments
from hamgan.parts import registered
from hamgan.shapes import check_map, sizes
from hamgan.spectral import SpectralConv2D


def _max_pool(x):
    """2x2 maxima as rows: [B, H, W, C] -> [B, H*W/4, C]."""
    x = tf.nn.max_pool2d(x, 2, 2, "VALID")
    batch, height, width, channels = sizes(x)
    return tf.reshape(x, [batch, height * width, channels])


@arguments.take(
    **dict.fromkeys(("num_classes", "dim", "value_dim"), arguments.optional(arguments.whole(1)))
)
@registered
class SelfAttention(keras.layers.Layer):
    """SAGAN's self-attention: every pixel attends to the 2x2 maxima of the whole image (Zhang et
    al. 2019).

    Args:
      num_classes: taken because every module is given it; there is no normalisation here.
      dim: channels of queries and keys; None: C / 8 (published).
      value_dim: channels of values; None: C / 2 (published).

    Raises:
      ValueError: in `build`: height or width isn't even, or C not divisible where the published
        sizes are asked for.
    """

    num_heads = 1

    def __init__(self, *, num_classes=None, dim=None, value_dim=None, **kwargs):
        super().__init__(**kwargs)
        for name, value in dict(dim=dim, value_dim=value_dim).items():
            if value is not None and (value < 1 or value % self.num_heads):
                raise ValueError(
                    f"{type(self).__name__}: {name} must be a positive multiple of the number of "
                    "heads "
                    f"({self.num_heads}), got {value}."
                )
        self.num_classes = num_classes
        self.dim = dim
        self.value_dim = value_dim

    def build(self, input_shape):
        check_map(self, input_shape)
        height, width, channels = input_shape[1:]
        if any(size is not None and size % 2 for size in (height, width)):
            raise ValueError(
                f"{type(self).__name__}: height and width must be even, got {height}x{width}."
            )
        dim = self.dim or self._part(channels, 8, "dim")
        value_dim = self.value_dim or self._part(channels, 2, "value_dim")
        self.theta = self._conv(dim, "theta", input_shape)
        self.phi = self._conv(dim, "phi", input_shape)
        self.g = self._conv(value_dim, "g", input_shape)
        self.attn = self._conv(channels, "attn", (*input_shape[:-1], value_dim))
        self.gate = self.add_weight(name="gate", shape=(), initializer="zeros", autocast=False)

    def _part(self, channels, divisor, name):
        divisor_of_heads = divisor * self.num_heads
        if channels % divisor_of_heads:
            raise ValueError(
                f"{type(self).__name__}: {name} is 1/{divisor} of the input's channels, which must "
                "be divisible by "
                f"{divisor_of_heads}, got {channels}. Give {name}, a multiple of {self.num_heads}."
            )
        return channels // divisor

    def _conv(self, filters, name, input_shape):
        conv = SpectralConv2D(
            filters, 1, use_bias=False, exact=True, name=name, dtype=self.dtype_policy
        )
        conv.build(input_shape)
        return conv

    def call(self, x, labels=None, training=False, keys=None):
        """Args: x [B, H, W, C]; labels and keys have no effect."""
        del labels, keys
        check_map(self, x.shape)
        batch, height, width, _ = sizes(x)
        if None in x.shape[1:3]:
            # Of an odd size the pooling would leave out a row or a column.
            even = tf.debugging.Assert(
                (height % 2 == 0) & (width % 2 == 0),
                [f"{type(self).__name__}: height and width must be even, got", height, width],
            )
            with tf.control_dependencies([even] if even is not None else []):
                x = tf.identity(x)
        queries = self.theta(x, training=training)
        queries = tf.reshape(queries, [batch, height * width, queries.shape[-1]])  # [B, N, c]
        keys = _max_pool(self.phi(x, training=training))  # [B, N/4, c]
        values = _max_pool(self.g(x, training=training))  # [B, N/4, C/2]
        # Scores and softmax are a float32 island: bfloat16's 8 bits would round scores of 100 to
        # halves.
        y = self._attend(tf.cast(queries, tf.float32), tf.cast(keys, tf.float32), values)
        y = self.attn(tf.reshape(y, [batch, height, width, values.shape[-1]]), training=training)
        return x + tf.cast(self.gate, x.dtype) * y

    def _attend(self, queries, keys, values):
        """queries [B, N, c] and keys [B, M, c] float32, values [B, M, v] -> [B, N, v] in the type
        of the values.
        """
        weights = tf.nn.softmax(tf.matmul(queries, keys, transpose_b=True), axis=-1)  # [B, N, M]
        return tf.matmul(tf.cast(weights, values.dtype), values)

    def get_config(self):
        return {
            **super().get_config(),
            "num_classes": self.num_classes,
            "dim": self.dim,
            "value_dim": self.value_dim,
        }


def sparse_masks(side):
    """The two-step attention patterns of YLG's eight heads on a square grid of pooled cells.

    Cells are renumbered by their Manhattan distance from the upper left corner, ties from the top;
    the patterns are those of sparse transformers over these numbers, with stride `side` (Daras et
    al. 2020, section 3.2).

    Args:
      side: cells per row and per column.

    Returns:
      bool tensor [8, n, n], n = side^2: whether the query in cell q (row-major) may attend to the
      key in cell k.
    """
    row, column = np.divmod(np.arange(side * side), side)
    number = np.empty(side * side, np.int32)
    number[np.lexsort([row, row + column])] = np.arange(side * side)
    # Ops on the n numbers, which the graph's compiler folds or fuses: a constant of n^2 would be
    # stored in every graph.
    query, key = tf.constant(number)[:, None], tf.constant(number)[None, :]

    def floor(query, key):
        return (key >= query - query % side) & (key <= query)

    left_floor, right_floor = floor(query, key), floor(key, query)
    left_repetitive = (query == key) | (key % side == side - 1)
    right_repetitive = (query == key) | (key % side == 0)
    return tf.stack([right_floor, right_repetitive] * 2 + [left_floor, left_repetitive] * 2)


@registered
class SparseAttention(SelfAttention):
    """YLG's local sparse attention: eight heads, each with a two-dimensional sparse pattern (Daras
    et al. 2020).

    `SelfAttention` with its channels split into heads and the scores of forbidden pairs lowered by
    1000. The result
    interleaves the heads: channel = position within head * 8 + head.

    Arguments as in `SelfAttention`; dim and value_dim must be multiples of 8.

    Raises:
      ValueError: in `build`, as in `SelfAttention`, or the image isn't square.
    """

    num_heads = 8

    def build(self, input_shape):
        check_map(self, input_shape)
        if None in input_shape[1:3]:
            raise ValueError(
                "SparseAttention: height and width must be known, since its patterns are of one "
                f"size, got input shape {tuple(input_shape)}."
            )
        if input_shape[1] != input_shape[2]:
            raise ValueError(
                f"SparseAttention: the image must be square, got {input_shape[1]}x{input_shape[2]}."
            )
        super().build(input_shape)

    def _split(self, x):
        return tf.reshape(
            x, [tf.shape(x)[0], x.shape[1], self.num_heads, x.shape[2] // self.num_heads]
        )

    def _attend(self, queries, keys, values):
        batch, num_queries, num_keys, heads = (
            tf.shape(queries)[0],
            queries.shape[1],
            keys.shape[1],
            self.num_heads,
        )
        scores = tf.einsum("bqhc,bkhc->bhqk", self._split(queries), self._split(keys))
        # A pattern of n x n cells serves each block of n consecutive queries (not the pixels of a
        # cell: published so).
        scores = tf.reshape(scores, [batch, heads, num_queries // num_keys, num_keys, num_keys])
        masks = sparse_masks(round(num_keys**0.5))[:, None]
        scores = tf.where(masks, scores, scores - 1000.0)
        weights = tf.nn.softmax(tf.reshape(scores, [batch, heads, num_queries, num_keys]), axis=-1)
        y = tf.einsum("bhqk,bkhc->bqch", tf.cast(weights, values.dtype), self._split(values))
        return tf.reshape(y, [batch, num_queries, values.shape[-1]])
