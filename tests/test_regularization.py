"""R1 and consistency, against finite differences and their definitions."""

import numpy as np
import pytest
import tensorflow as tf

from hamgan import regularization, stateless
from hamgan.augmentation import DiffAugment
from hamgan.regularization import R1, Consistency, Examples


class Quadratic:
    """logit = (x^T A x + b[label]^T x) key: a discriminator whose gradient is known, (2 A x + b)
    key.
    """

    def __init__(self, size=6):
        rng = np.random.default_rng(0)
        matrix = rng.normal(size=[size, size])
        self.matrix = np.float32(matrix + matrix.T)
        self.vectors = rng.normal(size=[3, size]).astype(np.float32)

    def __call__(self, images, labels, training, keys):
        assert not training
        x = tf.reshape(images, [tf.shape(images)[0], -1])
        value = tf.einsum("bi,ij,bj->b", x, self.matrix, x) + tf.reduce_sum(
            tf.gather(self.vectors, labels) * x, axis=1
        )
        return (value * tf.cast(keys[:, 0], tf.float32))[:, None]


def examples(seed, count=4, shape=(1, 2, 3)):
    rng = np.random.default_rng(seed)
    keys = stateless.example_keys(stateless.key(seed), tf.range(count))
    return Examples(
        tf.constant(rng.normal(size=[count, *shape]).astype(np.float32)),
        tf.constant(rng.integers(0, 3, count).astype(np.int32)),
        tf.constant(rng.integers(1, 4, [count, 2]).astype(np.int32)),
        keys,
    )


def test_r1_equals_finite_differences():
    discriminator, real = Quadratic(), examples(1)
    logits, step = [], 1e-2
    for direction in np.eye(6, dtype=np.float32).reshape(6, 1, 1, 2, 3):
        ahead, behind = (
            discriminator(
                real.images + sign * step * direction, real.labels, training=False, keys=real.keys
            )[:, 0]
            for sign in (1, -1)
        )
        logits.append((ahead - behind) / (2 * step))  # central differences of a quadratic are exact
    expected = 7.0 / 2 * np.mean(np.sum(np.square(logits), axis=0))
    assert R1(weight=7.0)(discriminator, real, None).numpy() == pytest.approx(expected, rel=1e-3)


def test_consistency_is_the_squared_change_of_the_logit():
    discriminator, real, fake = Quadratic(), examples(1), examples(2)

    def augment(images, keys):
        return images * (1 + tf.cast(keys[:, 1] % 3, tf.float32))[:, None, None, None]

    def change(part):
        plain, changed = (
            discriminator(images, part.labels, training=False, keys=part.keys)
            for images in (part.images, augment(part.images, part.augmentation_keys))
        )
        return np.mean(np.square(changed - plain))

    for weights in ((10.0, 0.0), (10.0, 3.0), (0.0, 2.0)):
        part = Consistency(augment=augment, real_weight=weights[0], fake_weight=weights[1])
        expected = weights[0] * change(real) + weights[1] * change(fake)
        assert part(discriminator, real, fake).numpy() == pytest.approx(expected, rel=1e-4)


def test_discriminator_that_notices_nothing_is_consistent():
    def mean_colour(images, labels, training, keys):
        return tf.reduce_mean(images, axis=[1, 2, 3])[:, None]

    still = Consistency(
        augment=DiffAugment(colour=False, translation=0.0, cutout=0.0), fake_weight=1.0
    )
    assert still(mean_colour, examples(1), examples(2)).numpy() == 0


@pytest.mark.parametrize(
    "part, kwargs, message",
    [
        (R1, dict(weight=-1.0), "R1: weight must not be negative, got -1.0"),
        (R1, dict(interval=0), "R1: interval must be at least 1, got 0"),
        (
            Consistency,
            dict(fake_weight=-1.0),
            "Consistency: fake_weight must not be negative, got -1.0",
        ),
    ],
)
def test_penalty_that_makes_no_sense_is_refused(part, kwargs, message):
    with pytest.raises(ValueError, match=message):
        part(**kwargs)


def test_names_differ():
    assert len({R1.name, Consistency.name}) == 2 and regularization.R1().interval == 1
