"""Batch norm over the global batch, plain and class-conditional (Ioffe and Szegedy 2015; Dumoulin
et al. 2017).
"""

import contextlib

import keras
import tensorflow as tf

from hamgan import arguments, devices
from hamgan.parts import registered
from hamgan.shapes import check_map, class_labels

_one_kernel = False


def _moments(x):
    # In float32 at least: bfloat16's 8 bits are too few for a variance.
    x = x if x.dtype == tf.float64 else tf.cast(x, tf.float32)
    return tf.nn.moments(x, axes=[0, 1, 2])


def _scaled(x, scale, offset):
    """x [B, H, W, C] times scale plus offset, each [B or 1, C]."""
    return x * tf.cast(scale[:, None, None], x.dtype) + tf.cast(offset[:, None, None], x.dtype)


def global_moments(x):
    """Mean and variance of each channel over the batches of all replicas.

    Args:
      x: [B, H, W, C] of this replica, float; every replica holds the same B.

    Returns:
      (mean, variance), each [C] float32, biased (divided by the count). The gradient passes through
      both.
    """
    mean, variance = _moments(x)
    replicas = tf.distribute.get_replica_context()
    if replicas is None or replicas.num_replicas_in_sync == 1:
        return mean, variance
    count = replicas.num_replicas_in_sync
    # Two sums, not one of squares: E[x^2] - E[x]^2 cancels where the mean is large.
    global_mean = replicas.all_reduce("sum", mean) / count
    global_variance = replicas.all_reduce("sum", variance + tf.square(mean - global_mean)) / count
    return global_mean, global_variance


@contextlib.contextmanager
def one_kernel():
    """Batch norm in training is TensorFlow's one kernel in what is traced within, on CPUs and where
    its moments are of one replica.

    Not for XLA, whose form of that kernel takes E[x^2] - E[x]^2.
    """
    global _one_kernel
    before, _one_kernel = _one_kernel, True
    try:
        yield
    finally:
        _one_kernel = before


@contextlib.contextmanager
def moments_from(layers, functions):
    """Batch norm out of training has its moments from other sources, in what is traced within.

    Args:
      layers: list of `BatchNorm`.
      functions: for each its `moments_source`.
    """
    before = [layer.moments_source for layer in layers]
    for layer, function in zip(layers, functions, strict=True):
        layer.moments_source = function
    try:
        yield
    finally:
        for layer, function in zip(layers, before, strict=True):
            layer.moments_source = function


@arguments.take(
    num_classes=arguments.optional(arguments.whole(1)),
    momentum=arguments.number(0, most=1),
    epsilon=arguments.number(above=0),
)
@registered
class BatchNorm(keras.layers.Layer):
    """Batch norm with moments over the global batch, and one scale and offset per class where there
    are classes.

    [B, H, W, C] -> [B, H, W, C]. Moments are computed in float32 whatever the compute dtype.

    Args:
      num_classes: rows of gamma and beta, chosen by the label, or mixed by labels that are float
        [B, num_classes], shares of the classes; None: one row for all.
      momentum: decay of the moving averages, which start at mean 0 and variance 1 (no zero-debias).
      epsilon: added to the variance.
      cross_replica: moments over all replicas; False: each replica's own.

    Attributes:
      moments_source: where the moments are from out of training, function x [B, H, W, C] -> (mean,
        variance), each [C] float32; None: the moving averages. See `moments_from`.
    """

    moments_source = None

    def __init__(
        self, *, num_classes=None, momentum=0.999, epsilon=1e-3, cross_replica=True, **kwargs
    ):
        super().__init__(**kwargs)
        arguments.check(
            "BatchNorm",
            arguments.kinds_of(BatchNorm),
            num_classes=num_classes,
            momentum=momentum,
            epsilon=epsilon,
            cross_replica=cross_replica,
        )
        self.num_classes = num_classes
        self.momentum = momentum
        self.epsilon = epsilon
        self.cross_replica = cross_replica

    def build(self, input_shape):
        check_map(self, input_shape)
        channels = input_shape[-1]
        rows = self.num_classes or 1
        self.gamma = self.add_weight(
            name="gamma", shape=(rows, channels), initializer="ones", autocast=False
        )
        self.beta = self.add_weight(
            name="beta", shape=(rows, channels), initializer="zeros", autocast=False
        )
        # The mean over replicas: the same number on each where moments are global.
        moving = dict(shape=(channels,), trainable=False, autocast=False, aggregation="mean")
        self.moving_mean = self.add_weight(name="moving_mean", initializer="zeros", **moving)
        self.moving_variance = self.add_weight(name="moving_variance", initializer="ones", **moving)

    def call(self, x, labels=None, training=False):
        check_map(self, x.shape)
        if self.num_classes and labels is None:
            raise ValueError(
                f"{self.name} has {self.num_classes} classes: labels are needed, got None."
            )
        gamma, beta = tf.convert_to_tensor(self.gamma), tf.convert_to_tensor(self.beta)
        if self.num_classes:
            gamma, beta = (self._of_classes(rows, labels) for rows in (gamma, beta))  # [B, C]
        if training and self._is_fused(x):
            return self._call_fused(x, gamma, beta)
        mean, variance = self._moments(x, training)
        scale = gamma * tf.math.rsqrt(variance + self.epsilon)  # [B or 1, C]
        offset = beta - mean * scale
        return _scaled(x, scale, offset)

    def _is_fused(self, x):
        """Whether moments and normalisation are one kernel, see `one_kernel`."""
        replicas = tf.distribute.get_replica_context()
        alone = replicas is None or replicas.num_replicas_in_sync == 1
        is_known = x.shape[:3].num_elements()  # and not 0
        return (
            _one_kernel
            and is_known
            and (alone or not self.cross_replica)
            and x.dtype != tf.float64
            and devices.kind() == "CPU"
        )

    def _call_fused(self, x, gamma, beta):
        channels, count = x.shape[-1], x.shape[:3].num_elements()
        of_all = gamma.shape[0] == 1
        y, mean, unbiased = tf.compat.v1.nn.fused_batch_norm(
            x,
            gamma[0] if of_all else tf.ones([channels]),
            beta[0] if of_all else tf.zeros([channels]),
            epsilon=self.epsilon,
        )
        self._keep(x, mean, unbiased * ((count - 1) / count))
        return y if of_all else _scaled(y, gamma, beta)

    def _of_classes(self, rows, labels):
        """The rows [num_classes, C] of labels [B], or mixed by shares [B, num_classes]: [B, C]."""
        labels = tf.convert_to_tensor(labels)
        are_shares = labels.shape.rank == 2 and labels.shape[1] == self.num_classes > 1
        if are_shares and labels.dtype.is_floating:
            return tf.linalg.matmul(tf.cast(labels, rows.dtype), rows)
        return tf.gather(rows, class_labels(self, labels))

    def _moments(self, x, training):
        if not training:
            return self.inference_moments(x)
        if self.cross_replica:
            mean, variance = global_moments(x)
        else:
            mean, variance = _moments(x)
        self._keep(x, mean, variance)
        return mean, variance

    def _keep(self, x, mean, variance):
        """The moving averages take in the moments of a batch."""
        kept = self.kept_variance(x, variance)
        for moving, value in ((self.moving_mean, mean), (self.moving_variance, kept)):
            new = self.momentum * moving + (1 - self.momentum) * tf.stop_gradient(value)
            if x.shape[0] is None or x.shape[0] == 0:
                # An empty batch has no moments, and changes nothing.
                new = tf.where(tf.size(x) > 0, new, tf.convert_to_tensor(moving))
            moving.assign(new)

    def kept_variance(self, x, variance):
        """What the moving average takes in of a batch x [B, H, W, C] with this variance [C]."""
        del x
        return variance

    def inference_moments(self, x):
        """(mean, variance), each [C] float32, for x [B, H, W, C]."""
        if self.moments_source is not None:
            return self.moments_source(x)
        return tf.convert_to_tensor(self.moving_mean), tf.convert_to_tensor(self.moving_variance)

    def get_config(self):
        return {
            **super().get_config(),
            "num_classes": self.num_classes,
            "momentum": self.momentum,
            "epsilon": self.epsilon,
            "cross_replica": self.cross_replica,
        }
