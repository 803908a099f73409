"""Dilated ResNets with a deep stem: the backbones of HamNet and of MMSegmentation's ResNetV1c.

He et al. 2016 (the stride lies in the 3x3 convolution); Yu et al. 2017 and Chen et al. 2017
(dilation in place of stride, multi-grid).
"""

import keras
import tensorflow as tf

from hamgan.segmentation.layers import BatchNorm, Conv2D, ConvNorm

# Bottlenecks of the four layers.
DEPTHS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
# Strides and base dilations of the four layers, by output stride.
_STRIDES = {
    8: ((1, 2, 1, 1), (1, 1, 2, 4)),
    16: ((1, 2, 2, 1), (1, 1, 1, 2)),
    32: ((1, 2, 2, 2), (1, 1, 1, 1)),
}
EXPANSION = 4


class Bottleneck(keras.layers.Layer):
    """Residual block, [B, H, W, C] -> [B, ceil(H / s), ceil(W / s), 4 * planes].

    Args:
      planes: channels of the 3x3 convolution, which has stride and dilation.
      strides, dilation: of it.
      project: whether the shortcut is a 1x1 convolution with batch norm; else the identity.
      norm: constructor of the batch norm.
    """

    def __init__(self, planes, *, strides=1, dilation=1, project=False, norm=BatchNorm, **kwargs):
        super().__init__(**kwargs)
        self.planes = planes
        self.project = project
        policy = dict(dtype=self.dtype_policy)
        self.conv_1 = Conv2D(planes, 1, name="conv_1", **policy)
        self.norm_1 = norm(name="norm_1", **policy)
        self.conv_2 = Conv2D(planes, 3, strides=strides, dilation=dilation, name="conv_2", **policy)
        self.norm_2 = norm(name="norm_2", **policy)
        self.conv_3 = Conv2D(EXPANSION * planes, 1, name="conv_3", **policy)
        self.norm_3 = norm(name="norm_3", **policy)
        if project:
            self.shortcut = Conv2D(
                EXPANSION * planes, 1, strides=strides, name="shortcut", **policy
            )
            self.shortcut_norm = norm(name="shortcut_norm", **policy)

    def build(self, input_shape):
        inner, outer = (None, None, None, self.planes), (None, None, None, EXPANSION * self.planes)
        self.conv_1.build(input_shape)
        self.norm_1.build(inner)
        self.conv_2.build(inner)
        self.norm_2.build(inner)
        self.conv_3.build(inner)
        self.norm_3.build(outer)
        if self.project:
            self.shortcut.build(input_shape)
            self.shortcut_norm.build(outer)

    def call(self, x, training=False):
        y = tf.nn.relu(self.norm_1(self.conv_1(x), training=training))
        y = tf.nn.relu(self.norm_2(self.conv_2(y), training=training))
        y = self.norm_3(self.conv_3(y), training=training)
        if self.project:
            x = self.shortcut_norm(self.shortcut(x), training=training)
        return tf.nn.relu(x + y)


class Stem(keras.layers.Layer):
    """Three 3x3 convolutions, the first with stride 2, and a 3x3 max pool with stride 2.

    [B, H, W, 3] -> [B, H / 4, W / 4, filters[2]], both halvings rounded up.

    Args:
      filters: of the three convolutions.
      norm: constructor of the batch norm after each of them.
    """

    def __init__(self, filters, *, norm=BatchNorm, **kwargs):
        super().__init__(**kwargs)
        self.parts = [
            ConvNorm(
                size,
                3,
                strides=1 if index else 2,
                norm=norm,
                name=f"part_{index + 1}",
                dtype=self.dtype_policy,
            )
            for index, size in enumerate(filters)
        ]

    def build(self, input_shape):
        for part in self.parts:
            part.build(input_shape)
            input_shape = (None, None, None, part.conv.filters)

    def call(self, x, training=False):
        for part in self.parts:
            x = part(x, training=training)
        # Zeros in place of PyTorch's -infinity: behind a ReLU the maximum is the same.
        x = tf.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]])
        return tf.nn.max_pool2d(x, 3, 2, "VALID")


class ResNet(keras.layers.Layer):
    """Images [B, H, W, 3] -> the features of the four layers, a list of [B, h, w, C].

    Args:
      depth: 50, 101 or 152.
      output_stride: 8, 16 or 32, of the last layer; where a layer of 32 would have a stride, a
        dilation stands for it, with half of it in the layer's first block.
      multi_grid: factors of the dilations in the last layer's blocks: (1, 2, 4) in HamNet,
        (1, 1, 1) in MMSegmentation. They don't change the first block.
      width: planes of the first layer; layer k has 4 * 2^(k-1) times as many channels.
      stem: filters of the stem: (64, 64, 128) in HamNet (PyTorch-Encoding), (32, 32, 64) in v1c.
      norm: constructor of the batch norm.

    Raises:
      ValueError: another depth or output stride, or not one factor for each block.
    """

    def __init__(
        self,
        *,
        depth=50,
        output_stride=8,
        multi_grid=(1, 2, 4),
        width=64,
        stem=(64, 64, 128),
        norm=BatchNorm,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if depth not in DEPTHS:
            raise ValueError(f"ResNet: depth must be one of {list(DEPTHS)}, got {depth}.")
        if output_stride not in _STRIDES:
            raise ValueError(
                f"ResNet: output_stride must be one of {list(_STRIDES)}, got {output_stride}."
            )
        if len(multi_grid) != DEPTHS[depth][3] or min(multi_grid) < 1:
            raise ValueError(
                f"ResNet: multi_grid must be {DEPTHS[depth][3]} positive factors, got "
                f"{tuple(multi_grid)}."
            )
        if len(stem) != 3 or min(*stem, width) < 1:
            raise ValueError(
                "ResNet: stem must be three positive numbers and width another, got "
                f"{tuple(stem)} and {width}."
            )
        self.channels = tuple(EXPANSION * width * 2**k for k in range(4))
        self.stem = Stem(stem, norm=norm, name="stem", dtype=self.dtype_policy)
        self.layers_of_blocks = [
            [
                Bottleneck(
                    width * 2**k,
                    strides=1 if b else strides,
                    dilation=self._dilation(dilation, b, multi_grid if k == 3 else None),
                    project=b == 0,
                    norm=norm,
                    name=f"layer_{k + 1}_block_{b + 1}",
                    dtype=self.dtype_policy,
                )
                for b in range(DEPTHS[depth][k])
            ]
            for k, (strides, dilation) in enumerate(zip(*_STRIDES[output_stride], strict=True))
        ]

    @staticmethod
    def _dilation(dilation, block, multi_grid):
        if block == 0:
            return max(1, dilation // 2)
        if multi_grid is None or dilation == 1:
            return dilation
        return dilation * multi_grid[block]

    def build(self, input_shape):
        self.stem.build(input_shape)
        shape = (None, None, None, self.stem.parts[-1].conv.filters)
        for blocks, channels in zip(self.layers_of_blocks, self.channels, strict=True):
            for block in blocks:
                block.build(shape)
                shape = (None, None, None, channels)

    def call(self, images, training=False, keys=None):
        """Args: images [B, H, W, 3]; keys have no effect."""
        del keys
        x = self.stem(images, training=training)
        features = []
        for blocks in self.layers_of_blocks:
            for block in blocks:
                x = block(x, training=training)
            features.append(x)
        return features
