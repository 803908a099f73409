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


@pytest.mark.parametrize("name", ["nmf", "cd", "vq"])
def test_factors_are_of_what_was_solved(name):
    # Bases that learn online follow the solver's last state, which is what the factors hold.
    seen = []

    def spy(update, x, state, num_steps):
        state = decomposition.one_step(update, x, state, num_steps)
        seen.append((x, state[0]))
        return state

    x, bases = tf.constant(array(2, 12, 5)), tf.constant(np.abs(array(2, 5, 3)))
    factors = getattr(decomposition, name)(x, bases, num_steps=2, solve=spy)
    ((solved_x, solved_bases),) = seen
    np.testing.assert_array_equal(factors.x, solved_x)
    np.testing.assert_array_equal(factors.bases, solved_bases)
    expected = np.maximum(x, 0) if name == "nmf" else x
    np.testing.assert_array_equal(factors.x, expected)


@pytest.mark.parametrize("sections", [1, 3])
@pytest.mark.parametrize("kind", [Hamburger, HamburgerV2Plus])
def test_layer_hands_out_its_hams(kind, sections):
    layer = build(kind(rank=2, dim=4, sections=sections, num_steps=3), None, *SHAPE[1:])
    x = tf.constant(array(*SHAPE))
    y, hams = layer(x, keys=KEYS, return_hams=True)
    np.testing.assert_array_equal(y, layer(x, keys=KEYS))
    assert tuple(hams) == kind.hams
    again = layer.decompose(x, layer.initial(KEYS))
    fewer = layer.decompose(x, layer.initial(KEYS), num_steps=0)
    for ham, factors in hams.items():
        assert factors.x.shape[0] == 3 * sections
        for one, other in zip(factors, again[ham], strict=True):
            np.testing.assert_array_equal(one, other)
        expected = np.mean(
            np.linalg.norm(factors.x - factors.product(), axis=(1, 2))
            / np.linalg.norm(factors.x, axis=(1, 2))
        )
        assert factors.residual().numpy() == pytest.approx(expected, rel=1e-4)
        assert fewer[ham].residual() > factors.residual()
