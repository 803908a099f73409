"""How the published systems resize images, labels and logits.

HamNet resizes in PyTorch: bilinear with aligned corners, labels by the nearest sample to the left.
MMSegmentation resizes images as OpenCV does, in integers of 8 bits: what comes out there depends on
where OpenCV rounds, which `opencv_bilinear` follows to the last bit.
"""

import numpy as np
import tensorflow as tf

# OpenCV's weights are multiples of 1 / 2048.
_WEIGHT_BITS = 11


def bilinear(x, size, *, align_corners):
    """Bilinear, as `torch.nn.functional.interpolate` does it without antialiasing; in a network.

    Two products with matrices of weights. TensorFlow's own kernel isn't taken: XLA's version of it
    (TensorFlow 2.20) is wrong by whole pixels where a sample falls on one, as for 9 -> 25.

    Args:
      x: [B, h, w, C], floating point; computed in float32 at least.
      size: (H, W), integers or an integer tensor [2]. XLA needs integers, and a static h and w.
      align_corners: the first and last samples of each axis are the border pixels' centres (True),
        or the image's edges are what is mapped to edges (False).

    Returns:
      [B, H, W, C] in x's type.
    """
    known = tf.get_static_value(size)
    height, width = tf.unstack(size) if known is None else known
    y = tf.cast(x, tf.float32) if x.dtype in (tf.float16, tf.bfloat16) else x
    # Smaller first: the second product is the larger one.
    y = tf.einsum("oh,bhwc->bowc", _weights_of(y, height, 1, align_corners), y)
    y = tf.einsum("ow,bhwc->bhoc", _weights_of(y, width, 2, align_corners), y)
    return tf.cast(y, x.dtype)


def _weights_of(x, after, axis, align_corners):
    before = x.shape[axis]
    if before is not None and not tf.is_tensor(after):
        return tf.constant(_weights(before, int(after), align_corners), x.dtype)
    arguments = [tf.shape(x)[axis], after, align_corners]
    weights = tf.ensure_shape(tf.numpy_function(_weights, arguments, tf.float64), [None, before])
    return tf.cast(weights, x.dtype)


def _weights(before, after, align_corners):
    """What each of `before` samples counts in each of `after`, float64 [after, before]."""
    if align_corners:
        place = np.arange(after) * ((before - 1) / max(after - 1, 1))
    else:
        place = (np.arange(after) + 0.5) * (before / after) - 0.5
    place = np.clip(place, 0, before - 1)[:, None]
    return np.maximum(0, 1 - np.abs(place - np.arange(before)))


def bilinear_on_host(x, size, *, align_corners):
    """`bilinear` by TensorFlow's kernel: for images and logits that aren't in a compiled network.

    Args and returns as `bilinear`; the result is float32, whatever x is.
    """
    return tf.raw_ops.ResizeBilinear(
        images=x, size=size, align_corners=align_corners, half_pixel_centers=not align_corners
    )


def nearest(label, size, *, scale=None):
    """Labels by the nearest sample, as PyTorch counts it: not the nearest centre.

    Args:
      label: [h, w], integers.
      size: (H, W), integers or an integer tensor [2].
      scale: None: the rule of PyTorch 1.4, with which HamNet was trained, src = floor(dst * in /
        out). A number: that of today's, where size was given as a factor, src = floor(dst / scale).

    Returns:
      [H, W] in label's type.
    """
    for axis, out in enumerate(tf.unstack(tf.convert_to_tensor(size, tf.int32))):
        length = tf.shape(label)[axis]
        if scale is None:
            source = tf.range(out) * length // out
        else:
            source = tf.cast(tf.floor(tf.range(tf.cast(out, tf.float64)) * (1 / scale)), tf.int32)
        label = tf.gather(label, tf.minimum(source, length - 1), axis=axis)
    return label


def opencv_bilinear(image, size, *, window=None):
    """Bilinear as `cv2.resize` does it with INTER_LINEAR: in integers, without antialiasing.

    Equal to OpenCV 5.0's in every bit. Weights are multiples of 1 / 2048; between columns and rows
    4 bits are dropped, and 16 of each row's product. OpenCV clamps the weights at the left and the
    right border, but at the upper and the lower one only the rows, which gives the border's pixel
    twice, with two weights, and is rounded twice.

    Args:
      image: uint8 [h, w, C].
      size: (H, W), integers or an integer tensor [2].
      window: (offset [2], side): only that part of the result is computed, [offset : offset + side]
        each way; None: all of it.

    Returns:
      uint8 [H, W, C], or as much of it as the window shows.
    """
    height, width = tf.unstack(tf.convert_to_tensor(size, tf.int32))
    offset, side = window or ((0, 0), None)
    rows, columns = (slice(start, side and start + side) for start in (offset[0], offset[1]))
    columns = [x[columns] for x in _opencv_weights(tf.shape(image)[1], width, clamp=True)]
    rows = [x[rows] for x in _opencv_weights(tf.shape(image)[0], height, clamp=False)]
    x = tf.cast(image, tf.int32)
    low, high, of_low, of_high = columns
    x = tf.gather(x, low, axis=1) * of_low[:, None] + tf.gather(x, high, axis=1) * of_high[:, None]
    x = tf.bitwise.right_shift(x, 4)
    low, high, of_low, of_high = rows
    upper = tf.bitwise.right_shift(tf.gather(x, low) * of_low[:, None, None], 16)
    lower = tf.bitwise.right_shift(tf.gather(x, high) * of_high[:, None, None], 16)
    return tf.cast(tf.bitwise.right_shift(upper + lower + 2, 2), tf.uint8)


def _opencv_weights(before, after, *, clamp):
    """(first pixel, second pixel, weight of the first, of the second), int32 [after] each."""
    # OpenCV's rounding: the ratio in float64, places in float32.
    place = (tf.range(tf.cast(after, tf.float64)) + 0.5) * _opencv_step(before, after) - 0.5
    place = tf.cast(place, tf.float32)
    low = tf.floor(place)
    share = place - low
    first = tf.cast(low, tf.int32)
    if clamp:
        share = tf.where((first < 0) | (first >= before - 1), 0.0, share)
    weights = [tf.cast(tf.round(part * 2**_WEIGHT_BITS), tf.int32) for part in (1 - share, share)]
    return (
        tf.clip_by_value(first, 0, before - 1),
        tf.clip_by_value(first + 1, 0, before - 1),
        *weights,
    )


def _opencv_step(before, after):
    return 1 / (tf.cast(after, tf.float64) / tf.cast(before, tf.float64))


def opencv_nearest(label, size):
    """The nearest sample as `cv2.resize` takes it with INTER_NEAREST, equal to it in every pixel.

    Args:
      label: [h, w], integers.
      size: (H, W), integers or an integer tensor [2].

    Returns:
      [H, W] in label's type.
    """
    for axis, after in enumerate(tf.unstack(tf.convert_to_tensor(size, tf.int32))):
        before = tf.shape(label)[axis]
        source = tf.range(tf.cast(after, tf.float64)) * _opencv_step(before, after)
        source = tf.minimum(tf.cast(tf.floor(source), tf.int32), before - 1)
        label = tf.gather(label, source, axis=axis)
    return label


def size_within(size, longest, shortest):
    """The size of an image that keeps its proportions and fits into a box of any orientation.

    MMCV's `rescale_size`: factor = min(longest / max(h, w), shortest / min(h, w)), each side
    int(side * factor + 0.5).

    Args:
      size: (h, w), integers or an integer tensor [2].
      longest, shortest: of the box, integers or integer tensors.

    Returns:
      int32 [2].
    """
    size = tf.cast(size, tf.float64)
    longest, shortest = (tf.cast(side, tf.float64) for side in (longest, shortest))
    factor = tf.minimum(longest / tf.reduce_max(size), shortest / tf.reduce_min(size))
    return tf.cast(tf.floor(size * factor + 0.5), tf.int32)


def padded_size(size, stride):
    """The smallest stride * k + 1 that isn't below `size`: sizes for networks with aligned corners.

    Integers, or integer arrays or tensors.
    """
    return -((1 - size) // stride) * stride + 1


def multiple_size(size, divisor):
    """The smallest multiple of `divisor` that isn't below `size`: integers, arrays or tensors."""
    return -(-size // divisor) * divisor


def normalize(image, *, mean, std):
    """(image - mean) / std per channel, float32 [..., 3], in the image's units."""
    return (tf.cast(image, tf.float32) - np.float32(mean)) / np.float32(std)


def pad(image, label, size):
    """Pads an image with 0 and its label with 255, right and below, to at least `size`.

    Args:
      image: [h, w, C]; normalised, so that 0 is the mean colour.
      label: integers [h, w].
      size: (H, W), integers or an integer tensor [2]; larger sides stay.

    Returns:
      [max(h, H), max(w, W), C] and [max(h, H), max(w, W)].
    """
    missing = tf.maximum(tf.convert_to_tensor(size, tf.int32) - tf.shape(label), 0)
    paddings = tf.stack([tf.zeros_like(missing), missing], axis=1)  # [2, 2]
    image = tf.pad(image, tf.concat([paddings, [[0, 0]]], axis=0))
    return image, tf.pad(label, paddings, constant_values=tf.cast(255, label.dtype))
