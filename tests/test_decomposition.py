"""NMF and its one-step gradient."""

import numpy as np
import numpy_reference as reference
import pytest
import tensorflow as tf
from helpers import array, assert_close, assert_modes_agree, numerical_gradient

from hamgan import decomposition


def nmf(x, bases, **kwargs):
    """The product of NMF's factors."""
    return decomposition.nmf(x, bases, **kwargs).product()


B, N, D, R, K = 3, 20, 8, 4, 6


def problem(dtype=np.float64, seed=0):
    """x [B, N, D] of both signs, bases [B, D, R] from U(0, 1), dy [B, N, D]."""
    rng = np.random.default_rng(seed)
    arrays = rng.normal(size=(B, N, D)), rng.uniform(size=(B, D, R)), rng.normal(size=(B, N, D))
    return [each.astype(dtype) for each in arrays]


def transposed(x):
    return np.swapaxes(x, 1, 2)


def unrolled(update, x, state, num_steps):
    """Backpropagation through all steps: the paper's counter-example."""
    for _ in range(num_steps):
        state = update(x, state)
    return state


def gradient(x, bases, dy, **kwargs):
    x, bases = tf.constant(x), tf.constant(bases)
    with tf.GradientTape() as tape:
        tape.watch([x, bases])
        loss = tf.reduce_sum(dy * nmf(x, bases, **kwargs))
    return tape.gradient(loss, [x, bases])


@pytest.mark.parametrize("num_steps", [0, 1, K, 100])
def test_nmf_equals_numpy(num_steps):
    x, bases, _ = problem()
    y = nmf(tf.constant(x), tf.constant(bases), num_steps=num_steps)
    assert_close(y, transposed(reference.nmf(transposed(x), bases, num_steps)), 1e-12)


def test_nmf_in_float32():
    x, bases, _ = problem(np.float32)
    y = nmf(tf.constant(x), tf.constant(bases), num_steps=K)
    assert y.dtype == tf.float32
    assert_close(y, transposed(reference.nmf(transposed(x), bases, K)), 1e-5)


@pytest.mark.parametrize("num_steps", [0, 1, K])
def test_gradient_is_that_of_the_last_step(num_steps):
    x, bases, dy = problem()
    dx, dbases = gradient(x, bases, dy, num_steps=num_steps)
    assert dbases is None
    assert_close(
        dx,
        transposed(
            reference.nmf_one_step_gradient(transposed(x), bases, num_steps, transposed(dy))
        ),
        1e-12,
    )


def test_gradient_is_not_that_of_all_steps():
    x, bases, dy = problem()
    y = [
        nmf(tf.constant(x), tf.constant(bases), num_steps=K, solve=s)
        for s in (decomposition.one_step, unrolled)
    ]
    np.testing.assert_array_equal(*y)
    one_step, _ = gradient(x, bases, dy, num_steps=K)
    through_all, dbases = gradient(x, bases, dy, num_steps=K, solve=unrolled)
    assert np.any(dbases.numpy() != 0)

    # The unrolled gradient is the function's own, so the one-step gradient isn't.
    def total(first):
        return np.sum(transposed(dy)[:1] * reference.nmf(first, bases[:1], K))

    assert_close(transposed(through_all[:1]), numerical_gradient(total, transposed(x)[:1]), 1e-6)
    difference = np.linalg.norm(one_step - through_all) / np.linalg.norm(through_all)
    assert difference > 0.05


def test_factors_stay_non_negative_and_the_error_does_not_rise():
    x, bases, _ = problem()
    x = np.maximum(x, 0)
    errors, factors = [], []

    def spy(update, x, state, num_steps):
        state = decomposition.one_step(update, x, state, num_steps)
        last_bases, coef = state
        factors.extend([last_bases, coef, update(x, state)[1]])
        return state

    for num_steps in range(12):
        y = nmf(tf.constant(x), tf.constant(bases), num_steps=num_steps, solve=spy)
        errors.append(np.sum((y - x) ** 2, axis=(1, 2)))
    assert len(factors) == 3 * 12
    assert all(np.all(factor.numpy() >= 0) for factor in factors)
    for before, after in zip(errors, errors[1:], strict=False):
        assert np.all(after <= before)
    assert np.all(errors[-1] < 0.9 * errors[0])


def test_exact_factorisation_is_approached():
    rng = np.random.default_rng(1)
    x = rng.uniform(size=(1, N, 2)) @ rng.uniform(size=(1, 2, D))
    y = nmf(tf.constant(x), tf.constant(rng.uniform(size=(1, D, R))), num_steps=500)
    assert_close(y, x, 1e-2)


def test_input_without_positive_entries_gives_zeros():
    x, bases, dy = problem(np.float32)
    x = -np.abs(x)
    np.testing.assert_array_equal(
        nmf(tf.constant(x), tf.constant(bases), num_steps=K), np.zeros_like(x)
    )
    dx, _ = gradient(x, bases, dy, num_steps=K)
    np.testing.assert_array_equal(dx, np.zeros_like(x))


def test_modes_agree_on_result_and_gradient():
    x, bases, dy = problem(np.float32)

    def both(x, bases):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = nmf(x, bases, num_steps=K)
        return y, tape.gradient(y, x, dy)

    assert_modes_agree(both, tf.constant(x), tf.constant(bases), tolerance=1e-4)


def test_dynamic_batch():
    x, bases, _ = problem(np.float32)
    dynamic = tf.function(
        lambda x, bases: nmf(x, bases, num_steps=K),
        input_signature=[tf.TensorSpec([None, N, D]), tf.TensorSpec([None, D, R])],
    )
    for batch in (1, B):
        expected = nmf(tf.constant(x[:batch]), tf.constant(bases[:batch]), num_steps=K)
        assert_close(dynamic(x[:batch], bases[:batch]), expected, 1e-6)


def test_one_step_stops_every_gradient():
    x, state = tf.constant(array(2, 3)), tf.constant(array(2, 3, seed=1))
    with tf.GradientTape() as tape:
        tape.watch([x, state])
        (result,) = decomposition.one_step(lambda x, state: (state[0] * x,), x, (state,), 3)
    np.testing.assert_allclose(result, state * x**3, rtol=1e-6)
    assert tape.gradient(result, [x, state]) == [None, None]


@pytest.mark.parametrize("dtype", [tf.float32, tf.float64])
@pytest.mark.parametrize("exponent", [-100, 0, 39.9, 40, 40.1, 47.9, 48.1, 64, 96.1, 127.9])
def test_huge_entries_are_scaled_into_a_range(exponent, dtype):
    largest = tf.constant(2.0**exponent, dtype)
    scale = decomposition._scale(tf.reshape(tf.stack([-largest, largest / 3]), [1, 2, 1]))
    power = np.log2(float(tf.squeeze(scale)))
    assert power == round(power)
    if exponent <= 40:
        assert power == 0
    else:
        assert 2.0**32 <= float(largest) / 2**power <= 2.0**40


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, 0.0])
def test_what_has_no_size_is_not_scaled(value):
    np.testing.assert_array_equal(decomposition._scale(tf.constant([[[value], [1.0]]])), [[[1]]])
