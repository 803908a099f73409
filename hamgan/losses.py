"""Losses, all of them TF-GAN's functions: hinge, that of SAGAN and HamGAN, and what others use.

Each takes unscaled discriminator outputs of one replica, in any float type, and returns a float32
scalar: the mean over that replica's batch. The trainer divides by the number of replicas.

Args of all: real_logits, [B] or [B, 1] outputs for real images, and fake_logits, those for
generated images, of the same shape. Raises: ValueError: the shapes differ.
"""

import tensorflow as tf

from hamgan import tfgan


def hinge_discriminator(real_logits: tf.Tensor, fake_logits: tf.Tensor) -> tf.Tensor:
    """mean(max(0, 1 - real)) + mean(max(0, 1 + fake)) (https://arxiv.org/abs/1802.05957)."""
    return _of_pair(tfgan.wasserstein_hinge_discriminator_loss, real_logits, fake_logits)


def hinge_generator(fake_logits: tf.Tensor) -> tf.Tensor:
    """-mean(fake)."""
    return _of_fakes(tfgan.wasserstein_hinge_generator_loss, fake_logits)


def non_saturating_discriminator(real_logits: tf.Tensor, fake_logits: tf.Tensor) -> tf.Tensor:
    """mean(softplus(-real)) + mean(softplus(fake)): cross-entropy
    (https://arxiv.org/abs/1406.2661).
    """
    return _of_pair(
        tfgan.modified_discriminator_loss, real_logits, fake_logits, label_smoothing=0.0
    )


def non_saturating_generator(fake_logits: tf.Tensor) -> tf.Tensor:
    """mean(softplus(-fake))."""
    return _of_fakes(tfgan.modified_generator_loss, fake_logits)


def least_squares_discriminator(real_logits: tf.Tensor, fake_logits: tf.Tensor) -> tf.Tensor:
    """mean((real - 1)^2) / 2 + mean(fake^2) / 2 (https://arxiv.org/abs/1611.04076)."""
    return _of_pair(tfgan.least_squares_discriminator_loss, real_logits, fake_logits)


def least_squares_generator(fake_logits: tf.Tensor) -> tf.Tensor:
    """mean((fake - 1)^2) / 2."""
    return _of_fakes(tfgan.least_squares_generator_loss, fake_logits)


def wasserstein_discriminator(real_logits: tf.Tensor, fake_logits: tf.Tensor) -> tf.Tensor:
    """mean(fake) - mean(real), the spectral norms keeping it bounded
    (https://arxiv.org/abs/1701.07875).
    """
    return _of_pair(tfgan.wasserstein_discriminator_loss, real_logits, fake_logits)


def wasserstein_generator(fake_logits: tf.Tensor) -> tf.Tensor:
    """-mean(fake)."""
    return _of_fakes(tfgan.wasserstein_generator_loss, fake_logits)


def _of_pair(loss, real_logits, fake_logits, **kwargs):
    # Without the collection: it is TF1's list of losses, which nothing here would ever empty. In
    # float32 from the start, because TF-GAN's cross-entropies keep the type they are given.
    real_logits.shape.assert_is_compatible_with(fake_logits.shape)
    return loss(_to_float(real_logits), _to_float(fake_logits), loss_collection=None, **kwargs)


def _of_fakes(loss, fake_logits):
    return loss(_to_float(fake_logits), loss_collection=None)


def _to_float(logits):
    return tf.cast(logits, tf.float32)
