"""Convolutions without their layer: plain, after upsampling, before pooling, each in the form that
is fastest.

All forms of a convolution are the same sum in another order. Pooling and upsampling are linear
and commute with a convolution, so a quarter of the positions is enough:

    boxed    a 3x3 convolution of stride 2 on the 2x2 means of the input (down), or a transposed one
             whose output is summed over 2x2 (up): 1/4 of the plain form's multiplications
    fused    one 4x4 convolution of stride 2, the kernel spread by a 2x2 block of ones: 4/9
    columns  a product of matrices, the 3x3 neighbourhoods of all positions as rows

TPUs prefer the fused form (measured with their compiler); GPUs, where nothing was measured, have
fewer multiplications with it. On CPUs plain convolutions take up to four times as long. Where
kernels are large and images small, a product of matrices mostly wins. Milliseconds, forward and
both gradients, two cores of an AMD EPYC with AVX2, float32, oneDNN's kernels (with TensorFlow's own
the same forms win, but for the first row, where columns do, 113 to 172):

    side, channels, batch            plain  fused  boxed  columns
    up    4, 1024 -> 1024, 4           178    214    135     146
    up    8, 1024 ->  512, 4           269    189    123     210
    up   16,  512 ->  256, 4           268    121     82     293
    up   32,  256 ->  128, 4           295    123     89
    up   64,  128 ->   64, 4           446    134    109
    down  8, 1024 -> 1024, 8           291    259    152      95
    down 16,  512 ->  512, 8           234    154    101      89
    down 32,  256 ->  256, 8           248    123     91
    down 64,  128 ->  128, 8           307    132    104
    down 128,  64 ->   64, 8           366    146    138
    3x3   4, 1024 -> 1024, 8           105                    79
    3x3   8, 1024 -> 1024, 4           165                   152
    3x3   8,  512 -> 1024, 8           155                   108
    1x1   4,  512 -> 1024, 8             9                     6
    1x1  32,  256 ->  128, 4            13                    11

With the digits' channels the fused form is as fast as the boxed one or faster (Intel Xeon with AMX,
batch 64: up 16, 32 -> 16 in 4.4 and 4.7 ms; down 16, 32 -> 32 in 4.5 and 4.7). There, of the rows
above, the boxed form took 0.5 to 1.0 of the best other form's time in float32 (but for down 8,
where columns win), 0.8 to 1.6 in bfloat16.
"""

import tensorflow as tf

from hamgan import devices
from hamgan.shapes import sizes

# Of kernels of at least this many channels, in times out, the boxed form is faster than the fused.
_BOXED_CHANNELS = 2**13
# Columns are faster where there are this many times fewer positions than channels in times out.
_COLUMNS = 2**9


def convolve(x, kernel):
    """[B, H, W, I] and [S, S, I, O] of odd S -> [B, H, W, O], zero padding, stride 1."""
    if kernel.shape[0] == 1:
        return _product(x, kernel)
    if kernel.shape[0] == 3 and _few_positions(x, kernel):
        return _product(_neighbourhoods(_padded(x)), kernel)
    return tf.nn.conv2d(x, kernel, strides=1, padding="SAME")


def convolve_upsampled(x, kernel):
    """Nearest upsampling by 2, then a 3x3 convolution: [B, H, W, I] and [3, 3, I, O] -> [B, 2H, 2W,
    O].
    """
    batch, height, width, _ = sizes(x)
    if _few_positions(x, kernel, 4):
        return convolve(upsample(x), kernel)
    # y[o] = sum_d k[d+1] x[(o+d)//2]: input pixel i meets output o = 2i - d, and 2i - d + 1.
    turned = tf.transpose(tf.reverse(kernel, [0, 1]), [0, 1, 3, 2])
    if _boxed(kernel):
        shape = [batch, 2 * height + 1, 2 * width + 1, kernel.shape[-1]]
        y = tf.nn.conv2d_transpose(x, turned, shape, strides=2, padding="VALID")
        return 4 * tf.nn.avg_pool2d(y, 2, 1, "VALID")
    shape = [batch, 2 * height, 2 * width, kernel.shape[-1]]
    return tf.nn.conv2d_transpose(x, _spread(turned), shape, strides=2, padding="SAME")


def convolve_pooled(x, kernel):
    """A 3x3 convolution, then 2x2 average pooling: [B, H, W, I] and [3, 3, I, O] -> [B, H/2, W/2,
    O].
    """
    few = _few_positions(x, kernel, 1 / 4)
    if not few and not _boxed(kernel):
        # Not by explicit padding, whose gradients oneDNN doesn't have: in bfloat16 TensorFlow's own
        # of one such layer took more than half of the full-size step.
        even = not any(side is None or side % 2 for side in x.shape[1:3])
        x, padding = (x, "SAME") if even else (_padded(x), "VALID")
        return tf.nn.conv2d(x, 0.25 * _spread(kernel), strides=2, padding=padding)
    means = tf.nn.avg_pool2d(_padded(x), 2, 1, "VALID")
    if few:
        return _product(_neighbourhoods(means, stride=2), kernel)
    return tf.nn.conv2d(means, kernel, strides=2, padding="VALID")


def upsample(x):
    """Nearest upsampling by 2, [B, H, W, C] -> [B, 2H, 2W, C]."""
    # Half the operations of `tf.repeat`. Not both at once: the gradient would be a sum over axes
    # that do not touch, which TensorFlow has no fast kernel for: five times as long.
    batch, height, width, channels = sizes(x)
    rows = tf.reshape(tf.tile(x, [1, 1, 1, 2]), [batch, height, 2 * width * channels])
    return tf.reshape(tf.tile(rows, [1, 1, 2]), [batch, 2 * height, 2 * width, channels])


def _channels(kernel):
    return kernel.shape[-2] * kernel.shape[-1]


def _few_positions(x, kernel, growth=1):
    """Whether the output's positions, `growth` times those of x, are few enough for columns."""
    positions = x.shape[:3].num_elements()
    return (
        positions and devices.kind() == "CPU" and growth * positions * _COLUMNS < _channels(kernel)
    )


def _boxed(kernel):
    return devices.kind() == "CPU" and _channels(kernel) >= _BOXED_CHANNELS


def _padded(x):
    return tf.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]])


def _spread(kernel):
    """Full convolution of a kernel [3, 3, I, O] with a 2x2 block of ones: [4, 4, I, O]."""
    # Sums of padded tensors, whose gradients are slices. As a difference of slices it would have
    # gradients that write a tensor of zeros as large as the kernel for each slice.
    for axis in (0, 1):
        before, after = [[0, 0]] * 4, [[0, 0]] * 4
        before[axis], after[axis] = [1, 0], [0, 1]
        kernel = tf.pad(kernel, before) + tf.pad(kernel, after)
    return kernel


def _neighbourhoods(x, stride=1):
    """The 3x3 neighbourhoods in x [B, H, W, C], [B, (H-2)/stride, (W-2)/stride, 9C], rounded up."""
    batch, high, wide, channels = sizes(x)
    height, width = -(-(high - 2) // stride), -(-(wide - 2) // stride)
    reach = 2 // stride

    # TensorFlow's gradient of each slice writes zeros as large as x, by a slow loop in bfloat16.
    def gradient(d_y):
        parts = tf.split(d_y, 9, axis=-1)

        def phase(first_row, first_column):
            return tf.add_n(
                [
                    tf.pad(
                        parts[3 * i + j],
                        [[0, 0]] + [[k // stride, reach - k // stride] for k in (i, j)] + [[0, 0]],
                    )
                    for i in range(first_row, 3, stride)
                    for j in range(first_column, 3, stride)
                ]
            )

        rows = [
            tf.stack([phase(row, column) for column in range(stride)], axis=3)
            for row in range(stride)
        ]
        shape = [batch, (height + reach) * stride, (width + reach) * stride, channels]
        return tf.reshape(tf.stack(rows, axis=2), shape)[:, :high, :wide]

    @tf.custom_gradient
    def neighbourhoods(x):
        down, right = stride * (height - 1) + 1, stride * (width - 1) + 1
        parts = [
            x[:, i : i + down : stride, j : j + right : stride] for i in range(3) for j in range(3)
        ]
        return tf.concat(parts, axis=-1), gradient

    return neighbourhoods(x)


def _product(x, kernel):
    """[B, H, W, S S I] times a kernel [S, S, I, O] as a matrix, [B, H, W, O]."""
    rows = tf.reshape(x, [-1, x.shape[-1]])
    matrix = tf.reshape(kernel, [-1, kernel.shape[-1]])
    few = devices.kind() == "CPU" and rows.shape[0] and rows.shape[0] <= kernel.shape[-1]
    y = _product_of_few_rows(rows, matrix) if few else tf.matmul(rows, matrix)
    return tf.reshape(y, [*sizes(x)[:3], kernel.shape[-1]])


@tf.custom_gradient
def _product_of_few_rows(rows, matrix):
    """[N, I] times [I, O] for N up to O. TensorFlow's gradient of the rows, d_y matrix^T, lays the
    large matrix out anew for each product on CPUs; its transpose, matrix d_y^T, takes it as it is:
    18 instead of 78 ms at N = 128, I = 9216, O = 1024, 35 instead of 52 at N = O = 512.
    """

    def gradient(d_y):
        d_rows = tf.transpose(tf.matmul(matrix, d_y, transpose_b=True))
        return d_rows, tf.matmul(rows, d_y, transpose_a=True)

    return tf.matmul(rows, matrix), gradient
