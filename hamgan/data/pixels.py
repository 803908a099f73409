"""From a file's bytes to the pixels that the networks see."""

import functools

import numpy as np
import tensorflow as tf


def preprocess(image: tf.Tensor, image_size: int) -> tf.Tensor:
    """An image as the networks see it: central square, bilinear to S x S, scaled to [-1, 1].

    Corners are aligned: the first and the last sample of each axis are the square's border pixels;
    there is no antialiasing (HamGAN, https://arxiv.org/abs/2109.04553, published code).

    Args:
      image: uint8 [h, w, c], c = 1 (grey, repeated over the channels) or 3; h, w and c may be
        unknown while tracing.
      image_size: S.

    Returns:
      float32 [S, S, 3].
    """
    size = tf.shape(image)
    top, left, side = _central_square(size[0], size[1])
    return resize(image[tf.newaxis, top : top + side, left : left + side], image_size)[0]


def _central_square(height: tf.Tensor, width: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    side = tf.minimum(height, width)
    # 0.5 * (side - box), rounded up.
    return (height - side + 1) // 2, (width - side + 1) // 2, side


def resize(squares: tf.Tensor, image_size: int) -> tf.Tensor:
    """uint8 [B, side, side, c] -> float32 [B, S, S, 3] in [-1, 1]."""
    # Samples where tf.image.crop_and_resize does, but clamps at the border: that one takes a
    # coordinate rounded past the last pixel for outside (side 498, size 32: a black row).
    pixels = tf.raw_ops.ResizeBilinear(
        images=squares, size=[image_size, image_size], align_corners=True
    )
    return tf.broadcast_to(
        pixels * (2 / 255) - 1, [tf.shape(squares)[0], image_size, image_size, 3]
    )


def _decode_jpeg_square(encoded: tf.Tensor, ratio: int = 1) -> tf.Tensor:
    """The central square of a JPEG, uint8 [box, box, 3]: the pixels that a full decoding at 1 /
    ratio gives.
    """
    shape = tf.io.extract_jpeg_shape(encoded)
    height, width = (shape[0] + ratio - 1) // ratio, (shape[1] + ratio - 1) // ratio
    top, left, side = _central_square(height, width)
    # One column more on each side: smooth chroma upsampling looks at neighbours, and at the border
    # of a cropped decoding it has none (outermost columns up to 90 grey levels off).
    first = tf.maximum(left - 1, 0)
    last = tf.minimum(left + side + 1, width)
    window = tf.stack([top, first, side, last - first])
    pixels = tf.io.decode_and_crop_jpeg(encoded, window, channels=3, ratio=ratio)
    return pixels[:, left - first : left - first + side]


def _decode_jpeg_inexactly(encoded: tf.Tensor, image_size: int) -> tf.Tensor:
    """As `_decode_jpeg_square`, at the smallest of the sizes 1, 1/2, 1/4, 1/8 that isn't below
    image_size.
    """
    side = tf.reduce_min(tf.io.extract_jpeg_shape(encoded)[:2])
    power = tf.reduce_sum([tf.cast(side >= ratio * image_size, tf.int32) for ratio in (2, 4, 8)])
    return tf.switch_case(
        power, [functools.partial(_decode_jpeg_square, encoded, 2**i) for i in range(4)]
    )


def decode(encoded: tf.Tensor, image_size: int, *, inexact: bool) -> tf.Tensor:
    # By content and not by the feature's declared format: TFDS stores the files it is given as they
    # are, whatever was declared.
    decode_jpeg = (
        functools.partial(_decode_jpeg_inexactly, image_size=image_size)
        if inexact
        else _decode_jpeg_square
    )
    return tf.cond(
        tf.io.is_jpeg(encoded),
        lambda: resize(decode_jpeg(encoded)[tf.newaxis], image_size)[0],
        lambda: preprocess(
            tf.io.decode_image(encoded, channels=3, expand_animations=False), image_size
        ),
    )


def flipped(images: tf.Tensor, flip: tf.Tensor) -> tf.Tensor:
    """Images [..., h, w, c], mirrored left to right where `flip` [...] is true."""
    return tf.where(
        flip[..., tf.newaxis, tf.newaxis, tf.newaxis], tf.reverse(images, axis=[-2]), images
    )


def mirror(square: np.ndarray) -> None:
    """Mirrors [h, w, 3] left to right, in place."""
    before = square.copy()
    for channel in range(
        3
    ):  # four times as fast as all at once, which NumPy copies three bytes at a time
        square[..., channel] = before[:, ::-1, channel]


def check_decodable(encoded: bytes, name: str) -> None:
    try:
        tf.io.decode_image(encoded, channels=3, expand_animations=False)
    except tf.errors.InvalidArgumentError as error:
        raise ValueError(
            f"The image in {name} can't be decoded ({len(encoded)} bytes): "
            f"{error.message.splitlines()[0]}. Prepare the data set again from whole images."
        ) from None
