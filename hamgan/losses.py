"""Losses: hinge, that of SAGAN and HamGAN, and what others use, each as TF-GAN defines it
(but of no images, NaN).

Each takes unscaled discriminator outputs of one replica, in any float type, and returns a float32
scalar: the mean over that replica's batch. The trainer divides by the number of replicas.

Args of all: real_logits, [B] or [B, 1] outputs for real images, and fake_logits, those for
generated images, of the same shape. Raises: ValueError: the shapes differ.

They aren't TF-GAN's own functions because importing it takes a fifth as long as TensorFlow.
"""

import tensorflow as tf


def hinge_discriminator(real_logits: tf.Tensor, fake_logits: tf.Tensor) -> tf.Tensor:
    """mean(max(0, 1 - real)) + mean(max(0, 1 + fake)) (https://arxiv.org/abs/1802.05957)."""
    real, fake = _pair(real_logits, fake_logits)
    return tf.reduce_mean(tf.nn.relu(1 - real)) + tf.reduce_mean(tf.nn.relu(1 + fake))


def hinge_generator(fake_logits: tf.Tensor) -> tf.Tensor:
    """-mean(fake)."""
    return -tf.reduce_mean(_to_float(fake_logits))


def non_saturating_discriminator(real_logits: tf.Tensor, fake_logits: tf.Tensor) -> tf.Tensor:
    """mean(softplus(-real)) + mean(softplus(fake)): cross-entropy
    (https://arxiv.org/abs/1406.2661).
    """
    real, fake = _pair(real_logits, fake_logits)
    return tf.reduce_mean(tf.nn.softplus(-real)) + tf.reduce_mean(tf.nn.softplus(fake))


def non_saturating_generator(fake_logits: tf.Tensor) -> tf.Tensor:
    """mean(softplus(-fake))."""
    return tf.reduce_mean(tf.nn.softplus(-_to_float(fake_logits)))


def least_squares_discriminator(real_logits: tf.Tensor, fake_logits: tf.Tensor) -> tf.Tensor:
    """mean((real - 1)^2) / 2 + mean(fake^2) / 2 (https://arxiv.org/abs/1611.04076)."""
    real, fake = _pair(real_logits, fake_logits)
    return tf.reduce_mean(tf.square(real - 1)) / 2 + tf.reduce_mean(tf.square(fake)) / 2


def least_squares_generator(fake_logits: tf.Tensor) -> tf.Tensor:
    """mean((fake - 1)^2) / 2."""
    return tf.reduce_mean(tf.square(_to_float(fake_logits) - 1)) / 2


def wasserstein_discriminator(real_logits: tf.Tensor, fake_logits: tf.Tensor) -> tf.Tensor:
    """mean(fake) - mean(real), the spectral norms keeping it bounded
    (https://arxiv.org/abs/1701.07875).
    """
    real, fake = _pair(real_logits, fake_logits)
    return tf.reduce_mean(fake) - tf.reduce_mean(real)


def wasserstein_generator(fake_logits: tf.Tensor) -> tf.Tensor:
    """-mean(fake)."""
    return -tf.reduce_mean(_to_float(fake_logits))


def _pair(real_logits, fake_logits):
    real_logits.shape.assert_is_compatible_with(fake_logits.shape)
    return _to_float(real_logits), _to_float(fake_logits)


def _to_float(logits):
    return tf.cast(logits, tf.float32)
