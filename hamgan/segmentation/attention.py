"""Self-attention where a head has its Hamburger: what the paper compares with."""

import keras
import tensorflow as tf

from hamgan import arguments
from hamgan.segmentation.layers import Conv2D, registered
from hamgan.shapes import check_map, sizes


@arguments.take(**dict.fromkeys(("dim", "value_dim"), arguments.optional(arguments.whole(1))))
@registered
class SelfAttention(keras.layers.Layer):
    """Self-attention over all pixels, [B, H, W, C] -> [B, H, W, C] (Wang et al. 2018; Zhang et al.
    2019), called as a Hamburger of `hamburger` is.

    As `context.SelfAttention` with a gate that starts at 0, but without spectral norm, which these
    networks don't have, and without pooling, so that any height and width will do.

    Args:
      dim: channels of queries and keys; None: C / 8, at least 1.
      value_dim: channels of values; None: C / 2, at least 1.

    Raises:
      ValueError: a number of channels isn't positive.
    """

    def __init__(self, *, dim=None, value_dim=None, **kwargs):
        super().__init__(**kwargs)
        arguments.check("SelfAttention", self.ARGUMENTS, dim=dim, value_dim=value_dim)
        self.dim = dim
        self.value_dim = value_dim

    def build(self, input_shape):
        check_map(self, input_shape)
        channels = input_shape[-1]
        value_dim = self.value_dim or max(1, channels // 2)
        dim = self.dim or max(1, channels // 8)
        self.theta = self._conv(dim, "theta", input_shape)
        self.phi = self._conv(dim, "phi", input_shape)
        self.g = self._conv(value_dim, "g", input_shape)
        self.attn = self._conv(channels, "attn", (*input_shape[:-1], value_dim))
        self.gate = self.add_weight(name="gate", shape=(), initializer="zeros", autocast=False)

    def _conv(self, filters, name, input_shape):
        conv = Conv2D(filters, 1, name=name, dtype=self.dtype_policy)
        conv.build(input_shape)
        return conv

    def call(self, x, labels=None, training=False, keys=None, *, initial=None, return_hams=False):
        """As `hamburger.Hamburger.call`: there are no hams; labels, keys and initial have no
        effect.
        """
        del labels, training, keys, initial
        check_map(self, x.shape)
        batch, height, width, _ = sizes(x)

        def rows(y):
            return tf.reshape(y, [batch, height * width, y.shape[-1]])  # [B, N, c]

        queries, keys, values = (rows(conv(x)) for conv in (self.theta, self.phi, self.g))
        # Scores and softmax in float32: bfloat16's 8 bits would round scores of 100 to halves.
        scores = tf.matmul(tf.cast(queries, tf.float32), tf.cast(keys, tf.float32), False, True)
        y = tf.matmul(tf.cast(tf.nn.softmax(scores), values.dtype), values)
        y = self.attn(tf.reshape(y, [batch, height, width, values.shape[-1]]))
        y = x + tf.cast(self.gate, x.dtype) * y
        return (y, {}) if return_hams else y

    def get_config(self):
        return {**super().get_config(), "dim": self.dim, "value_dim": self.value_dim}
