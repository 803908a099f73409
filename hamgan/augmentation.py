"""DiffAugment: what the discriminator sees is changed at random, real and generated alike (Zhao et
al. 2020).

https://arxiv.org/abs/2006.10738. Every change is differentiable with respect to the images, and a
function of a key per example.
"""

import dataclasses

import tensorflow as tf

from hamgan import arguments, stateless


@arguments.take(
    translation=arguments.number(0, most=1),
    cutout=arguments.number(0, most=1),
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class DiffAugment:
    """images [B, H, W, C] in [-1, 1], keys [B, 2] -> images of the same shape, row i a function of
    both rows i alone.

    Attributes:
      colour: change brightness by up to 0.5, saturation by a factor in [0, 2), contrast by one in
        [0.5, 1.5).
      translation: shift by up to this share of height and width, zeros coming in; 0: no shift. In
        the paper 1/8.
      cutout: set a square of this share of height and width to 0, which may lie partly outside; 0:
        none. In the paper 1/2.

    Raises:
      ValueError: a share isn't in [0, 1].
    """

    colour: bool = True
    translation: float = 0.125
    cutout: float = 0.5

    def __post_init__(self):
        for name in ("translation", "cutout"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ValueError(
                    f"DiffAugment: {name} is a share of the image, in [0, 1]; got {value}."
                )

    def __call__(self, images, keys):
        # All numbers of an example at once; those of a part don't depend on which other parts are
        # on.
        brightness, saturation, contrast, *places = tf.unstack(
            stateless.uniform([7], keys), axis=1
        )  # [B] each
        if self.colour:
            images = change_colour(images, brightness, saturation, contrast)
        if self.translation:
            images = translate(images, *places[:2], share=self.translation)
        if self.cutout:
            images = cut_out(images, *places[2:], share=self.cutout)
        return images


def _per_image(values):
    return values[:, None, None, None]


def change_colour(images, brightness, saturation, contrast):
    """images [B, H, W, C] and three times [B] in [0, 1), 0.5 for no change -> images."""
    images += _per_image(brightness - 0.5)
    mean = tf.reduce_mean(images, axis=3, keepdims=True)
    images = mean + (images - mean) * _per_image(2 * saturation)
    mean = tf.reduce_mean(images, axis=[1, 2, 3], keepdims=True)
    return mean + (images - mean) * _per_image(contrast + 0.5)


def _integers(uniform, count):
    """[B] in [0, 1) -> int32 [B] in [0, count)."""
    return tf.cast(uniform * count, tf.int32)


def translate(images, down, right, *, share):
    """images [B, H, W, C] and twice [B] in [0, 1) -> images, shifted by up to round(share * size)
    pixels each way.
    """
    for axis, uniform in ((1, down), (2, right)):
        size = images.shape[axis]
        limit = int(size * share + 0.5)
        shift = _integers(uniform, 2 * limit + 1) - limit
        source = tf.range(size) - shift[:, None]  # [B, size]
        inside = tf.cast((source >= 0) & (source < size), images.dtype)
        images = tf.gather(images, tf.clip_by_value(source, 0, size - 1), axis=axis, batch_dims=1)
        images *= inside[:, :, None, None] if axis == 1 else inside[:, None, :, None]
    return images


def cut_out(images, y, x, *, share):
    """images [B, H, W, C] and twice [B] in [0, 1) -> images with zeros in a rectangle of
    round(share * size).
    """
    kept = []
    for axis, uniform in ((1, y), (2, x)):
        size = images.shape[axis]
        length = int(size * share + 0.5)
        # Its first pixel: the middle may be any pixel, and for even lengths the edge behind the
        # last.
        first = _integers(uniform, size + 1 - length % 2) - length // 2
        offset = tf.range(size) - first[:, None]
        kept.append((offset < 0) | (offset >= length))  # [B, size]
    return images * tf.cast(kept[0][:, :, None] | kept[1][:, None, :], images.dtype)[..., None]
