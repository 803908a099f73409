"""Batch norm: plain, class-conditional, over replicas."""

import contextlib

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
    joined,
    numerical_gradient,
    per_replica,
    two_replicas,
    weights,
)

from hamgan import devices, normalization
from hamgan.normalization import BatchNorm, global_moments

SHAPE = (4, 3, 5, 6)
LABELS = np.array([2, 0, 2, 1], np.int32)
with_classes = pytest.mark.parametrize("num_classes", [None, 3])
with_training = pytest.mark.parametrize("training", [False, True])


def inputs(offset=0.7):
    """Examples that differ in mean and spread: the halves of the batch have other moments than the
    whole.
    """
    x = array(*SHAPE) * np.arange(1, 5, dtype=np.float32)[:, None, None, None]
    return x + np.float32(offset) * np.arange(4, dtype=np.float32)[:, None, None, None]


def made(num_classes=None, **kwargs):
    return build(BatchNorm(num_classes=num_classes, **kwargs), None, *SHAPE[1:])


def test_moments_equal_numpy():
    for one, other in zip(
        global_moments(tf.constant(inputs())), reference.moments(inputs()), strict=True
    ):
        assert one.dtype == tf.float32
        assert_close(one, other, 1e-6)


def test_moments_survive_a_large_mean():
    # float32 squares of 3000 are exact to 0.5 only: E[x^2] - E[x]^2 would be noise.
    x = array(*SHAPE) + 3000
    for one, other in zip(global_moments(tf.constant(x)), reference.moments(x), strict=True):
        assert_close(one, other, 1e-4)


@with_classes
@pytest.mark.parametrize("form", [normalization.one_kernel, contextlib.nullcontext])
def test_layer_survives_a_large_mean(num_classes, form):
    layer, x = made(num_classes), array(*SHAPE) + 3000
    labels = LABELS if num_classes else None
    expected = reference.batch_norm(weights(layer), x, labels, training=True)
    with form():
        assert_close(layer(tf.constant(x), labels, training=True), expected, 1e-3)


@with_classes
def test_one_kernel_equals_the_composition(num_classes):
    labels, results = (LABELS if num_classes else None), []
    for form in (normalization.one_kernel, contextlib.nullcontext):
        layer, x = made(num_classes), tf.constant(inputs())
        with form(), tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, labels, training=True)
            total = tf.reduce_sum(tf.sin(y))
        gradients = tape.gradient(total, [x, layer.gamma.value, layer.beta.value])
        results.append([y, *map(tf.convert_to_tensor, gradients), *layer.non_trainable_variables])
    for one, other in zip(*results, strict=True):
        assert_close(one, other, 1e-5)


def test_one_kernel_is_for_its_block():
    layer, x = made(), tf.constant(inputs())

    def operations():
        function = tf.function(lambda x: layer(x, training=True), autograph=False)
        return {op.type for op in function.get_concrete_function(x).graph.get_operations()}

    with normalization.one_kernel():
        assert "FusedBatchNormV3" in operations()
    assert "FusedBatchNormV3" not in operations()
    with normalization.one_kernel(), devices.planned("TPU"):
        assert "FusedBatchNormV3" not in operations()


def test_one_position_has_no_variance():
    layer = build(BatchNorm(momentum=0.5), None, 1, 1, 3)
    layer.moving_variance.assign(tf.ones([3]))
    with normalization.one_kernel():
        y = layer(tf.ones([1, 1, 1, 3]), training=True)
    assert_close(y, [[[layer.beta[0]]]], 1e-6)
    assert_close(layer.moving_variance, [0.5, 0.5, 0.5], 1e-6)


@with_training
@with_classes
def test_layer_equals_numpy(num_classes, training):
    layer, x = made(num_classes), inputs()
    labels = LABELS if num_classes else None
    expected = reference.batch_norm(weights(layer), x, labels, training=training)
    assert_close(layer(tf.constant(x), labels, training=training), expected, 1e-5)


def test_plain_norm_does_not_look_at_labels():
    layer, x = made(), tf.constant(inputs())
    np.testing.assert_array_equal(layer(x, LABELS), layer(x))


def test_initial_weights():
    layer = BatchNorm(num_classes=3)
    layer.build((None, 8, 8, 6))
    for name, value in dict(gamma=np.ones([3, 6]), beta=np.zeros([3, 6])).items():
        np.testing.assert_array_equal(getattr(layer, name), value)
    np.testing.assert_array_equal(layer.moving_mean, np.zeros(6))
    np.testing.assert_array_equal(layer.moving_variance, np.ones(6))
    assert [v.name for v in layer.trainable_variables] == ["gamma", "beta"]
    assert (layer.momentum, layer.epsilon) == (0.999, 1e-3)


def test_moving_averages_decay_without_debias():
    layer, x = made(momentum=0.9), inputs()
    mean, variance = weights(layer)["moving_mean"], weights(layer)["moving_variance"]
    for step in range(3):
        batch = x * (step + 1)
        layer(tf.constant(batch), training=True)
        batch_mean, batch_variance = reference.moments(batch)
        mean, variance = 0.9 * mean + 0.1 * batch_mean, 0.9 * variance + 0.1 * batch_variance
        assert_close(layer.moving_mean, mean, 1e-5)
        assert_close(layer.moving_variance, variance, 1e-5)
    before = weights(layer)
    layer(tf.constant(x), training=False)
    for name, value in weights(layer).items():
        np.testing.assert_array_equal(value, before[name])


@with_training
def test_gradients_equal_finite_differences(training):
    layer, x, dy = made(3), inputs(), array(*SHAPE, seed=1)
    w = weights(layer)
    with tf.GradientTape() as tape:
        x_tensor = tf.constant(x)
        tape.watch(x_tensor)
        total = tf.reduce_sum(dy * layer(x_tensor, LABELS, training=training))
    dx, dgamma, dbeta = tape.gradient(total, [x_tensor, layer.gamma.value, layer.beta.value])

    def loss(**changed):
        changed = {"x": np.float64(x), **w, **changed}
        return np.sum(dy * reference.batch_norm(changed, changed["x"], LABELS, training=training))

    assert_close(dx, numerical_gradient(lambda x: loss(x=x), x), 1e-4)
    dgamma, dbeta = (
        tf.convert_to_tensor(dgamma),
        tf.convert_to_tensor(dbeta),
    )  # of rows: IndexedSlices
    assert_close(dgamma, numerical_gradient(lambda gamma: loss(gamma=gamma), w["gamma"]), 1e-4)
    assert_close(dbeta, numerical_gradient(lambda beta: loss(beta=beta), w["beta"]), 1e-4)


def test_modes_agree():
    layer = made(3)
    assert_modes_agree(lambda x: layer(x, LABELS, training=False), tf.constant(inputs()))
    assert_modes_agree(lambda x: layer(x, LABELS, training=True), tf.constant(inputs()))


def test_dynamic_batch():
    layer, x = made(3), inputs()
    signature = [tf.TensorSpec([None, *SHAPE[1:]]), tf.TensorSpec([None], tf.int32)]
    dynamic = tf.function(
        lambda x, labels: layer(x, labels, training=True), input_signature=signature
    )
    for batch in (1, 4):
        expected = reference.batch_norm(weights(layer), x[:batch], LABELS[:batch], training=True)
        assert_close(dynamic(x[:batch], LABELS[:batch]), expected, 1e-5)


def test_moments_are_float32_below_bfloat16():
    layer, x = made(3, dtype="mixed_bfloat16"), tf.cast(inputs(), tf.bfloat16)
    rounded = tf.cast(x, tf.float32).numpy()
    expected = reference.batch_norm(weights(layer), rounded, LABELS, training=True)
    for one, other in zip(global_moments(x), reference.moments(rounded), strict=True):
        assert one.dtype == tf.float32
        assert_close(one, other, 1e-6)
    y = layer(x, LABELS, training=True)
    assert y.dtype == tf.bfloat16
    assert_close(tf.cast(y, tf.float32), expected, 0.02)
    assert {v.dtype for v in layer.variables} == {"float32"}


def test_config_round_trips():
    shape = (None, *SHAPE[1:])
    assert_config_round_trips(made(name="norm"), *shape)
    layer = made(
        5, momentum=0.9, epsilon=0.1, cross_replica=False, dtype="mixed_bfloat16", name="norm"
    )
    assert_config_round_trips(layer, *shape)


def test_conditional_norm_needs_labels():
    layer = made(3, name="norm_1")
    with pytest.raises(ValueError, match="norm_1 has 3 classes: labels are needed, got None"):
        layer(tf.constant(inputs()))


# Replicas


def training_pass(layer, x, labels, dy):
    """y, and the gradients of sum(y^2 dy) with respect to x, gamma and beta. On replicas the loss
    is their sum.
    """
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = layer(x, labels, training=True)
        loss = tf.reduce_sum(tf.square(y) * dy)
    gradients = tape.gradient(loss, [x, layer.gamma.value, layer.beta.value])
    return y, *[tf.convert_to_tensor(gradient) for gradient in gradients]


def on_replicas(strategy, layer, *args):
    """`training_pass` of each replica on its half: y and dx joined, the sums of dgamma and
    dbeta.
    """
    step = tf.function(lambda *args: strategy.run(training_pass, args=(layer, *args)))
    y, dx, *parameters = step(*per_replica(strategy, *args))
    return (
        joined(strategy, y),
        joined(strategy, dx),
        *[strategy.reduce("sum", each, axis=None) for each in parameters],
    )


@pytest.mark.parametrize("offset", [0.7, 100.0])
def test_two_replicas_equal_one_device_on_the_joined_batch(offset):
    strategy, x, dy = two_replicas(), inputs(offset), array(*SHAPE, seed=1)
    alone = made(3)
    with strategy.scope():
        layer = made(3)
    expected = training_pass(alone, tf.constant(x), LABELS, dy)
    actual = on_replicas(strategy, layer, x, LABELS, dy)
    for one, other in zip(actual, expected, strict=True):
        assert_close(one, other, 1e-4)
    for name, value in weights(alone).items():
        assert_close(weights(layer)[name], value, 1e-5)


def test_replicas_moments_are_global():
    strategy, x = two_replicas(), inputs()
    (halves,) = per_replica(strategy, x)
    for moment, expected in zip(
        strategy.run(global_moments, args=(halves,)), reference.moments(x), strict=True
    ):
        for value in strategy.experimental_local_results(moment):
            assert_close(value, expected, 1e-6)


def test_without_cross_replica_each_replica_has_its_own_moments():
    strategy, x, dy = two_replicas(), inputs(), array(*SHAPE, seed=1)
    with strategy.scope():
        layer = made(3, cross_replica=False)
    w = weights(layer)
    y, *_ = on_replicas(strategy, layer, x, LABELS, dy)
    halves = [
        reference.batch_norm(w, half, labels, training=True)
        for half, labels in zip(np.split(x, 2), np.split(LABELS, 2), strict=True)
    ]
    assert_close(y, np.concatenate(halves), 1e-5)
    # Of moving averages, the mean over replicas is kept.
    own = np.mean([reference.moments(half) for half in np.split(x, 2)], axis=0)
    assert_close(layer.moving_mean, 0.999 * w["moving_mean"] + 0.001 * own[0], 1e-5)
    assert_close(layer.moving_variance, 0.999 * w["moving_variance"] + 0.001 * own[1], 1e-5)


def test_moments_may_have_another_source():
    layer = build(BatchNorm(), None, 4, 4, 2)
    x = tf.constant(array(3, 4, 4, 2, scale=2.0))
    plain = layer(x)

    def source(x):
        return tf.constant([1.0, -1.0]), tf.constant([4.0, 9.0])

    with pytest.raises(KeyError), normalization.moments_from([layer], [source]):
        y = layer(x)
        with normalization.moments_from([layer], [normalization.global_moments]):
            of_batch = layer(x)
        np.testing.assert_array_equal(layer(x), y)
        raise KeyError
    gamma, beta = layer.gamma.numpy()[0], layer.beta.numpy()[0]
    assert_close(y, gamma * (x - [1.0, -1.0]) / np.sqrt(np.float32([4.001, 9.001])) + beta, 1e-5)
    assert_close(tf.reduce_mean(of_batch, axis=[0, 1, 2]), beta, 1e-5)
    # Also after an error the moving averages are there again.
    assert layer.moments_source is None
    np.testing.assert_array_equal(layer(x), plain)
