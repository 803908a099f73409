"""A small backbone that sees near by only: for demonstrations, where a head's reach is to show."""

import keras

from hamgan.segmentation.layers import BatchNorm, ConvNorm

# Strides of the convolutions of each layer.
_STRIDES = ((2, 1), (2, 1), (1,), (1,))


class ConvNet(keras.layers.Layer):
    """Images [B, H, W, 3] -> the features of four layers, a list of [B, h, w, C], the last two of
    which have stride 4.

    3x3 convolutions with norm and ReLU: two in layers 1 and 2, the first with stride 2, and one in
    layers 3 and 4. A feature of layer 4 sees 35x35 pixels.

    Args:
      widths: channels of the four layers.
      norm: constructor of the norm.

    Raises:
      ValueError: not four positive widths.
    """

    def __init__(self, *, widths=(16, 32, 64, 64), norm=BatchNorm, **kwargs):
        super().__init__(**kwargs)
        if len(widths) != len(_STRIDES) or min(widths) < 1:
            raise ValueError(f"ConvNet: widths must be four positive numbers, got {widths}.")
        self.channels = tuple(widths)
        self.layers_of_parts = [
            [
                ConvNorm(
                    width,
                    3,
                    strides=strides,
                    norm=norm,
                    name=f"layer_{k + 1}_part_{index + 1}",
                    dtype=self.dtype_policy,
                )
                for index, strides in enumerate(of_layer)
            ]
            for k, (width, of_layer) in enumerate(zip(widths, _STRIDES, strict=True))
        ]

    def build(self, input_shape):
        for parts in self.layers_of_parts:
            for part in parts:
                part.build(input_shape)
                input_shape = (None, None, None, part.conv.filters)

    def call(self, images, training=False, keys=None):
        """Args: images [B, H, W, 3]; keys have no effect."""
        del keys
        x, features = images, []
        for parts in self.layers_of_parts:
            for part in parts:
                x = part(x, training=training)
            features.append(x)
        return features
