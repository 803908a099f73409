"""Penalties added to the discriminator's loss: R1 and consistency. Off unless given to the trainer.

A part is a function (discriminator, real, fake) -> float32 scalar, the mean over this replica's
examples, with two
attributes: `name`, under which it is logged, and `interval`: it is applied at every so many steps,
that many times as strong. It sees the images as they are, before any augmentation, and calls the
discriminator with training=False, which computes the same and stores nothing.
"""

import dataclasses
from typing import NamedTuple

import tensorflow as tf

from hamgan import arguments
from hamgan.augmentation import DiffAugment


class Examples(NamedTuple):
    """What a penalty sees of one half of a batch.

    Attributes:
      images: [B, S, S, 3] in [-1, 1].
      labels: int [B].
      keys: int32 [B, 2] of the discriminator's initial bases.
      augmentation_keys: int32 [B, 2] for changes that a penalty makes itself.
    """

    images: tf.Tensor
    labels: tf.Tensor
    keys: tf.Tensor
    augmentation_keys: tf.Tensor


@arguments.take(weight=arguments.number(0), interval=arguments.whole(1))
@dataclasses.dataclass(frozen=True, kw_only=True)
class R1:
    """weight / 2 times the squared gradient of the logit with respect to real images (Mescheder et
    al. 2018).

    Attributes:
      weight: gamma in the paper.
      interval: 1: every step; 16 is StyleGAN2's lazy regularisation.
    """

    weight: float = 10.0
    interval: int = 1
    name = "r1"

    def __post_init__(self):
        arguments.check_fields(self)

    def __call__(self, discriminator, real, fake):
        del fake
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(real.images)
            # Rows don't see one another, so the gradient of the sum has each row's own.
            total = tf.reduce_sum(
                discriminator(real.images, real.labels, training=False, keys=real.keys)
            )
        gradient = tape.gradient(total, real.images)
        return self.weight / 2 * tf.reduce_mean(tf.reduce_sum(tf.square(gradient), axis=[1, 2, 3]))


@arguments.take(
    augment=arguments.function("@augmentation.DiffAugment()"),
    real_weight=arguments.number(0),
    fake_weight=arguments.number(0),
    interval=arguments.whole(1),
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Consistency:
    """weight times the squared change of the logit when the image is augmented (Zhang et al. 2020).

    Attributes:
      augment: function (images, keys) -> images, which the logit shouldn't notice.
      real_weight: of real images, lambda in the paper.
      fake_weight: of generated images; with one this is balanced consistency (Zhao et al. 2021).
      interval: as in `R1`.
    """

    augment: DiffAugment = DiffAugment(colour=False, cutout=0.0)
    real_weight: float = 10.0
    fake_weight: float = 0.0
    interval: int = 1
    name = "consistency"

    def __post_init__(self):
        arguments.check_fields(self)

    def __call__(self, discriminator, real, fake):
        penalty = tf.zeros([])
        for examples, weight in ((real, self.real_weight), (fake, self.fake_weight)):
            if weight:
                penalty += weight * self._change(discriminator, examples)
        return penalty

    def _change(self, discriminator, examples):
        augmented = self.augment(examples.images, examples.augmentation_keys)
        images = tf.concat([examples.images, augmented], axis=0)
        labels, keys = (
            tf.concat([value, value], axis=0) for value in (examples.labels, examples.keys)
        )
        plain, changed = tf.split(discriminator(images, labels, training=False, keys=keys), 2)
        return tf.reduce_mean(tf.square(plain - changed))
