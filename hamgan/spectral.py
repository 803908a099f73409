"""Spectrally normalised layers (Miyato et al. 2018), as the published HamGAN and TF-GAN have them.

A weight is divided by an estimate of its largest singular value, sigma = u^T W v, from one power
iteration per forward pass. The gradient passes through sigma but not through u and v.
`keras.layers.SpectralNormalization` is another layer: it overwrites the kernel and stops the
gradient through sigma.
"""

import keras
import tensorflow as tf

from hamgan import convolutions
from hamgan.parts import registered
from hamgan.shapes import check_map, check_rows, class_labels


def power_iteration(matrix, u):
    """One power iteration.

    u and v are constant for the gradient, so that of sigma = u^T W v with respect to W is u v^T.

    Args:
      matrix: W, [rows, columns] float32.
      u: [rows, 1] float32, the current estimate of the first left singular vector.

    Returns:
      (u, v, W v): [rows, 1] and [columns, 1] of unit length, [rows, 1].
    """
    v = tf.stop_gradient(tf.math.l2_normalize(tf.matmul(matrix, u, transpose_a=True)))
    product = tf.matmul(matrix, v)
    return tf.stop_gradient(tf.math.l2_normalize(product)), v, product


class SpectralLayer(keras.layers.Layer):
    """What the layers below share: a kernel, its persistent vector u, and what the kernel is
    divided by.

    Args:
      use_bias: add a bias, initially 0.
      exact: divide by sigma itself. False divides by max(1, sigma), which leaves a kernel of small
        norm as it is.
    """

    def __init__(self, *, use_bias=True, exact=False, **kwargs):
        super().__init__(**kwargs)
        self.use_bias = use_bias
        self.exact = exact

    def _add_kernel(self, shape, *, rows):
        # Neither is autocast: sigma is taken in float32 whatever the compute dtype, since bfloat16
        # has 8 bits for sums over thousands of rows.
        self.kernel = self.add_weight(
            name="kernel", shape=shape, initializer="glorot_uniform", autocast=False
        )
        # Every replica computes the same u from the same kernel, so one of them is enough to store.
        self.u = self.add_weight(
            name="u",
            shape=(rows, 1),
            initializer=keras.initializers.RandomNormal(stddev=1.0),
            trainable=False,
            autocast=False,
            aggregation="only_first_replica",
        )

    def _add_bias(self, size):
        self.bias = (
            self.add_weight(name="bias", shape=(size,), initializer="zeros")
            if self.use_bias
            else None
        )

    def _kernel_matrix(self):
        """The kernel as the matrix [rows, columns] whose norm counts."""
        return tf.reshape(self.kernel, [-1, self.kernel.shape[-1]])

    def _iterate(self):
        """(sigma, u) after one power iteration from the stored u."""
        u, _, product = power_iteration(self._kernel_matrix(), tf.convert_to_tensor(self.u))
        # W v is there from the iteration: a matrix is read twice, not four times.
        return tf.reduce_sum(u * product), u

    def sigma(self):
        """The kernel's largest singular value, a float32 scalar, as estimated from the stored u."""
        return self._iterate()[0]

    def normalizer(self, training):
        """What the kernel is divided by, a float32 scalar; the new u is stored when `training`.

        Out of training the iteration is computed all the same, from the stored u.
        """
        sigma, u = self._iterate()
        if training:
            self.u.assign(u)
        return sigma if self.exact else tf.maximum(1.0, sigma)

    def normalized_kernel(self, training):
        """The kernel divided by its norm, in the compute dtype."""
        return tf.cast(self.kernel * self._factor(training), self.compute_dtype)

    def _factor(self, training):
        """1 / `normalizer`: a multiplication's gradient is half the work of a division's."""
        return tf.math.reciprocal(self.normalizer(training))

    def _linear(self, function, x, output_shape, training):
        """`function(x, kernel)` with the normalised kernel, in the compute dtype.

        Divided is the kernel or the result, whichever has fewer numbers, in float32 at least: a
        rounded sigma would be an error of all results at once. In float16, which ends at 65,504,
        it is always the kernel.

        Args:
          function: (x, kernel) -> result, linear in both.
          x: the input.
          output_shape: of the result, with None where a size isn't known.
          training: as in `normalizer`.
        """
        size = tf.TensorShape(output_shape).num_elements()
        few = size is not None and size < self.kernel.shape.num_elements()
        if not few or self.compute_dtype == "float16":
            return function(x, self.normalized_kernel(training))
        y = function(x, tf.cast(tf.convert_to_tensor(self.kernel), self.compute_dtype))
        exact = tf.float64 if y.dtype == tf.float64 else tf.float32
        return tf.cast(tf.cast(y, exact) * tf.cast(self._factor(training), exact), y.dtype)

    def _with_bias(self, x):
        return x if self.bias is None else tf.nn.bias_add(x, tf.cast(self.bias, x.dtype))

    def get_config(self):
        return {**super().get_config(), "use_bias": self.use_bias, "exact": self.exact}


@registered
class SpectralDense(SpectralLayer):
    """[B, C] -> [B, units]."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = units

    def build(self, input_shape):
        check_rows(self, input_shape)
        self._add_kernel((input_shape[-1], self.units), rows=input_shape[-1])
        self._add_bias(self.units)

    def call(self, x, training=False):
        check_rows(self, x.shape)
        shape = (x.shape[0], self.units)
        return self._with_bias(self._linear(tf.matmul, x, shape, training))

    def get_config(self):
        return {**super().get_config(), "units": self.units}


@registered
class SpectralConv2D(SpectralLayer):
    """[B, H, W, C] -> [B, H, W, filters], zero padding, stride 1."""

    def __init__(self, filters, kernel_size, **kwargs):
        super().__init__(**kwargs)
        self.filters = filters
        self.kernel_size = kernel_size

    def build(self, input_shape):
        check_map(self, input_shape)
        size, channels = self.kernel_size, input_shape[-1]
        self._add_kernel((size, size, channels, self.filters), rows=size * size * channels)
        self._add_bias(self.filters)

    def call(self, x, training=False):
        check_map(self, x.shape)
        return self._with_bias(
            self._linear(self._convolve, x, (*self._output_size(x), self.filters), training)
        )

    def _output_size(self, x):
        """(batch, height, width), with None where one isn't known."""
        return tuple(x.shape[:3])

    def _convolve(self, x, kernel):
        return convolutions.convolve(x, kernel)

    def get_config(self):
        return {**super().get_config(), "filters": self.filters, "kernel_size": self.kernel_size}


@registered
class SpectralUpConv2D(SpectralConv2D):
    """Nearest upsampling by 2, then a 3x3 convolution: [B, H, W, C] -> [B, 2H, 2W, filters]."""

    def __init__(self, filters, **kwargs):
        super().__init__(filters, 3, **kwargs)

    def _convolve(self, x, kernel):
        return convolutions.convolve_upsampled(x, kernel)

    def _output_size(self, x):
        return x.shape[0], *(size and 2 * size for size in x.shape[1:3])

    def get_config(self):
        config = super().get_config()
        del config["kernel_size"]
        return config


@registered
class SpectralDownConv2D(SpectralConv2D):
    """A 3x3 convolution, then 2x2 average pooling: [B, H, W, C] -> [B, H/2, W/2, filters]."""

    def __init__(self, filters, **kwargs):
        super().__init__(filters, 3, **kwargs)

    def _convolve(self, x, kernel):
        return convolutions.convolve_pooled(x, kernel)

    def _output_size(self, x):
        return x.shape[0], *(size and size // 2 for size in x.shape[1:3])

    def get_config(self):
        config = super().get_config()
        del config["kernel_size"]
        return config


@registered
class SpectralEmbedding(SpectralLayer):
    """Labels [B] or [B, 1] -> [B, dim].

    The matrix whose norm counts is the embedding transposed, [dim, classes].
    """

    def __init__(self, num_classes, dim, **kwargs):
        super().__init__(use_bias=False, **kwargs)
        self.num_classes = num_classes
        self.dim = dim

    def build(self, input_shape=None):
        del input_shape
        self._add_kernel((self.num_classes, self.dim), rows=self.dim)

    def _kernel_matrix(self):
        return tf.transpose(self.kernel)

    def call(self, labels, training=False):
        labels = class_labels(self, labels)
        # Rows are taken first and divided after: the whole table is never written again.
        rows = tf.gather(tf.convert_to_tensor(self.kernel), labels)
        return tf.cast(rows * self._factor(training), self.compute_dtype)

    def get_config(self):
        config = {**super().get_config(), "num_classes": self.num_classes, "dim": self.dim}
        del config["use_bias"]
        return config
