"""Layers that mix the whole image: one call signature, `(x, labels=None, training=False, keys=None)`.

[B, H, W, C] -> [B, H, W, C], the identity at the start of training (gate 0). `num_classes` in every constructor is the
number of classes of the normalisation inside (the generator's modules); None means no normalisation (the discriminator's).
"""

import keras
import tensorflow as tf

from hamgan import decomposition as decompositions
from hamgan import stateless
from hamgan.normalization import BatchNorm
from hamgan.spectral import SpectralConv2D


class Hamburger(keras.layers.Layer):
    """Hamburger V1: lower bread, matrix decomposition, upper bread (Geng et al. 2021, section 3.1).

    The input is mapped to `sections * dim` channels by a spectrally normalised 1x1 convolution; each section's channels
    form a matrix X [dim, H*W], which the decomposition replaces by a matrix of rank `rank`; a second 1x1 convolution,
    (conditional) batch norm in the generator, and a scalar gate lead back to x.

    Args:
      num_classes: classes of the conditional batch norm after the upper bread; None: no batch norm.
      norm: constructor of that batch norm.
      dim: d, channels of each section; None: as many as x has (the paper's rule).
      rank: r, columns of the bases; None: d / 8 (the paper's rule).
      num_steps: K, updates of the decomposition before the differentiable last one.
      sections: S, matrices that are decomposed independently.
      decomposition: function of `hamgan.decomposition`.
      solve: how the K updates are run and differentiated.
    """

    def __init__(
        self,
        *,
        num_classes=None,
        norm=BatchNorm,
        dim=None,
        rank=None,
        num_steps=6,
        sections=1,
        decomposition=decompositions.nmf,
        solve=decompositions.one_step,
        **kwargs,
    ):
        super().__init__(**kwargs)
        for name, value in dict(dim=dim, rank=rank, sections=sections).items():
            if value is not None and value < 1:
                raise ValueError(f"Hamburger: {name} must be at least 1, got {value}.")
        if num_steps < 0:
            raise ValueError(f"Hamburger: num_steps must not be negative, got {num_steps}.")
        self.num_classes = num_classes
        self.norm_constructor = norm
        self.dim = dim
        self.rank = rank
        self.num_steps = num_steps
        self.sections = sections
        self.decomposition = decomposition
        self.solve = solve

    def build(self, input_shape):
        channels = input_shape[-1]
        self._dim = self.dim or channels
        self._rank = self.rank or max(1, self._dim // 8)
        bread = dict(kernel_size=1, use_bias=False, exact=True, dtype=self.dtype_policy)
        self.lower_bread = SpectralConv2D(self.sections * self._dim, name="lower_bread", **bread)
        self.lower_bread.build(input_shape)
        self.upper_bread = SpectralConv2D(channels, name="upper_bread", **bread)
        self.upper_bread.build((*input_shape[:-1], self.sections * self._dim))
        self.norm = None
        if self.num_classes:
            self.norm = self.norm_constructor(num_classes=self.num_classes, name="norm", dtype=self.dtype_policy)
            self.norm.build(input_shape)
        self.gate = self.add_weight(name="gate", shape=(), initializer="zeros", autocast=False)

    def initial_bases(self, keys):
        """Initial bases [B, S, D, R] float32, row i a function of keys[i] [2] alone. Replace it to choose others."""
        draw = getattr(self.decomposition, "draw_bases", stateless.normal)
        return draw([self.sections, self._dim, self._rank], keys)

    def call(self, x, labels=None, training=False, keys=None):
        """Args: x [B, H, W, C]; labels int [B]; keys int32 [B, 2] of the bases (None: fresh ones at every call)."""
        batch, (height, width) = tf.shape(x)[0], x.shape[1:3]
        if keys is None:
            keys = stateless.fresh_keys(batch)
        y = self.lower_bread(x, training=training)
        # The decomposition is a float32 island: its divisions lose all meaning with bfloat16's 8 bits.
        y = tf.cast(y, tf.float32)
        y = tf.reshape(y, [batch, height * width, self.sections, self._dim])
        y = tf.transpose(y, [0, 2, 1, 3]) if self.sections > 1 else y
        y = tf.reshape(y, [batch * self.sections, height * width, self._dim])  # [B*S, N, D]
        bases = tf.reshape(self.initial_bases(keys), [batch * self.sections, self._dim, self._rank])
        y = self.decomposition(y, bases, num_steps=self.num_steps, solve=self.solve)
        y = tf.reshape(y, [batch, self.sections, height * width, self._dim])
        y = tf.transpose(y, [0, 2, 1, 3]) if self.sections > 1 else y
        y = tf.reshape(y, [batch, height, width, self.sections * self._dim])
        y = self.upper_bread(tf.cast(y, x.dtype), training=training)
        if self.norm is not None:
            y = self.norm(y, labels, training=training)
        return x + tf.cast(self.gate, x.dtype) * y

    def get_config(self):
        return {
            **super().get_config(),
            "num_classes": self.num_classes,
            "norm": self.norm_constructor,
            "dim": self.dim,
            "rank": self.rank,
            "num_steps": self.num_steps,
            "sections": self.sections,
            "decomposition": self.decomposition,
            "solve": self.solve,
        }
