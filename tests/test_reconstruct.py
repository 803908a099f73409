"""A ham's product is never formed: the next kernel meets the factors first. The result is that of
the plain order.
"""

import functools

import numpy as np
import pytest
import tensorflow as tf
from helpers import array, assert_close, build

from hamgan import decomposition
from hamgan.context import Hamburger, HamburgerV2, HamburgerV2Plus

SHAPE = (3, 4, 6, 8)
LABELS = np.array([2, 0, 2], np.int32)
KEYS = np.array([[1, 2], [3, 4], [5, 6]], np.int32)


def without_factors(function):
    """The same decomposition as a function that gives the product alone."""

    def plain(x, bases, *, num_steps, solve):
        y = function(x, bases, num_steps=num_steps, solve=solve).product()
        assert y.shape == x.shape
        return y

    plain.draw_bases = function.draw_bases
    return plain


def run(layer):
    x = tf.constant(array(*SHAPE))
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = layer(x, LABELS, keys=KEYS)
    variables = sorted(layer.trainable_variables, key=lambda v: v.path.split("/")[1:])
    gradients = tape.gradient(y, [x, *(v.value for v in variables)], array(*SHAPE, seed=1))
    return y, [tf.convert_to_tensor(gradient) for gradient in gradients]


@pytest.mark.parametrize("num_classes", [None, 3])
@pytest.mark.parametrize("sections", [1, 3])
@pytest.mark.parametrize("name", ["nmf", "cd", "vq"])
@pytest.mark.parametrize("kind", [Hamburger, HamburgerV2, HamburgerV2Plus])
def test_order_of_products_changes_nothing(kind, name, sections, num_classes):
    # At temperature 1 rounding doesn't change which concept a pixel chooses.
    function = getattr(decomposition, name)
    warm = functools.partial(function, temperature=1.0)
    warm.draw_bases = function.draw_bases
    results = []
    for one in (warm, without_factors(warm)):
        layer = kind(decomposition=one, rank=2, dim=4, sections=sections, num_classes=num_classes)
        results.append(run(build(layer, None, *SHAPE[1:])))
    (y, gradients), (expected, expected_gradients) = results
    assert_close(y, expected, 1e-5)
    assert len(gradients) == len(expected_gradients) > 3
    for one, other in zip(gradients, expected_gradients, strict=True):
        assert_close(one, other, 1e-4)


@pytest.mark.parametrize("name", ["nmf", "cd", "vq"])
def test_product_is_that_of_the_factors(name):
    x, bases = tf.constant(array(2, 12, 5)), tf.constant(np.abs(array(2, 5, 3)))
    function = getattr(decomposition, name)
    factors = function(x, bases, num_steps=2)
    _, bases_out, coef = factors
    assert bases_out.shape == (2, 5, 3) and coef.shape == (2, 12, 3)
    assert_close(factors.product(), coef.numpy() @ np.swapaxes(bases_out, 1, 2), 1e-5)
