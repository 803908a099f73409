"""DiffAugment, against the same changes written with NumPy."""

import numpy as np
import pytest
import tensorflow as tf
from helpers import array, assert_modes_agree, gradients

from hamgan import augmentation, stateless
from hamgan.augmentation import DiffAugment

KEYS = stateless.example_keys(stateless.key(3), tf.range(6))
PARTS = {
    "colour": DiffAugment(translation=0.0, cutout=0.0),
    "translation": DiffAugment(colour=False, cutout=0.0),
    "cutout": DiffAugment(colour=False, translation=0.0),
    "all": DiffAugment(),
}
with_parts = pytest.mark.parametrize("part", PARTS)


def images(count=6, size=16):
    return np.tanh(array(count, size, size, 3))


@with_parts
def test_same_key_same_change(part):
    augment, x = PARTS[part], images()
    y = augment(tf.constant(x), KEYS).numpy()
    assert y.shape == x.shape and y.dtype == np.float32
    np.testing.assert_array_equal(augment(tf.constant(x), KEYS), y)
    order = [4, 0, 0]
    np.testing.assert_array_equal(augment(tf.constant(x[order]), tf.gather(KEYS, order)), y[order])
    alike = augment(tf.constant(np.repeat(x[:1], 6, axis=0)), KEYS).numpy()
    assert len({row.tobytes() for row in alike}) > 3  # other keys, other changes


def test_modes_agree():
    assert_modes_agree(DiffAugment(), tf.constant(images()), KEYS)


@with_parts
def test_gradient_is_that_of_an_affine_function(part):
    # All changes are affine in the image: f(x + d) - f(x) = J d, and the gradient of sum(w f) is
    # J^T w.
    augment, x, d, w = (
        PARTS[part],
        images(),
        array(6, 16, 16, 3, seed=1),
        array(6, 16, 16, 3, seed=2),
    )
    (gradient,) = gradients(lambda x: w * augment(x, KEYS), x)
    change = augment(tf.constant(x + d), KEYS).numpy() - augment(tf.constant(x), KEYS).numpy()
    per_example = np.sum(gradient.numpy() * d, axis=(1, 2, 3)), np.sum(w * change, axis=(1, 2, 3))
    np.testing.assert_allclose(*per_example, rtol=1e-3, atol=1e-2)
    assert np.all(np.abs(gradient.numpy()).sum(axis=(1, 2, 3)) > 0)


def test_colours_equal_numpy():
    x = np.float64(images(2))
    brightness, saturation, contrast = np.float32([[0.1, 0.9], [0.3, 0.75], [0.2, 0.6]])
    expected = x + (brightness - 0.5)[:, None, None, None]
    grey = expected.mean(axis=3, keepdims=True)
    expected = (expected - grey) * (2 * saturation)[:, None, None, None] + grey
    mean = expected.mean(axis=(1, 2, 3), keepdims=True)
    expected = (expected - mean) * (contrast + 0.5)[:, None, None, None] + mean
    got = augmentation.change_colour(tf.constant(x, tf.float32), brightness, saturation, contrast)
    np.testing.assert_allclose(got, expected, atol=1e-5)
    half = tf.fill([2], 0.5)
    np.testing.assert_allclose(
        augmentation.change_colour(tf.constant(x, tf.float32), half, half, half), x, atol=1e-6
    )


@pytest.mark.parametrize("down, right", [(0, 0), (2, -1), (-2, 2)])
def test_translation_equals_numpy(down, right):
    x = images(1)
    # Shifts of -2 to 2 at 16 pixels and a share of 1/8: u = (shift + 2.5) / 5 is the middle of a
    # shift's part.
    u, v = (np.float32([(shift + 2.5) / 5]) for shift in (down, right))
    padded = np.pad(x, [(0, 0), (2, 2), (2, 2), (0, 0)])
    expected = padded[:, 2 - down : 18 - down, 2 - right : 18 - right]
    np.testing.assert_array_equal(
        augmentation.translate(tf.constant(x), u, v, share=0.125), expected
    )


def test_translations_reach_both_limits_and_no_further():
    x = np.zeros([2, 16, 16, 1], np.float32)
    x[:, 8, 8] = 1
    moved = augmentation.translate(
        tf.constant(x), np.float32([0, 1 - 2**-24]), np.float32([0, 0.5]), share=0.125
    )
    assert [tuple(place) for place in np.argwhere(moved.numpy()[..., 0])] == [(0, 6, 6), (1, 10, 8)]


@pytest.mark.parametrize("size, share, length", [(16, 0.5, 8), (15, 0.5, 8), (16, 0.3, 5)])
def test_cutout_equals_numpy(size, share, length):
    ones = np.ones([1, size, size, 2], np.float32)
    places = size + 1 - length % 2
    for y, x in [(0, places - 1), (3, places // 2)]:
        expected = ones.copy()
        rows, columns = (
            slice(max(first, 0), max(first + length, 0))
            for first in (y - length // 2, x - length // 2)
        )
        expected[:, rows, columns] = 0
        u, v = (np.float32([(place + 0.5) / places]) for place in (y, x))
        np.testing.assert_array_equal(
            augmentation.cut_out(tf.constant(ones), u, v, share=share), expected
        )


def test_parts_that_are_off_change_nothing():
    x = images()
    np.testing.assert_array_equal(
        DiffAugment(colour=False, translation=0.0, cutout=0.0)(tf.constant(x), KEYS), x
    )


@pytest.mark.parametrize("name, value", [("translation", -0.1), ("cutout", 1.5)])
def test_share_outside_the_image_is_refused(name, value):
    with pytest.raises(
        ValueError, match=rf"{name} is a share of the image, in \[0, 1\]; got {value}"
    ):
        DiffAugment(**{name: value})
