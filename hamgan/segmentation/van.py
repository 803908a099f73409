"""Visual attention networks, the backbones of Light-Ham (Guo et al. 2022, "Visual Attention
Network").
"""

import keras
import tensorflow as tf

from hamgan import stateless
from hamgan.segmentation import layers
from hamgan.segmentation.layers import BatchNorm, Conv2D

# Widths, blocks and drop path rates as published.
_WIDE = (64, 128, 320, 512)
SIZES = {
    "tiny": dict(widths=(32, 64, 160, 256), depths=(3, 3, 5, 2), drop_path=0.1),
    "small": dict(widths=_WIDE, depths=(2, 2, 4, 2), drop_path=0.1),
    "base": dict(widths=_WIDE, depths=(3, 3, 12, 3), drop_path=0.1),
    "large": dict(widths=_WIDE, depths=(3, 5, 27, 3), drop_path=0.25),
    "huge": dict(widths=_WIDE, depths=(3, 6, 40, 3), drop_path=0.3),
}


def _gelu(x):
    return tf.nn.gelu(x, approximate=False)


class LargeKernelAttention(keras.layers.Layer):
    """x times what two depthwise convolutions, 5x5 and 7x7 of dilation 3, and a 1x1 make of it."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        options = dict(use_bias=True, dtype=self.dtype_policy)
        self.local = Conv2D(None, 5, name="local", **options)
        self.wide = Conv2D(None, 7, dilation=3, name="wide", **options)
        self._options = options

    def build(self, input_shape):
        self.local.build(input_shape)
        self.wide.build(input_shape)
        self.mix = Conv2D(input_shape[-1], 1, name="mix", **self._options)
        self.mix.build(input_shape)

    def call(self, x):
        return x * self.mix(self.wide(self.local(x)))


class Attention(keras.layers.Layer):
    """y -> y + proj_2(LKA(u)) with u = gelu(proj_1(y)), [B, H, W, C] both."""

    def build(self, input_shape):
        channels, options = input_shape[-1], dict(use_bias=True, dtype=self.dtype_policy)
        self.proj_1 = Conv2D(channels, 1, name="proj_1", **options)
        self.gate = LargeKernelAttention(name="gate", dtype=self.dtype_policy)
        self.proj_2 = Conv2D(channels, 1, name="proj_2", **options)
        for part in (self.proj_1, self.gate, self.proj_2):
            part.build(input_shape)

    def call(self, x):
        u = _gelu(self.proj_1(x))
        return x + self.proj_2(self.gate(u))


class Mlp(keras.layers.Layer):
    """1x1 convolution to ratio * C channels, a depthwise 3x3, gelu, 1x1 back: [B, H, W, C] both."""

    def __init__(self, ratio, **kwargs):
        super().__init__(**kwargs)
        self.ratio = ratio

    def build(self, input_shape):
        channels, options = input_shape[-1], dict(use_bias=True, dtype=self.dtype_policy)
        inner = (*input_shape[:-1], self.ratio * channels)
        self.fc_1 = Conv2D(inner[-1], 1, name="fc_1", **options)
        self.fc_1.build(input_shape)
        self.depthwise = Conv2D(None, 3, name="depthwise", **options)
        self.depthwise.build(inner)
        self.fc_2 = Conv2D(channels, 1, name="fc_2", **options)
        self.fc_2.build(inner)

    def call(self, x):
        return self.fc_2(_gelu(self.depthwise(self.fc_1(x))))


class LayerScale(keras.layers.Layer):
    """A learned factor per channel, 0.01 at the start."""

    def build(self, input_shape):
        self.scale = self.add_weight(
            name="scale", shape=(input_shape[-1],), initializer=keras.initializers.Constant(1e-2)
        )

    def call(self, x):
        return x * self.scale


class Block(keras.layers.Layer):
    """Attention and MLP, each behind batch norm, scaled per channel and added: [B, H, W, C] both.

    Args:
      mlp_ratio: width of the MLP over C.
      norm: constructor of the batch norm.
    """

    def __init__(self, *, mlp_ratio=4, norm=BatchNorm, **kwargs):
        super().__init__(**kwargs)
        self.norm_1 = norm(name="norm_1", dtype=self.dtype_policy)
        self.attention = Attention(name="attention", dtype=self.dtype_policy)
        self.norm_2 = norm(name="norm_2", dtype=self.dtype_policy)
        self.mlp = Mlp(mlp_ratio, name="mlp", dtype=self.dtype_policy)
        self.attention_scale = LayerScale(name="attention_scale", dtype=self.dtype_policy)
        self.mlp_scale = LayerScale(name="mlp_scale", dtype=self.dtype_policy)

    def build(self, input_shape):
        for part in (self.norm_1, self.attention, self.attention_scale):
            part.build(input_shape)
        for part in (self.norm_2, self.mlp, self.mlp_scale):
            part.build(input_shape)

    def call(self, x, training=False, kept=None):
        """Args: kept [B, 2], factors of the two branches (drop path); None: both 1."""
        y = self.attention_scale(self.attention(self.norm_1(x, training=training)))
        x = x + _times(y, kept, 0)
        y = self.mlp_scale(self.mlp(self.norm_2(x, training=training)))
        return x + _times(y, kept, 1)


def _times(x, kept, index):
    return x if kept is None else x * tf.cast(kept[:, index], x.dtype)[:, None, None, None]


class Stage(keras.layers.Layer):
    """Patch embedding, blocks, layer norm: [B, H, W, C] -> [B, H / s, W / s, width].

    Args:
      width: channels.
      depth: blocks.
      kernel_size, strides: of the embedding's convolution.
      mlp_ratio, norm: as in `Block`.
    """

    def __init__(self, width, depth, *, kernel_size, strides, mlp_ratio, norm, **kwargs):
        super().__init__(**kwargs)
        policy = dict(dtype=self.dtype_policy)
        self.embed = Conv2D(
            width, kernel_size, strides=strides, use_bias=True, name="embed", **policy
        )
        self.embed_norm = norm(name="embed_norm", **policy)
        self.blocks = [
            Block(mlp_ratio=mlp_ratio, norm=norm, name=f"block_{index + 1}", **policy)
            for index in range(depth)
        ]
        self.norm = keras.layers.LayerNormalization(epsilon=1e-6, name="norm", **policy)

    def build(self, input_shape):
        self.embed.build(input_shape)
        shape = (None, None, None, self.embed.filters)
        for part in (self.embed_norm, *self.blocks, self.norm):
            part.build(shape)

    def call(self, x, training=False, kept=None):
        """Args: kept [B, depth, 2] of drop path, or None."""
        x = self.embed_norm(self.embed(x), training=training)
        for index, block in enumerate(self.blocks):
            x = block(x, training=training, kept=None if kept is None else kept[:, index])
        return self.norm(x)


class VAN(keras.layers.Layer):
    """Images [B, H, W, 3] -> the features of the four stages, a list of [B, h, w, C].

    The published sizes are in `SIZES`.

    Args:
      widths, depths, mlp_ratios: channels, blocks and MLP ratios of the stages.
      strides: of the stages' patch embeddings: (4, 2, 2, 2) in Light-Ham, (4, 2, 1, 1) for an
        output stride of 8.
      drop_path: rate at which the last block's branches are left out of an example; the first
        block's is 0, those between lie on a line.
      norm: constructor of the batch norm.

    Raises:
      ValueError: not four numbers each, or a rate that isn't in [0, 1).
    """

    def __init__(
        self,
        *,
        widths=SIZES["tiny"]["widths"],
        depths=SIZES["tiny"]["depths"],
        mlp_ratios=(8, 8, 4, 4),
        strides=(4, 2, 2, 2),
        drop_path=0.1,
        norm=BatchNorm,
        **kwargs,
    ):
        super().__init__(**kwargs)
        lists = dict(widths=widths, depths=depths, mlp_ratios=mlp_ratios, strides=strides)
        for name, values in lists.items():
            if len(values) != 4 or min(values) < 1:
                raise ValueError(f"VAN: {name} must be four positive numbers, got {values}.")
        layers.check_rate("VAN", drop_path=drop_path)
        self.channels = tuple(widths)
        self.drop_path = drop_path
        self.stages = [
            Stage(
                widths[k],
                depths[k],
                kernel_size=3 if k else 7,
                strides=strides[k],
                mlp_ratio=mlp_ratios[k],
                norm=norm,
                name=f"stage_{k + 1}",
                dtype=self.dtype_policy,
            )
            for k in range(4)
        ]

    def build(self, input_shape):
        for stage, channels in zip(self.stages, self.channels, strict=True):
            stage.build(input_shape)
            input_shape = (None, None, None, channels)

    def call(self, images, training=False, keys=None):
        """Args: images [B, H, W, 3]; keys int32 [B, 2] of drop path (None: fresh ones)."""
        kept = self._kept(tf.shape(images)[0], keys) if training and self.drop_path else None
        x, features, first = images, [], 0
        for stage in self.stages:
            end = first + len(stage.blocks)
            x = stage(x, training=training, kept=None if kept is None else kept[:, first:end])
            features.append(x)
            first = end
        return features

    def _kept(self, batch, keys):
        """Factors of all blocks' branches, 0 or 1 / (1 - rate): [B, blocks, 2]."""
        keys = stateless.fresh_keys(batch) if keys is None else keys
        blocks = sum(len(stage.blocks) for stage in self.stages)
        rates = tf.linspace(0.0, self.drop_path, blocks)[:, None]
        draws = stateless.uniform([blocks, 2], stateless.fold_each(keys, layers.DROP_PATH))
        return tf.cast(draws >= rates, tf.float32) / (1 - rates)
