"""Hinge losses of SAGAN and HamGAN (https://arxiv.org/abs/1802.05957): TF-GAN's functions.

Each takes unscaled discriminator outputs of one replica, in any float type, and returns a float32
scalar: the mean over that replica's batch. The trainer divides by the number of replicas.
"""

import tensorflow as tf

from hamgan import tfgan


def hinge_discriminator(real_logits: tf.Tensor, fake_logits: tf.Tensor) -> tf.Tensor:
    """mean(max(0, 1 - real)) + mean(max(0, 1 + fake)).

    Args:
      real_logits: [B] outputs for real images.
      fake_logits: outputs for generated images, of the same shape.

    Raises:
      ValueError: when the shapes differ.
    """
    # Without the collection: it is TF1's list of losses, which nothing here would ever empty.
    return tfgan.wasserstein_hinge_discriminator_loss(real_logits, fake_logits, loss_collection=None)


def hinge_generator(fake_logits: tf.Tensor) -> tf.Tensor:
    """-mean(fake), for outputs of shape [B]."""
    return tfgan.wasserstein_hinge_generator_loss(fake_logits, loss_collection=None)
