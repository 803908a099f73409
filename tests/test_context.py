"""The Hamburger layer."""

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
    weights,
)

from hamgan import decomposition, stateless
from hamgan.context import Hamburger
from hamgan.normalization import BatchNorm

SHAPE = (3, 4, 5, 8)
LABELS = np.array([2, 0, 2], np.int32)
KEYS = np.array([[1, 2], [3, 4], [5, 6]], np.int32)

CASES = {
    "paper's sizes": dict(),
    "discriminator": dict(dim=4, rank=3),
    "generator": dict(num_classes=3, dim=12, rank=3),
    "sections": dict(num_classes=3, dim=4, rank=2, sections=3, num_steps=2),
    "no steps": dict(num_steps=0),
}


def made(**kwargs):
    return build(Hamburger(**kwargs), None, *SHAPE[1:])


def of_case(case):
    layer = made(**CASES[case])
    return layer, tf.constant(array(*SHAPE)), LABELS if layer.num_classes else None


with_cases = pytest.mark.parametrize("case", CASES)


@pytest.mark.parametrize("training", [False, True])
@with_cases
def test_layer_equals_numpy(case, training):
    layer, x, labels = of_case(case)
    bases = layer.initial_bases(KEYS).numpy()
    expected = reference.hamburger(
        weights(layer), np.float64(x), bases, labels, num_steps=layer.num_steps, training=training
    )
    assert_close(layer(x, labels, training=training, keys=KEYS), expected, 1e-5)


def test_sizes_follow_the_input():
    # The paper's rule: d = C, r = d / 8.
    layer = build(Hamburger(), None, 4, 4, 64)
    assert layer.initial_bases(KEYS).shape == (3, 1, 64, 8)
    assert {name: value.shape for name, value in weights(layer).items()} == {
        "gate": (),
        "lower_bread/kernel": (1, 1, 64, 64),
        "lower_bread/u": (64, 1),
        "upper_bread/kernel": (1, 1, 64, 64),
        "upper_bread/u": (64, 1),
    }
    assert made(dim=4, sections=3).initial_bases(KEYS).shape == (3, 3, 4, 1)
    assert made(dim=4, sections=3).lower_bread.kernel.shape == (1, 1, 8, 12)


@with_cases
def test_gate_0_is_the_identity(case):
    layer, x, labels = of_case(case)
    layer.gate.assign(0.0)
    np.testing.assert_array_equal(layer(x, labels, training=True), x)
    fresh = Hamburger(**CASES[case])
    np.testing.assert_array_equal(fresh(x, labels), x)
    assert fresh.gate.numpy() == 0


def test_gradient_reaches_the_gate_first():
    layer, x, _ = of_case("paper's sizes")
    layer.gate.assign(0.0)
    with tf.GradientTape() as tape:
        y = tf.reduce_sum(tf.square(layer(x, keys=KEYS)))
    gradients = dict(
        zip(
            [v.path for v in layer.trainable_variables],
            tape.gradient(y, layer.trainable_variables),
            strict=True,
        )
    )
    assert len(gradients) == 3
    for path, gradient in gradients.items():
        assert np.any(gradient.numpy() != 0) == path.endswith("gate"), path


def test_gradient_is_the_one_step_gradient():
    layer, x, _ = of_case("discriminator")
    dy = array(*SHAPE, seed=3)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = tf.reduce_sum(dy * layer(x, keys=KEYS))
    dx = tape.gradient(y, x)

    # y = x + gate U ham(L x): back through the upper bread, the last step, the lower bread.
    w = weights(layer)
    lower, upper = [
        reference.normalized_kernel(w[f"{name}_bread/kernel"], w[f"{name}_bread/u"], exact=True)[
            0, 0
        ]
        for name in ("lower", "upper")
    ]
    matrices = (np.float64(x) @ lower).reshape(3, 20, 4).transpose(0, 2, 1)
    bases = layer.initial_bases(KEYS).numpy()[:, 0]
    dham = (w["gate"] * np.float64(dy) @ upper.T).reshape(3, 20, 4).transpose(0, 2, 1)
    dlower = reference.nmf_one_step_gradient(matrices, bases, layer.num_steps, dham)
    assert_close(dx, dy + dlower.transpose(0, 2, 1).reshape(3, 4, 5, 4) @ lower.T, 1e-5)


# Initial bases


def test_same_keys_same_output():
    layer, x, labels = of_case("sections")
    y = layer(x, labels, keys=KEYS)
    np.testing.assert_array_equal(layer(x, labels, keys=KEYS), y)
    others = layer(x, labels, keys=KEYS + 1)
    assert all(np.any(one != other) for one, other in zip(y.numpy(), others.numpy(), strict=True))


def test_without_keys_every_call_draws_anew():
    layer, x, labels = of_case("sections")
    assert np.any(layer(x, labels).numpy() != layer(x, labels).numpy())
    traced = tf.function(lambda: layer(x, labels))
    assert np.any(traced().numpy() != traced().numpy())


def test_row_depends_on_its_own_key_alone():
    layer, x, labels = of_case("sections")
    y = layer(x, labels, keys=KEYS)
    for rows in ([1], [2, 0]):
        part = layer(tf.gather(x, rows), labels[rows], keys=KEYS[rows])
        assert_close(part, tf.gather(y, rows), 1e-6)
    # Sections and rows have bases of their own.
    bases = layer.initial_bases(KEYS).numpy().reshape(9, -1)
    assert len({row.tobytes() for row in bases}) == 9


def test_initial_bases_follow_the_decomposition():
    bases = made().initial_bases(stateless.fresh_keys(200)).numpy()
    assert 0 <= bases.min() and bases.max() < 1

    def plain(x, bases, *, num_steps, solve):
        return x

    # What says nothing of its bases starts from N(0, 1).
    bases = made(decomposition=plain).initial_bases(stateless.fresh_keys(200)).numpy()
    assert bases.min() < -1 and bases.max() > 1


def test_initial_bases_can_be_replaced():
    layer, x, labels = of_case("sections")
    bases = np.random.default_rng(0).uniform(size=(3, 3, 4, 2)).astype(np.float32)
    expected = reference.hamburger(weights(layer), np.float64(x), bases, labels, num_steps=2)
    y = layer(x, labels, initial=lambda keys: {"space": tf.constant(bases)})
    assert_close(y, expected, 1e-5)


# Parts that are passed in


def test_decomposition_and_solve_are_passed_on():
    def solve(update, x, state, num_steps):
        assert (update, num_steps) == ("update", 6)
        return (state[0] + 1.5,)

    def add(x, bases, *, num_steps, solve, amount):
        assert x.shape == (3, 20, 8) and bases.shape == (3, 8, 1)
        (solved,) = solve("update", x, (tf.constant(0.5),), num_steps)
        return x + amount * solved

    layer = made(decomposition=functools.partial(add, amount=1.0), solve=solve)
    x, w = array(*SHAPE), weights(layer)
    lower = reference.sn_conv(reference.under(w, "lower_bread"), x, exact=True)
    expected = x + w["gate"] * reference.sn_conv(
        reference.under(w, "upper_bread"), lower + 2, exact=True
    )
    assert_close(layer(tf.constant(x)), expected, 1e-5)


def test_norm_is_passed_in():
    layer = made(num_classes=3, norm=functools.partial(BatchNorm, epsilon=0.5))
    assert layer.norm.epsilon == 0.5 and layer.norm.num_classes == 3
    assert made().norm is None


# How it runs


@with_cases
def test_modes_agree(case):
    layer, x, labels = of_case(case)
    assert_modes_agree(lambda x: layer(x, labels, keys=KEYS), x)


def test_modes_agree_on_gradients_in_training():
    layer, x, labels = of_case("sections")
    state = [tf.constant(v.numpy()) for v in layer.non_trainable_variables]

    def step(x):
        for variable, value in zip(layer.non_trainable_variables, state, strict=True):
            variable.assign(value)
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, labels, training=True, keys=KEYS)
            loss = tf.reduce_sum(tf.square(y))
        gradients = tape.gradient(loss, [x, *[v.value for v in layer.trainable_variables]])
        return [y, *map(tf.convert_to_tensor, gradients)]

    assert_modes_agree(step, x, tolerance=1e-4)


@pytest.mark.parametrize("case", ["paper's sizes", "sections"])
def test_dynamic_batch(case):
    layer, x, _ = of_case(case)
    classes = layer.num_classes is not None

    def call(x, labels, keys):
        return layer(x, labels if classes else None, keys=keys)

    signature = [
        tf.TensorSpec([None, *SHAPE[1:]]),
        tf.TensorSpec([None], tf.int32),
        tf.TensorSpec([None, 2], tf.int32),
    ]
    dynamic = tf.function(call, input_signature=signature)
    for batch in (1, 3):
        args = x[:batch], LABELS[:batch], KEYS[:batch]
        y = dynamic(*args)
        assert y.shape == (batch, *SHAPE[1:])
        assert_close(y, call(*args), 1e-5)
    unseeded = tf.function(
        lambda x: layer(x, tf.zeros([tf.shape(x)[0]], tf.int32)), input_signature=signature[:1]
    )
    assert unseeded(x).shape == SHAPE


def test_decomposition_is_float32_below_bfloat16():
    seen = []

    def spy(x, bases, **kwargs):
        seen.append((x.dtype, bases.dtype))
        return decomposition.nmf(x, bases, **kwargs)

    spy.draw_bases = stateless.uniform
    half, full = made(num_classes=3, decomposition=spy, dtype="mixed_bfloat16"), made(num_classes=3)
    x = tf.cast(array(*SHAPE), tf.bfloat16)
    y = half(x, LABELS, keys=KEYS)
    assert seen == [(tf.float32, tf.float32)]
    assert y.dtype == tf.bfloat16 and {v.dtype for v in half.variables} == {"float32"}
    assert_close(tf.cast(y, tf.float32), full(tf.cast(x, tf.float32), LABELS, keys=KEYS), 0.03)


def test_config_round_trips():
    shape = (None, *SHAPE[1:])
    assert_config_round_trips(made(name="ham"), *shape)
    norm = functools.partial(BatchNorm, momentum=0.5)
    layer = made(
        num_classes=3,
        norm=norm,
        dim=4,
        rank=2,
        num_steps=3,
        sections=2,
        dtype="mixed_bfloat16",
        name="ham",
    )
    assert_config_round_trips(layer, *shape)


# Errors


@pytest.mark.parametrize("name", ["dim", "rank", "sections"])
def test_sizes_must_be_positive(name):
    with pytest.raises(ValueError, match=f"Hamburger: {name} must be at least 1, got 0"):
        Hamburger(**{name: 0})


def test_num_steps_must_not_be_negative():
    with pytest.raises(ValueError, match="Hamburger: num_steps must not be negative, got -1"):
        Hamburger(num_steps=-1)
