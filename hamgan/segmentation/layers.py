"""Layers with PyTorch's semantics, which the published segmentation networks are made of.

Convolutions pad both sides alike, whatever the stride (TensorFlow's "SAME" pads the right side
first). Batch norm's running variance is the unbiased one. Random numbers are functions of keys.
"""

import math

import keras
import tensorflow as tf

from hamgan import normalization, stateless

# What the numbers of one example are for, below the key that its bases are drawn from; 1 is the
# second ham of V2+.
DROPOUT, AUXILIARY_DROPOUT, DROP_PATH = 2, 3, 4

# Names of their own in saved models: `hamgan.normalization` has a BatchNorm too.
registered = keras.saving.register_keras_serializable(package="hamgan.segmentation")


# Initializers: functions shape of the kernel [k, k, C_in, C_out] -> Keras initializer


def fan_out_normal(shape):
    """N(0, 2 / (k * k * C_out)), C_out per group: MMSegmentation's, and HamNet's breads."""
    return keras.initializers.RandomNormal(stddev=math.sqrt(2 / (math.prod(shape[:2]) * shape[3])))


def fan_in_uniform(shape):
    """U(-l, l) with l = 1 / sqrt(k * k * C_in): PyTorch's default, of kernels and biases."""
    limit = 1 / math.sqrt(math.prod(shape[:3]))
    return keras.initializers.RandomUniform(-limit, limit)


def small_normal(shape):
    """N(0, 0.01^2): MMSegmentation's classifiers."""
    del shape
    return keras.initializers.RandomNormal(stddev=0.01)


def zeros(shape):
    """0."""
    del shape
    return keras.initializers.Zeros()


class Conv2D(keras.layers.Layer):
    """Convolution, [B, H, W, C] -> [B, ceil(H / s), ceil(W / s), filters] for odd kernels.

    Both sides are padded by dilation * (k - 1) / 2 zeros, as PyTorch's layers are told to.

    Args:
      filters: output channels; None: depthwise, each channel has one kernel of its own.
      kernel_size: k, odd.
      strides, dilation: one of them must be 1.
      use_bias: whether a bias is added.
      kernel_initializer, bias_initializer: functions of this module, kernel's shape -> initializer.

    Raises:
      ValueError: an even kernel, or strides with a dilation.
    """

    def __init__(
        self,
        filters,
        kernel_size,
        *,
        strides=1,
        dilation=1,
        use_bias=False,
        kernel_initializer=fan_out_normal,
        bias_initializer=zeros,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if kernel_size % 2 == 0:
            raise ValueError(f"Conv2D: kernel_size must be odd, got {kernel_size}.")
        if strides > 1 and dilation > 1:
            raise ValueError(
                f"Conv2D: strides or dilation must be 1, got {strides} and {dilation}."
            )
        self.filters = filters
        self.kernel_size = kernel_size
        self.strides = strides
        self.dilation = dilation
        self.use_bias = use_bias
        self.kernel_initializer = kernel_initializer
        self.bias_initializer = bias_initializer

    def build(self, input_shape):
        # TensorFlow's depthwise kernels end with the multiplier of channels.
        shape = (self.kernel_size, self.kernel_size, input_shape[-1], self.filters or 1)
        self.kernel = self.add_weight(
            name="kernel", shape=shape, initializer=self.kernel_initializer(shape)
        )
        if self.use_bias:
            self.bias = self.add_weight(
                name="bias",
                shape=(self.filters or input_shape[-1],),
                initializer=self.bias_initializer(shape),
            )

    def call(self, x):
        padding = "SAME"
        if self.strides > 1:
            margin = self.kernel_size // 2
            padding = "VALID"
            x = tf.pad(x, [[0, 0], [margin, margin], [margin, margin], [0, 0]])
        dilations = [self.dilation, self.dilation]
        kernel = tf.convert_to_tensor(self.kernel)
        if self.filters is None:
            strides = [1, self.strides, self.strides, 1]
            y = tf.nn.depthwise_conv2d(x, kernel, strides, padding, dilations=dilations)
        else:
            # Not conv2d, whose gradient knows no dilation on CPUs.
            y = tf.nn.convolution(x, kernel, self.strides, padding, dilations=dilations)
        return y + self.bias if self.use_bias else y

    def get_config(self):
        return {
            **super().get_config(),
            "filters": self.filters,
            "kernel_size": self.kernel_size,
            "strides": self.strides,
            "dilation": self.dilation,
            "use_bias": self.use_bias,
            "kernel_initializer": self.kernel_initializer,
            "bias_initializer": self.bias_initializer,
        }


@registered
class BatchNorm(normalization.BatchNorm):
    """Batch norm over the global batch, whose running variance is the unbiased one.

    Args:
      momentum: decay of the running moments, 1 - PyTorch's: 0.9 by default in both; HamNet 0.9997.
      epsilon: added to the variance.
      cross_replica: as in `hamgan.normalization.BatchNorm`.
    """

    def __init__(self, *, momentum=0.9, epsilon=1e-5, cross_replica=True, **kwargs):
        super().__init__(momentum=momentum, epsilon=epsilon, cross_replica=cross_replica, **kwargs)

    def kept_variance(self, x, variance):
        count = tf.reduce_prod(tf.shape(x)[:-1])
        replicas = tf.distribute.get_replica_context()
        if self.cross_replica and replicas is not None:
            count *= replicas.num_replicas_in_sync
        count = tf.cast(count, variance.dtype)
        return variance * count / tf.maximum(count - 1, 1)


@registered
class GroupNorm(keras.layers.GroupNormalization):
    """Group norm as MMSegmentation's heads have it."""

    def __init__(self, *, groups=32, epsilon=1e-5, **kwargs):
        super().__init__(groups=groups, epsilon=epsilon, **kwargs)


class ConvNorm(keras.layers.Layer):
    """Convolution without bias, norm, ReLU.

    Args:
      filters, kernel_size, strides, kernel_initializer: as in `Conv2D`.
      norm: constructor of the norm.
    """

    def __init__(
        self,
        filters,
        kernel_size,
        *,
        norm=BatchNorm,
        strides=1,
        kernel_initializer=fan_out_normal,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.conv = Conv2D(
            filters,
            kernel_size,
            strides=strides,
            kernel_initializer=kernel_initializer,
            name="conv",
            dtype=self.dtype_policy,
        )
        self.norm = norm(name="norm", dtype=self.dtype_policy)

    def build(self, input_shape):
        self.conv.build(input_shape)
        self.norm.build((*input_shape[:-1], self.conv.filters))

    def call(self, x, training=False):
        return tf.nn.relu(self.norm(self.conv(x), training=training))


# Random numbers of a forward pass


def drop_channels(x, keys, rate):
    """Dropout of whole channels, per example: [B, H, W, C], keys [B, 2], rate in [0, 1)."""
    kept = stateless.uniform([x.shape[-1]], keys) >= rate  # [B, C]
    return x * tf.cast(kept, x.dtype)[:, None, None] / (1 - rate)


def check_rate(kind, **rates):
    """Raises a ValueError where a rate of dropout isn't in [0, 1)."""
    for name, rate in rates.items():
        if not 0 <= rate < 1:
            raise ValueError(f"{kind}: {name} must be in [0, 1), got {rate}.")
