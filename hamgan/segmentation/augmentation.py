"""What happens to a training image and its labels: HamNet's pipeline and MMSegmentation's.

Every random number of an example is a function of its key. Keys come from the seed and the
example's position in the stream, so a resumed run, and any number of hosts, sees the same crops.
"""

import dataclasses

import tensorflow as tf

from hamgan import stateless
from hamgan.segmentation import resizing

# ImageNet's, RGB.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# The same as MMSegmentation rounds them, for pixels in 0..255.
MEAN_255, STD_255 = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)

IGNORED = 255  # the label of pixels that no class is asked of

# What the numbers of one example are for; a number once given stays.
_SCALE, _CROP, _FLIP, _COLOUR = range(4)


def _check(name, value, rule, holds):
    if not holds:
        raise ValueError(f"{name} must be {rule}, got {value}.")


def _uniform(key, low, high):
    """U(low, high), float32 []."""
    return low + (high - low) * stateless.uniform([], key[None])[0]


def _integer(key, limit):
    """Uniform in [0, limit), int32 []; the limit may be a tensor."""
    # Of 2**24 numbers, as many to each value as to any other, but for one: limits are image sizes.
    number = tf.cast(stateless.uniform([], key[None])[0] * 2**24, tf.int64)
    return tf.cast(number * tf.cast(limit, tf.int64) // 2**24, tf.int32)


def _coin(key):
    return _integer(key, 2) == 1


def flip(image, label, flipped):
    """Both mirrored left to right where the scalar `flipped` is true."""
    return tf.cond(
        flipped,
        lambda: (tf.reverse(image, axis=[1]), tf.reverse(label, axis=[1])),
        lambda: (image, label),
    )


def _cut(x, offset, size):
    """x [h, w, ...] from `offset` [2] on, `size` pixels each way or what is there."""
    return x[offset[0] : offset[0] + size, offset[1] : offset[1] + size]


def _random_offset(key, size, crop_size):
    """Where a crop begins, int32 [2], each place equally likely; size [2]."""
    limits = tf.maximum(size - crop_size, 0) + 1
    return tf.stack([_integer(stateless.fold(key, axis), limits[axis]) for axis in range(2)])


@dataclasses.dataclass(frozen=True, kw_only=True)
class HamNetAugmentation:
    """(image uint8 [h, w, 3], label uint8 [h, w], key [2]) -> what HamNet was trained with on VOC.

    Normalised; resized by a factor, bilinear with aligned corners, labels by the nearest sample to
    the left; padded right and below with 0 and 255; a random crop; mirrored with probability 1/2.
    Gives float32 [crop_size, crop_size, 3] and int32 [crop_size, crop_size].

    Attributes:
      crop_size: side of the crop; published 513, a multiple of the output stride plus one.
      scales: factors, each equally likely.
      flip: mirror half of the images.

    Raises:
      ValueError: a size or factor that isn't positive.
    """

    crop_size: int = 513
    scales: tuple[float, ...] = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0)
    flip: bool = True

    def __post_init__(self):
        _check("crop_size", self.crop_size, "at least 1", self.crop_size >= 1)
        scales = tuple(self.scales)
        _check("scales", scales, "positive numbers, at least one", scales and min(scales) > 0)

    def __call__(self, image, label, key):
        image = resizing.normalize(tf.cast(image, tf.float32) / 255, mean=MEAN, std=STD)
        index = _integer(stateless.fold(key, _SCALE), len(self.scales))
        image, label = scale(image, label, tf.gather(tf.constant(self.scales, tf.float64), index))
        image, label = resizing.pad(image, label, (self.crop_size, self.crop_size))
        offset = _random_offset(stateless.fold(key, _CROP), tf.shape(label), self.crop_size)
        image, label = (_cut(x, offset, self.crop_size) for x in (image, label))
        if self.flip:
            image, label = flip(image, label, _coin(stateless.fold(key, _FLIP)))
        return _finish(image, label, self.crop_size)


def scale(image, label, factor):
    """HamNet's resizing by a factor: floor(size * factor).

    Args:
      image: float32 [h, w, C].
      label: integers [h, w].
      factor: number or float64 tensor [].

    Returns:
      [H, W, C] and [H, W] in the arguments' types.
    """
    size = tf.cast(tf.shape(label), tf.float64) * tf.cast(factor, tf.float64)
    size = tf.maximum(tf.cast(tf.floor(size), tf.int32), 1)
    image = resizing.bilinear_on_host(image[None], size, align_corners=True)[0]
    return image, resizing.nearest(label, size)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MMSegmentationAugmentation:
    """(image uint8 [h, w, 3], label uint8 [h, w], key [2]) -> what MMSegmentation trains with.

    Resized by OpenCV's arithmetic; a random crop, drawn again while a class has too much of it;
    mirrored with probability 1/2; photometric distortion; normalised; padded right and below with 0
    and 255. Gives float32 [crop_size, crop_size, 3] in RGB and int32 [crop_size, crop_size].

    Attributes:
      crop_size: side of the crop: 512 for ADE20K, 480 for PASCAL Context.
      base_size: box that an image fits into at ratio 1: (2048, 512) for ADE20K, (520, 520) for
        Context.
      ratios: least and largest factor of the box, uniform in between.
      max_share: of the labelled pixels of a crop that one class may have; 1: any.
      num_retries: crops drawn beside the first, the last of which is taken as it is.
      flip: mirror half of the images.
      distort: photometric distortion.

    Raises:
      ValueError: a number out of its range.
    """

    crop_size: int = 512
    base_size: tuple[int, int] = (2048, 512)
    ratios: tuple[float, float] = (0.5, 2.0)
    max_share: float = 0.75
    num_retries: int = 10
    flip: bool = True
    distort: bool = True

    def __post_init__(self):
        _check("crop_size", self.crop_size, "at least 1", self.crop_size >= 1)
        _check(
            "base_size", self.base_size, "two positive integers", min(self.base_size, default=0) > 0
        )
        low, high = self.ratios
        _check("ratios", self.ratios, "(least, largest), both positive", 0 < low <= high)
        _check("max_share", self.max_share, "in (0, 1]", 0 < self.max_share <= 1)
        _check("num_retries", self.num_retries, "at least 0", self.num_retries >= 0)

    def __call__(self, image, label, key):
        ratio = tf.cast(_uniform(stateless.fold(key, _SCALE), *self.ratios), tf.float64)
        box = tf.cast(tf.constant(self.base_size, tf.float64) * ratio, tf.int32)
        size = resizing.size_within(tf.shape(label), tf.reduce_max(box), tf.reduce_min(box))
        size = tf.maximum(size, 1)
        label = resizing.opencv_nearest(label, size)
        offset = self._crop_offset(label, stateless.fold(key, _CROP))
        label = _cut(label, offset, self.crop_size)
        # Of the image, only the crop is resized: it is most of the work.
        image = resizing.opencv_bilinear(image, size, window=(offset, self.crop_size))
        if self.flip:
            image, label = flip(image, label, _coin(stateless.fold(key, _FLIP)))
        if self.distort:
            image = distort_colours(image, stateless.fold(key, _COLOUR))
        image = resizing.normalize(image, mean=MEAN_255, std=STD_255)
        image, label = resizing.pad(image, label, (self.crop_size, self.crop_size))
        return _finish(image, label, self.crop_size)

    def _crop_offset(self, label, key):
        """Where the crop begins: the first place that no class fills, of at most so many."""

        def draw(attempt):
            return _random_offset(stateless.fold(key, attempt), tf.shape(label), self.crop_size)

        if self.max_share >= 1:
            return draw(0)
        _, offset = tf.while_loop(
            lambda attempt, offset: (
                (attempt < self.num_retries)
                & ~has_variety(_cut(label, offset, self.crop_size), self.max_share)
            ),
            lambda attempt, _: (attempt + 1, draw(attempt + 1)),
            (tf.constant(0), draw(0)),
        )
        return offset


def has_variety(label, max_share):
    """Whether a crop's labelled pixels are of several classes, none with max_share of them or more.

    Args:
      label: uint8 [h, w].
      max_share: in (0, 1].

    Returns:
      bool [].
    """
    counts = tf.math.bincount(tf.reshape(tf.cast(label, tf.int32), [-1]), minlength=256)[:IGNORED]
    share = tf.reduce_max(counts) / tf.maximum(tf.reduce_sum(counts), 1)
    return (tf.math.count_nonzero(counts) > 1) & (share < max_share)


def _finish(image, label, crop_size):
    image = tf.ensure_shape(image, [crop_size, crop_size, 3])
    return image, tf.ensure_shape(tf.cast(label, tf.int32), [crop_size, crop_size])


def distort_colours(image, key):
    """MMSegmentation's photometric distortion, each part with probability 1/2, each in 8 bits.

    Brightness +- 32, contrast by a factor in [0.5, 1.5) before or after the next two, saturation by
    one in [0.5, 1.5), hue by a number of OpenCV's 180 degrees in [-18, 18).

    Args:
      image: uint8 [h, w, 3], RGB.
      key: [2].

    Returns:
      uint8 [h, w, 3].
    """

    def part(number, change, image, wanted=True):
        chosen = _coin(stateless.fold(key, number, 0)) & wanted
        return tf.cond(chosen, lambda: change(image, stateless.fold(key, number, 1)), lambda: image)

    def brightness(image, key):
        return _linear(image, 1.0, _uniform(key, -32.0, 32.0))

    def contrast(image, key):
        return _linear(image, _uniform(key, 0.5, 1.5), 0.0)

    def saturation(image, key):
        hue, saturation, value = tf.unstack(rgb_to_hsv(image), axis=-1)
        saturation = _linear(saturation, _uniform(key, 0.5, 1.5), 0.0)
        return hsv_to_rgb(tf.stack([hue, saturation, value], axis=-1))

    def hue(image, key):
        hue, saturation, value = tf.unstack(rgb_to_hsv(image), axis=-1)
        turned = (tf.cast(hue, tf.int32) + _integer(key, 36) - 18) % 180
        return hsv_to_rgb(tf.stack([tf.cast(turned, tf.uint8), saturation, value], axis=-1))

    image = part(0, brightness, image)
    contrast_first = _coin(stateless.fold(key, 4))
    image = part(1, contrast, image, contrast_first)
    image = part(2, saturation, image)
    image = part(3, hue, image)
    return part(1, contrast, image, ~contrast_first)


def _linear(x, factor, offset):
    """x * factor + offset in float32, clipped and cut to uint8."""
    x = tf.cast(x, tf.float32) * factor + offset
    return tf.cast(tf.clip_by_value(x, 0.0, 255.0), tf.uint8)


def _table(numerator):
    """numerator * 2**12 / i for i in 0..255, rounded, 0 at 0: OpenCV divides by tables."""
    divisors = tf.range(256, dtype=tf.float64)
    return tf.cast(tf.round(tf.math.divide_no_nan(numerator * 2.0**12, divisors)), tf.int32)


def _divide(x, table, divisor):
    """x times the table's entry, over 2**12, rounded; integers."""
    return tf.bitwise.right_shift(x * tf.gather(table, divisor) + 2**11, 12)


def rgb_to_hsv(image):
    """OpenCV's HSV of 8 bits, equal to it in every bit: hue in [0, 180).

    Args:
      image: uint8 [..., 3], RGB.

    Returns:
      uint8 [..., 3].
    """
    red, green, blue = tf.unstack(tf.cast(image, tf.int32), axis=-1)
    value = tf.maximum(tf.maximum(red, green), blue)
    span = value - tf.minimum(tf.minimum(red, green), blue)
    saturation = _divide(span, _table(255.0), value)
    hue = tf.where(
        value == red,
        green - blue,
        tf.where(value == green, blue - red + 2 * span, red - green + 4 * span),
    )
    hue = _divide(hue, _table(30.0), span)
    hue += tf.where(hue < 0, 180, 0)
    return tf.cast(tf.stack([hue, saturation, value], axis=-1), tf.uint8)


def hsv_to_rgb(image):
    """The inverse of `rgb_to_hsv`, rounded to the nearest.

    OpenCV's own result differs by 1 within one image: where it takes many pixels at a time it cuts
    off, and in the last columns of a row it rounds.

    Args:
      image: uint8 [..., 3] with hue in [0, 180).

    Returns:
      uint8 [..., 3], RGB.
    """
    hue, saturation, value = tf.unstack(tf.cast(image, tf.float32), axis=-1)
    hue, saturation = hue / 30, saturation / 255
    sector = tf.floor(hue)
    part = hue - sector
    falling, rising = value * (1 - saturation * part), value * (1 - saturation * (1 - part))
    low = value * (1 - saturation)
    # By sextant: where red, green and blue are on the way from the least to the largest.
    red = [value, falling, low, low, rising, value]
    green = [rising, value, value, falling, low, low]
    blue = [low, low, rising, value, value, falling]
    sector = tf.cast(sector, tf.int32)
    channels = [_choose(sector, channel) for channel in (red, green, blue)]
    return tf.cast(tf.round(tf.stack(channels, axis=-1)), tf.uint8)


def _choose(index, values):
    chosen = values[-1]
    for number, value in enumerate(values[:-1]):
        chosen = tf.where(index == number, value, chosen)
    return chosen
