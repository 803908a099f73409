"""Spectrally normalised layers."""

import functools

import numpy as np
import numpy_reference as reference
import pytest
import tensorflow as tf
from helpers import (
    array,
    assert_close,
    assert_config_round_trips,
    assert_modes_agree,
    build,
    numerical_gradient,
    two_replicas,
    weights,
)

from hamgan import spectral

LABELS = np.array([3, 0, 3, 5], np.int32)


def _conv(w, x, exact):
    return reference.sn_conv(w, x, exact=exact)


# Name: constructor, input, the same in NumPy (weights, x, exact).
LAYERS = {
    "dense": (
        functools.partial(spectral.SpectralDense, 7),
        array(4, 5),
        lambda w, x, exact: (
            x @ reference.normalized_kernel(w["kernel"], w["u"], exact=exact) + w.get("bias", 0.0)
        ),
    ),
    "conv1": (functools.partial(spectral.SpectralConv2D, 6, 1), array(2, 5, 3, 4), _conv),
    "conv3": (functools.partial(spectral.SpectralConv2D, 6, 3), array(2, 5, 3, 4), _conv),
    "up": (
        functools.partial(spectral.SpectralUpConv2D, 6),
        array(2, 5, 3, 4),
        lambda w, x, exact: _conv(w, reference.upsample(x), exact),
    ),
    "down": (
        functools.partial(spectral.SpectralDownConv2D, 6),
        array(2, 6, 4, 4),
        lambda w, x, exact: reference.average_pool(_conv(w, x, exact)),
    ),
}
with_layers = pytest.mark.parametrize("name", LAYERS)
# A kernel whose norm is below 1, and one above: what max(1, sigma) tells apart.
with_norms = pytest.mark.parametrize("norm", [0.5, 3.0])
with_exact = pytest.mark.parametrize("exact", [False, True])


def made(name, norm=None, **kwargs):
    constructor, x, _ = LAYERS[name]
    layer = build(constructor(**kwargs), None, *x.shape[1:])
    return (set_norm(layer, norm) if norm else layer), tf.constant(x)


def embedding(norm=None, **kwargs):
    layer = build(spectral.SpectralEmbedding(6, 5, **kwargs))
    return set_norm(layer, norm) if norm else layer


def matrix_of(layer):
    """The matrix whose norm counts, float64."""
    kernel = np.float64(layer.kernel.numpy())
    return (
        kernel.T
        if isinstance(layer, spectral.SpectralEmbedding)
        else kernel.reshape(-1, kernel.shape[-1])
    )


def set_norm(layer, norm):
    """Scales the kernel to a largest singular value `norm`, and puts u near its vector."""
    left, values, _ = np.linalg.svd(matrix_of(layer))
    layer.kernel.assign(layer.kernel * (norm / values[0]))
    layer.u.assign(left[:, :1] + 0.1 * array(len(left), 1))
    return layer


def test_power_iteration_equals_numpy():
    matrix, u = array(6, 4), array(6, 1, seed=1)
    result = spectral.power_iteration(tf.constant(matrix), tf.constant(u))[:2]
    for one, other in zip(
        result, reference.power_iteration(np.float64(matrix), np.float64(u)), strict=True
    ):
        assert_close(one, other, 1e-6)


def test_power_iteration_of_zeros_is_finite():
    for vector in spectral.power_iteration(tf.zeros([6, 4]), tf.ones([6, 1])):
        np.testing.assert_array_equal(vector, np.zeros_like(vector))


def test_u_and_v_are_constant_for_the_gradient():
    matrix, u = tf.constant(array(6, 4)), tf.constant(array(6, 1, seed=1))
    with tf.GradientTape() as tape:
        tape.watch([matrix, u])
        new_u, v, product = spectral.power_iteration(matrix, u)
        sigma = tf.reduce_sum(new_u * product)
    of_matrix, of_u = tape.gradient(sigma, [matrix, u])
    assert of_u is None
    assert_close(of_matrix, np.outer(new_u, v), 1e-6)


@with_exact
@with_norms
@with_layers
def test_layer_equals_numpy(name, norm, exact):
    layer, x = made(name, norm, exact=exact)
    assert_close(layer(x), LAYERS[name][2](weights(layer), np.float64(x), exact), 1e-5)


@with_layers
def test_layer_without_bias_equals_numpy(name):
    layer, x = made(name, use_bias=False)
    assert sorted(weights(layer)) == ["kernel", "u"]
    assert_close(layer(x), LAYERS[name][2](weights(layer), np.float64(x), False), 1e-5)


@with_norms
def test_embedding_equals_numpy(norm):
    layer = embedding(norm)
    w = weights(layer)
    assert sorted(w) == ["kernel", "u"] and w["u"].shape == (5, 1)
    assert_close(layer(LABELS), reference.normalized_embedding(w["kernel"], w["u"])[LABELS], 1e-6)


def test_one_pixel_is_upsampled():
    layer = build(spectral.SpectralUpConv2D(3), None, 1, 1, 2)
    x = array(1, 1, 1, 2)
    assert_close(layer(tf.constant(x)), LAYERS["up"][2](weights(layer), np.float64(x), False), 1e-5)


def test_initial_weights():
    layer = spectral.SpectralConv2D(256, 3)
    layer.build((None, 8, 8, 128))
    # VarianceScaling(1.0, fan_avg, uniform): up to sqrt(3 / ((fan_in + fan_out) / 2)).
    limit = np.sqrt(6 / (9 * 128 + 9 * 256))
    kernel = layer.kernel.numpy()
    assert 0.99 * limit < np.abs(kernel).max() <= limit
    np.testing.assert_allclose(kernel.std(), limit / np.sqrt(3), rtol=0.02)
    np.testing.assert_array_equal(layer.bias, np.zeros(256))
    assert layer.u.shape == (9 * 128, 1) and abs(layer.u.numpy().std() - 1) < 0.1


@pytest.mark.parametrize("name", [*LAYERS, "embedding"])
def test_u_changes_in_training_only(name):
    layer, x = (embedding(), LABELS) if name == "embedding" else made(name)
    before = layer.u.numpy()
    infers = layer(x, training=False)
    np.testing.assert_array_equal(layer.u, before)
    trains = layer(x, training=True)
    expected, _ = reference.power_iteration(matrix_of(layer), np.float64(before))
    assert_close(layer.u, expected, 1e-6)
    # Both divide by the same: the iteration is computed in inference too, it just isn't stored.
    np.testing.assert_array_equal(infers, trains)
    layer(x, training=True)
    assert_close(layer.u, reference.power_iteration(matrix_of(layer), expected)[0], 1e-6)


@pytest.mark.parametrize("name", [*LAYERS, "embedding"])
def test_iterations_reach_the_largest_singular_value(name):
    layer = embedding() if name == "embedding" else made(name)[0]
    for _ in range(100):
        layer.normalizer(training=True)
    layer.exact = True
    norm = np.linalg.norm(matrix_of(layer), ord=2)
    np.testing.assert_allclose(layer.normalizer(training=False), norm, rtol=1e-4)


@pytest.mark.parametrize("name", [*LAYERS, "embedding"])
@with_norms
@with_exact
def test_gradient_equals_finite_differences_with_u_and_v_frozen(name, norm, exact):
    layer = (
        embedding(norm, exact=exact) if name == "embedding" else made(name, norm, exact=exact)[0]
    )
    direction = array(*layer.kernel.shape, seed=2)
    matrix = matrix_of(layer)
    u, v = reference.power_iteration(matrix, np.float64(layer.u.numpy()))
    weight = direction.T if name == "embedding" else direction.reshape(matrix.shape)

    def loss(matrix):
        sigma = (u.T @ matrix @ v)[0, 0]
        return np.sum(weight * matrix / (sigma if exact else max(1.0, sigma)))

    with tf.GradientTape() as tape:
        total = tf.reduce_sum(direction * layer.normalized_kernel(training=True))
    gradient = tape.gradient(total, layer.kernel.value).numpy()
    gradient = gradient.T if name == "embedding" else gradient.reshape(matrix.shape)
    assert_close(gradient, numerical_gradient(loss, matrix), 1e-4)
    if exact or norm > 1:
        # It isn't that of a constant sigma.
        constant = weight / (u.T @ matrix @ v)
        assert np.linalg.norm(gradient - constant) > 0.05 * np.linalg.norm(constant)


def test_u_is_not_trained():
    layer, _ = made("conv3")
    assert [v.name for v in layer.trainable_variables] == ["kernel", "bias"]
    assert [v.name for v in layer.non_trainable_variables] == ["u"]


@with_layers
def test_modes_agree(name):
    assert_modes_agree(*made(name))


def test_modes_agree_on_the_gradient_and_u():
    layer, x = made("up")
    first = tf.constant(layer.u.numpy())

    def step(x):
        layer.u.assign(first)
        with tf.GradientTape() as tape:
            y = layer(x, training=True)
        return y, tape.gradient(y, layer.kernel.value), tf.identity(layer.u.value)

    assert_modes_agree(step, x)


@with_layers
def test_dynamic_batch(name):
    layer, x = made(name)
    dynamic = tf.function(layer, input_signature=[tf.TensorSpec([None, *x.shape[1:]])])
    for batch in (1, 2):
        y = dynamic(x[:batch])
        assert_close(y, layer(x[:batch]), 1e-6)
    assert y.shape[1:] == layer(x).shape[1:]


@with_layers
def test_config_round_trips(name):
    constructor, x, _ = LAYERS[name]
    shape = (None, *x.shape[1:])
    assert_config_round_trips(build(constructor(name="layer"), *shape), *shape)
    assert_config_round_trips(
        build(
            constructor(use_bias=False, exact=True, dtype="mixed_bfloat16", name="layer"), *shape
        ),
        *shape,
    )


def test_embedding_config_round_trips():
    assert_config_round_trips(embedding(exact=True, name="table"))


@pytest.mark.parametrize("name", [*LAYERS, "embedding"])
def test_norm_is_taken_in_float32_below_bfloat16(name):
    if name == "embedding":
        full, half, x = embedding(), embedding(dtype="mixed_bfloat16"), LABELS
    else:
        (full, x), (half, _) = made(name), made(name, dtype="mixed_bfloat16")
    assert half.kernel.dtype == half.u.dtype == "float32"
    assert half.normalizer(training=False).dtype == tf.float32
    np.testing.assert_array_equal(half.normalizer(training=True), full.normalizer(training=True))
    y = half(x)
    assert y.dtype == tf.bfloat16
    assert_close(tf.cast(y, tf.float32), full(x), 0.02)


def test_replicas_store_one_u():
    strategy = two_replicas()
    alone, x = made("conv3")
    with strategy.scope():
        layer, _ = made("conv3")

    @tf.function
    def step(x):
        return strategy.run(lambda: layer(x, training=True))

    for _ in range(3):
        outputs = strategy.experimental_local_results(step(x))
        expected = alone(x, training=True)
        for y in outputs:
            assert_close(y, expected, 1e-6)
        for u in strategy.experimental_local_results(layer.u.value):
            assert_close(u, alone.u.numpy(), 1e-6)
