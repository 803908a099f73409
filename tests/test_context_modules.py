"""Hamburger V2 and V2+, self-attention, sparse attention; what a ham starts from; what all context
modules share.
"""

import functools

import gin
import keras
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
    per_replica,
    two_replicas,
    weights,
)

from hamgan import decomposition, stateless
from hamgan.context import (
    FixedBases,
    Hamburger,
    HamburgerV2,
    HamburgerV2Plus,
    LearnedBases,
    RandomBases,
    SelfAttention,
    SparseAttention,
    WarmStartBases,
)
from hamgan.networks import Discriminator, Generator
from hamgan.normalization import BatchNorm

SHAPE = (3, 4, 6, 8)
SQUARE = (3, 4, 4, 8)
LABELS = np.array([2, 0, 2], np.int32)
KEYS = np.array([[1, 2], [3, 4], [5, 6]], np.int32)

CASES = {
    "V2, paper's sizes": (HamburgerV2, dict()),
    "V2, generator": (HamburgerV2, dict(num_classes=3, dim=12, rank=3, num_steps=1)),
    "V2, sections": (HamburgerV2, dict(num_classes=3, dim=4, rank=2, sections=3, num_steps=2)),
    "V2+, paper's sizes": (HamburgerV2Plus, dict(num_steps=3)),
    "V2+, generator": (HamburgerV2Plus, dict(num_classes=3, dim=12, rank=3, num_steps=1)),
    "V2+, sections": (HamburgerV2Plus, dict(num_classes=3, dim=4, rank=2, sections=3, num_steps=2)),
    "SAGAN": (SelfAttention, dict()),
    "SAGAN, generator": (SelfAttention, dict(num_classes=3, dim=3, value_dim=5)),
    "YLG": (SparseAttention, dict(dim=8, value_dim=16)),
}
with_cases = pytest.mark.parametrize("case", CASES)
with_hams = pytest.mark.parametrize("case", [case for case in CASES if case[0] == "V"])
with_kinds = pytest.mark.parametrize(
    "kind", [HamburgerV2, HamburgerV2Plus, SelfAttention, SparseAttention]
)


def of_case(case, **kwargs):
    """The layer, an input, and labels where the layer looks at them."""
    kind, arguments = CASES[case]
    shape = SQUARE if kind is SparseAttention else SHAPE
    layer = build(kind(**arguments, **kwargs), None, *shape[1:])
    return layer, tf.constant(array(*shape)), LABELS if layer.num_classes else None


def shapes(layer):
    return {name: value.shape for name, value in weights(layer).items()}


# What the modules compute


def numpy_ham(rows, bases, sections, num_steps):
    """Section by section: rows [B, N, S*D], bases [B, S, D, R]."""
    y = np.zeros_like(rows)
    for section, part in enumerate(np.split(rows, sections, axis=2)):
        width = part.shape[2]
        approximation = reference.nmf(part.transpose(0, 2, 1), bases[:, section], num_steps)
        y[:, :, section * width : (section + 1) * width] = approximation.transpose(0, 2, 1)
    return y


def numpy_channel_ham(rows, bases, sections, num_steps):
    """The same over channels: the matrix of a section is [N, D], so bases are [B, S, N, R]."""
    y = np.zeros_like(rows)
    for section, part in enumerate(np.split(rows, sections, axis=2)):
        width = part.shape[2]
        y[:, :, section * width : (section + 1) * width] = reference.nmf(
            part, bases[:, section], num_steps
        )
    return y


def numpy_hamburger(layer, x, labels, training):
    w = weights(layer)
    under = functools.partial(reference.under, w)
    batch, height, width, _ = x.shape
    y = reference.sn_conv(under("lower_bread"), x, exact=True).reshape(batch, height * width, -1)
    arguments = layer.sections, layer.num_steps
    bases = layer.initial_bases(KEYS).numpy()
    if isinstance(layer, HamburgerV2Plus):
        half = y.shape[2] // 2
        channel_bases = layer.initial_channel_bases(KEYS).numpy()
        over_space = numpy_ham(y[:, :, :half], bases, *arguments)
        y = np.concatenate(
            [over_space, numpy_channel_ham(y[:, :, half:], channel_bases, *arguments)], axis=2
        )
    else:
        y = numpy_ham(y, bases, *arguments)
    y = reference.sn_conv(under("cheese"), y.reshape(batch, height, width, -1), exact=True)
    if layer.num_classes:
        y = reference.batch_norm(under("norm"), y, labels, training=training)
    y = reference.sn_conv(under("upper_bread"), reference.relu(y), exact=True)
    return w.get("shortcut_gate", 1.0) * x + w["gate"] * y


@pytest.mark.parametrize("training", [False, True])
@with_hams
def test_hamburger_equals_numpy(case, training):
    layer, x, labels = of_case(case)
    expected = numpy_hamburger(layer, np.float64(x), labels, training)
    assert_close(layer(x, labels, training=training, keys=KEYS), expected, 2e-5)


@pytest.mark.parametrize("case", ["SAGAN", "SAGAN, generator"])
def test_self_attention_equals_numpy(case):
    layer, x, labels = of_case(case)
    w = weights(layer)
    batch, height, width, _ = x.shape

    def conv(name, x):
        return reference.sn_conv(reference.under(w, name), x, exact=True)

    y = np.zeros([batch, height, width, w["g/kernel"].shape[-1]])
    theta, phi, g = (conv(name, np.float64(x)) for name in ("theta", "phi", "g"))
    phi, g = (
        each.reshape(batch, height // 2, 2, width // 2, 2, -1).max(axis=(2, 4)) for each in (phi, g)
    )
    for b in range(batch):
        for i in range(height):
            for j in range(width):
                attention = reference.softmax(np.sum(theta[b, i, j] * phi[b], axis=-1).ravel())
                y[b, i, j] = attention @ g[b].reshape(len(attention), -1)
    expected = x + w["gate"] * conv("attn", y)
    assert_close(layer(x, labels), expected, 1e-5)


def test_weights_of_hamburgers():
    layer = build(HamburgerV2(num_classes=5, dim=4, rank=2, sections=3), None, *SHAPE[1:])
    v2 = {
        "lower_bread/kernel": (1, 1, 8, 12),
        "lower_bread/u": (8, 1),
        "cheese/kernel": (1, 1, 12, 8),
        "cheese/u": (12, 1),
        "norm/gamma": (5, 8),
        "norm/beta": (5, 8),
        "norm/moving_mean": (8,),
        "norm/moving_variance": (8,),
        "upper_bread/kernel": (1, 1, 8, 8),
        "upper_bread/u": (8, 1),
        "gate": (),
    }
    assert shapes(layer) == v2
    layer = build(HamburgerV2Plus(num_classes=5, dim=4, rank=2, sections=3), None, *SHAPE[1:])
    assert shapes(layer) == {**v2, "shortcut_gate": ()}
    assert layer.initial_bases(KEYS).shape == (3, 3, 2, 2)
    assert layer.initial_channel_bases(KEYS).shape == (3, 3, 24, 2)
    # The discriminator's have no norm.
    assert not any(
        name.startswith("norm") for name in shapes(build(HamburgerV2(), None, *SHAPE[1:]))
    )


@pytest.mark.parametrize("kind", [SelfAttention, SparseAttention])
def test_weights_of_attention(kind):
    layer = build(kind(num_classes=5), None, 4, 4, 64)
    assert shapes(layer) == {
        "theta/kernel": (1, 1, 64, 8),
        "theta/u": (64, 1),
        "phi/kernel": (1, 1, 64, 8),
        "phi/u": (64, 1),
        "g/kernel": (1, 1, 64, 32),
        "g/u": (64, 1),
        "attn/kernel": (1, 1, 32, 64),
        "attn/u": (32, 1),
        "gate": (),
    }


# What all modules share


@with_cases
def test_new_module_is_the_identity(case):
    kind, arguments = CASES[case]
    _, x, labels = of_case(case)
    fresh = kind(**arguments)
    np.testing.assert_array_equal(fresh(x, labels, training=True), x)
    assert fresh.gate.numpy() == 0


def step_of(layer, labels):
    """A function of x: output and every gradient of a training pass, from the same state each
    time.
    """
    state = [tf.constant(v.numpy()) for v in layer.non_trainable_variables]

    def step(x):
        for variable, value in zip(layer.non_trainable_variables, state, strict=True):
            variable.assign(value)
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, labels, training=True, keys=KEYS)
            loss = tf.reduce_sum(y * array(*x.shape, seed=3))
        gradients = tape.gradient(loss, [x, *[v.value for v in layer.trainable_variables]])
        after = [tf.convert_to_tensor(v) for v in layer.non_trainable_variables]
        return [y, *map(tf.convert_to_tensor, gradients), *after]

    return step


@with_cases
def test_modes_of_execution_agree_on_outputs_gradients_and_state(case):
    layer, x, labels = of_case(case)
    results = assert_modes_agree(step_of(layer, labels), x, tolerance=1e-3)
    # The gradient reaches every weight.
    for variable, gradient in zip(layer.trainable_variables, results[2:], strict=False):
        assert np.any(gradient.numpy() != 0), variable.path


@with_cases
def test_dynamic_batch(case):
    layer, x, labels = of_case(case)

    def call(x, labels, keys):
        return layer(x, labels if layer.num_classes else None, keys=keys)

    signature = [
        tf.TensorSpec([None, *x.shape[1:]]),
        tf.TensorSpec([None], tf.int32),
        tf.TensorSpec([None, 2], tf.int32),
    ]
    dynamic = tf.function(call, input_signature=signature)
    for batch in (1, 3):
        arguments = x[:batch], LABELS[:batch], KEYS[:batch]
        y = dynamic(*arguments)
        assert y.shape == (batch, *x.shape[1:])
        assert_close(y, call(*arguments), 1e-5)


@with_cases
def test_bfloat16(case):
    kind, arguments = CASES[case]
    _, x, labels = of_case(case)
    half = build(kind(**arguments, dtype="mixed_bfloat16"), None, *x.shape[1:])
    full = build(kind(**arguments), None, *x.shape[1:])
    x = tf.cast(x, tf.bfloat16)
    y = half(x, labels, keys=KEYS)
    assert y.dtype == tf.bfloat16 and {v.dtype for v in half.variables} == {"float32"}
    assert_close(tf.cast(y, tf.float32), full(tf.cast(x, tf.float32), labels, keys=KEYS), 0.05)


@pytest.mark.parametrize("case", ["SAGAN", "YLG"])
def test_attention_is_float32_below_bfloat16(case, monkeypatch):
    seen = []
    softmax = tf.nn.softmax

    def spy(logits, axis=-1):
        seen.append(logits.dtype)
        return softmax(logits, axis=axis)

    layer, x, _ = of_case(case, dtype="mixed_bfloat16")
    monkeypatch.setattr(tf.nn, "softmax", spy)
    layer(tf.cast(x, tf.bfloat16))
    assert seen == [tf.float32]


@pytest.mark.parametrize("kind", [HamburgerV2, HamburgerV2Plus])
def test_decomposition_is_float32_below_bfloat16(kind):
    seen = []

    def spy(x, bases, **kwargs):
        seen.append((x.dtype, bases.dtype, x.shape, bases.shape))
        return decomposition.nmf(x, bases, **kwargs)

    layer = build(kind(decomposition=spy, rank=2, dtype="mixed_bfloat16"), None, *SHAPE[1:])
    layer(tf.cast(array(*SHAPE), tf.bfloat16))
    assert all(one[:2] == (tf.float32, tf.float32) for one in seen)
    whole, halves = [((3, 24, 8), (3, 8, 2))], [((3, 24, 4), (3, 4, 2)), ((3, 4, 24), (3, 24, 2))]
    assert [one[2:] for one in seen] == (halves if kind is HamburgerV2Plus else whole)


@with_cases
def test_config_round_trips(case):
    kind, arguments = CASES[case]
    shape = SQUARE if kind is SparseAttention else SHAPE
    layer = build(kind(**arguments, dtype="mixed_bfloat16", name="module"), None, *shape[1:])
    assert_config_round_trips(layer, None, *shape[1:])


def test_config_of_every_argument_round_trips():
    layer = HamburgerV2Plus(
        num_classes=3,
        norm=functools.partial(BatchNorm, momentum=0.5),
        dim=4,
        rank=2,
        num_steps=3,
        eval_steps=9,
        sections=2,
        decomposition=decomposition.cd,
        solve=decomposition.unrolled,
        bases=LearnedBases,
    )
    assert_config_round_trips(build(layer, None, *SHAPE[1:]), None, *SHAPE[1:])
    config = layer.get_config()
    assert config["eval_steps"] == 9
    assert type(layer).from_config(config).bases_constructor is LearnedBases


@with_hams
def test_output_is_a_function_of_the_keys(case):
    layer, x, labels = of_case(case)
    y = layer(x, labels, keys=KEYS)
    np.testing.assert_array_equal(layer(x, labels, keys=KEYS), y)
    assert np.any(layer(x, labels, keys=KEYS + 1) != y)
    assert np.any(layer(x, labels) != layer(x, labels))
    part = layer(x[1:2], None if labels is None else labels[1:2], keys=KEYS[1:2])
    assert_close(part, y[1:2], 1e-5)


def test_halves_of_a_dual_ham_draw_bases_of_their_own():
    layer, _, _ = of_case("V2+, sections")
    bases, channel_bases = (
        layer.initial_bases(KEYS).numpy(),
        layer.initial_channel_bases(KEYS).numpy(),
    )
    np.testing.assert_array_equal(layer.initial_channel_bases(KEYS), channel_bases)
    numbers = [set(each.ravel().tolist()) for each in (bases, channel_bases)]
    assert all(len(each) > 10 for each in numbers) and not numbers[0] & numbers[1]


# Parts of a ham


@pytest.mark.parametrize("kind", [Hamburger, HamburgerV2, HamburgerV2Plus])
@pytest.mark.parametrize("name", ["nmf", "cd", "vq"])
def test_every_hamburger_takes_every_decomposition(kind, name):
    layer = build(
        kind(decomposition=getattr(decomposition, name), rank=3, num_classes=3), None, *SHAPE[1:]
    )
    x = tf.constant(array(*SHAPE))
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = layer(x, LABELS, training=True, keys=KEYS)
    dx = tape.gradient(y, x, array(*SHAPE, seed=1))
    assert np.all(np.isfinite(y)) and np.all(np.isfinite(dx)) and np.any(y != x)
    negative = np.any(layer.initial_bases(KEYS).numpy() < 0)
    assert negative == (name != "nmf")


def test_partial_of_a_decomposition_draws_its_bases():
    partial = functools.partial(
        functools.partial(decomposition.nmf, normalize=True), temperature=0.5
    )
    assert decomposition.draw_bases_of(partial) is stateless.uniform
    assert (
        decomposition.draw_bases_of(functools.partial(decomposition.cd, beta=0.1))
        is stateless.normal
    )
    partial.draw_bases = stateless.normal
    assert decomposition.draw_bases_of(partial) is stateless.normal
    layer = build(
        Hamburger(decomposition=functools.partial(decomposition.nmf, normalize=True)),
        None,
        *SHAPE[1:],
    )
    assert layer.initial_bases(KEYS).numpy().min() >= 0


@pytest.mark.parametrize("kind", [Hamburger, HamburgerV2Plus])
def test_evaluation_may_take_other_steps(kind):
    seen = []

    def spy(x, bases, *, num_steps, solve):
        seen.append(num_steps)
        return decomposition.nmf(x, bases, num_steps=num_steps, solve=solve)

    x = tf.constant(array(*SHAPE))
    for eval_steps, expected in ((None, [3, 3]), (7, [3, 7]), (0, [3, 0])):
        layer = build(kind(decomposition=spy, num_steps=3, eval_steps=eval_steps), None, *SHAPE[1:])
        seen.clear()
        layer(x, training=True)
        layer(x)
        assert seen == list(np.repeat(expected, 2 if kind is HamburgerV2Plus else 1))


# What a ham starts from


def bases_of(kind, shape=(2, 5, 3), **kwargs):
    part = kind(shape, draw=stateless.uniform, **kwargs)
    part.build()
    return part


def test_random_bases_are_drawn_anew():
    part = bases_of(RandomBases)
    np.testing.assert_array_equal(part(KEYS), stateless.uniform([2, 5, 3], KEYS))
    assert not part.variables


@pytest.mark.parametrize("kind", [FixedBases, LearnedBases, WarmStartBases])
def test_stored_bases_are_drawn_once(kind):
    part = bases_of(kind, seed=7)
    bases = part(KEYS).numpy()
    assert bases.shape == (3, 2, 5, 3) and bases.dtype == np.float32
    expected = stateless.uniform([2, 5, 3], stateless.key(7)[None])[0]
    for row in bases:
        np.testing.assert_array_equal(row, expected)
    np.testing.assert_array_equal(part(KEYS + 1), bases)
    assert np.any(bases_of(kind, seed=8)(KEYS) != bases)
    assert [v.trainable for v in part.variables] == [kind is LearnedBases]


def test_seed_of_stored_bases_follows_that_of_the_weights():
    drawn = []
    for seed in (1, 1, 2):
        keras.utils.set_random_seed(seed)
        drawn.append(bases_of(FixedBases)(KEYS).numpy())
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert np.any(drawn[0] != drawn[2])


@pytest.mark.parametrize("kind", [RandomBases, FixedBases, LearnedBases])
def test_config_of_bases_round_trips(kind):
    assert_config_round_trips(bases_of(kind, name="part"))
    if kind is not RandomBases:
        config = bases_of(kind, name="part").get_config()
        np.testing.assert_array_equal(
            kind.from_config(config)(KEYS), kind.from_config(config)(KEYS)
        )


def test_config_of_warm_start_round_trips():
    assert_config_round_trips(bases_of(WarmStartBases, rate=0.3, seed=4, name="part"))


@pytest.mark.parametrize("kind", [FixedBases, LearnedBases, WarmStartBases])
@pytest.mark.parametrize("module", [HamburgerV2, HamburgerV2Plus])
def test_hamburger_from_stored_bases_equals_numpy(kind, module):
    solve = decomposition.unrolled
    layer = module(num_classes=3, dim=4, rank=2, sections=3, bases=kind, solve=solve)
    # Not randomized: NumPy's NMF takes bases that aren't negative.
    layer.build((None, *SHAPE[1:]))
    layer.gate.assign(0.7)
    x = tf.constant(array(*SHAPE))
    for training in (False, True):
        expected = numpy_hamburger(layer, np.float64(x), LABELS, training)
        assert_close(layer(x, LABELS, training=training), expected, 2e-5)


def test_stored_bases_are_weights_by_name():
    layer = build(
        HamburgerV2Plus(bases=WarmStartBases, dim=4, rank=2, sections=3), None, *SHAPE[1:]
    )
    assert shapes(layer)["bases/bases"] == (3, 2, 2)
    assert shapes(layer)["channel_bases/bases"] == (3, 24, 2)
    assert not any("bases" in v.path for v in layer.trainable_variables)


@pytest.mark.parametrize(
    "solve", [decomposition.unrolled, functools.partial(decomposition.last_steps, count=6)]
)
@pytest.mark.parametrize("name", ["nmf", "cd", "vq"])
def test_gradient_reaches_learned_bases(name, solve):
    # At the published temperature of vector quantisation it is there, but vanishes in float32.
    function = functools.partial(getattr(decomposition, name), temperature=1.0)
    layer = build(
        Hamburger(decomposition=function, solve=solve, bases=LearnedBases, rank=2), None, *SHAPE[1:]
    )
    (variable,) = (v for v in layer.trainable_variables if "bases" in v.path)
    with tf.GradientTape() as tape:
        y = tf.reduce_sum(tf.square(layer(tf.constant(array(*SHAPE)), training=True)))
    assert np.any(tape.gradient(y, variable.value).numpy() != 0)


@pytest.mark.parametrize(
    "solve",
    [
        decomposition.one_step,
        decomposition.implicit,
        functools.partial(decomposition.last_steps, count=5),
    ],
)
def test_learned_bases_need_a_gradient(solve):
    layer = Hamburger(solve=solve, bases=LearnedBases)
    with pytest.raises(
        ValueError, match="Hamburger: solve must let a gradient through to learned bases"
    ):
        layer.build((None, *SHAPE[1:]))
    Hamburger(solve=solve, bases=FixedBases).build((None, *SHAPE[1:]))


def test_negative_learned_bases_count_by_their_absolute_value():
    x, bases = tf.constant(array(3, 24, 8)), array(3, 8, 2)
    assert bases.min() < 0
    y, expected = (
        decomposition.nmf(x, tf.constant(each), num_steps=6).product()
        for each in (bases, np.abs(bases))
    )
    np.testing.assert_array_equal(y, expected)


def warm(module=Hamburger, **kwargs):
    arguments = dict(
        dim=4, rank=2, sections=2, num_steps=3, bases=functools.partial(WarmStartBases, rate=0.75)
    )
    layer = build(module(**{**arguments, **kwargs}), None, *SHAPE[1:])
    for part in (layer.bases, getattr(layer, "channel_bases", None)):
        if part is not None:
            part.bases.assign(np.abs(part.bases.numpy()))
    return layer


def numpy_warm_start(layer, x, part):
    """The bases of a part after a training pass: moved towards the mean of the solved ones, columns
    of length 1.
    """
    w = weights(layer)
    rows = reference.sn_conv(reference.under(w, "lower_bread"), np.float64(x), exact=True).reshape(
        len(x), 24, -1
    )
    before = w[f"{part}/bases"]
    if "channel_bases/bases" in w:
        rows = np.split(rows, 2, axis=2)[part == "channel_bases"]
    after = np.zeros_like(before)
    for section, matrices in enumerate(np.split(rows, 2, axis=2)):
        matrices = matrices if part == "channel_bases" else matrices.transpose(0, 2, 1)  # [B, D, N]
        initial = np.stack([before[section]] * len(x))
        solved, _ = reference.nmf_factors(matrices, initial, layer.num_steps)
        moved = before[section] + 0.75 * (solved.mean(axis=0) - before[section])
        after[section] = moved / np.linalg.norm(moved, axis=0)
    return after


@pytest.mark.parametrize("module", [Hamburger, HamburgerV2Plus])
@pytest.mark.parametrize("solve", ["one_step", "unrolled", "last_steps", "implicit"])
def test_warm_start_follows_the_solved_bases(module, solve):
    layer, x = warm(module, solve=getattr(decomposition, solve)), tf.constant(array(*SHAPE))
    parts = ["bases", "channel_bases"] if module is HamburgerV2Plus else ["bases"]
    for _ in range(2):
        expected = {part: numpy_warm_start(layer, x, part) for part in parts}
        before = weights(layer)
        layer(x)
        for part in parts:
            np.testing.assert_array_equal(weights(layer)[f"{part}/bases"], before[f"{part}/bases"])
        layer(x, training=True)
        for part in parts:
            assert_close(weights(layer)[f"{part}/bases"], expected[part], 1e-5)
            assert np.abs(expected[part] - before[f"{part}/bases"]).max() > 0.01


def test_default_rate_is_published():
    assert bases_of(WarmStartBases).rate == 0.9


@pytest.mark.parametrize("name", ["nmf", "cd", "vq"])
def test_warm_start_in_all_modes_of_execution(name):
    layer = warm(decomposition=functools.partial(getattr(decomposition, name), temperature=1.0))
    assert_modes_agree(step_of(layer, None), tf.constant(array(*SHAPE)), tolerance=1e-3)


@pytest.mark.parametrize("module", [Hamburger, HamburgerV2Plus])
def test_warm_start_on_two_replicas_equals_one_device_on_the_joined_batch(module):
    strategy = two_replicas()
    x, alone = array(4, *SHAPE[1:]), warm(module)
    with strategy.scope():
        layer = warm(module)
    for name, value in weights(alone).items():
        np.testing.assert_array_equal(weights(layer)[name], value)
    step = tf.function(lambda x: strategy.run(functools.partial(layer, training=True), args=(x,)))
    for _ in range(2):
        # Without norm and from common bases, an example's output depends on the others through the
        # bases alone.
        assert_close(
            joined(strategy, step(*per_replica(strategy, x))),
            alone(tf.constant(x), training=True),
            1e-5,
        )
        for name, value in weights(alone).items():
            assert_close(weights(layer)[name], value, 1e-5)
    for variable in layer.non_trainable_variables:
        copies = strategy.experimental_local_results(variable.value)
        np.testing.assert_array_equal(*[copy.numpy() for copy in copies])


def test_warm_start_needs_one_solve():
    def without(x, bases, *, num_steps, solve):
        return x

    def twice(x, bases, *, num_steps, solve):
        once = decomposition.nmf(x, bases, num_steps=1, solve=solve).product()
        return decomposition.nmf(once, bases, num_steps=1, solve=solve)

    for function, calls in ((without, 0), (twice, 2)):
        layer = warm(decomposition=function)
        layer(tf.constant(array(*SHAPE)))
        with pytest.raises(
            ValueError, match=f"decomposition must call its solve once .* got {calls} calls"
        ):
            layer(tf.constant(array(*SHAPE)), training=True)


# Errors


@pytest.mark.parametrize("rate", [0.0, -0.1, 1.1])
def test_rate_must_be_a_share(rate):
    with pytest.raises(ValueError, match=rf"WarmStartBases: rate must be in \(0, 1\], got {rate}"):
        bases_of(WarmStartBases, rate=rate)


@pytest.mark.parametrize("kind", [HamburgerV2, HamburgerV2Plus])
def test_errors_name_the_class(kind):
    with pytest.raises(ValueError, match=f"{kind.__name__}: rank must be at least 1, got 0"):
        kind(rank=0)
    for name in ("num_steps", "eval_steps"):
        with pytest.raises(
            ValueError, match=f"{kind.__name__}: {name} must not be negative, got -1"
        ):
            kind(**{name: -1})


def test_dual_ham_needs_an_even_dim_and_a_known_size():
    with pytest.raises(ValueError, match="HamburgerV2Plus: dim must be even, to be halved, got 5"):
        HamburgerV2Plus(dim=5).build((None, *SHAPE[1:]))
    with pytest.raises(ValueError, match="HamburgerV2Plus: dim must be even, to be halved, got 7"):
        HamburgerV2Plus().build((None, 4, 4, 7))
    with pytest.raises(ValueError, match="HamburgerV2Plus: height and width must be known"):
        HamburgerV2Plus().build((None, None, 4, 8))


@pytest.mark.parametrize("size", [(3, 4), (4, 3)])
def test_attention_pools_even_sizes_only(size):
    with pytest.raises(
        ValueError, match=f"SelfAttention: height and width must be even, got {size[0]}x{size[1]}"
    ):
        SelfAttention().build((None, *size, 8))


def test_channels_of_attention_must_be_divisible():
    with pytest.raises(
        ValueError,
        match="SelfAttention: dim is 1/8 .* divisible by 8, got 12. Give dim, a multiple of 1",
    ):
        SelfAttention().build((None, 4, 4, 12))
    with pytest.raises(
        ValueError, match="SelfAttention: value_dim is 1/2 .* divisible by 2, got 5"
    ):
        SelfAttention(dim=2).build((None, 4, 4, 5))
    with pytest.raises(
        ValueError,
        match="SparseAttention: dim is 1/8 .* divisible by 64, got 32. Give dim, a multiple of 8",
    ):
        SparseAttention().build((None, 4, 4, 32))
    with pytest.raises(
        ValueError, match="SparseAttention: value_dim is 1/2 .* divisible by 16, got 8"
    ):
        SparseAttention(dim=8).build((None, 4, 4, 8))


@pytest.mark.parametrize("name", ["dim", "value_dim"])
def test_sizes_of_attention_must_fit_its_heads(name):
    with pytest.raises(
        ValueError, match=rf"SelfAttention: {name} must be a positive multiple .* \(1\), got 0"
    ):
        SelfAttention(**{name: 0})
    with pytest.raises(
        ValueError, match=rf"SparseAttention: {name} must be a positive multiple .* \(8\), got 12"
    ):
        SparseAttention(**{name: 12})


def test_sparse_attention_needs_a_square():
    with pytest.raises(ValueError, match="SparseAttention: the image must be square, got 4x6"):
        SparseAttention(dim=8, value_dim=8).build((None, *SHAPE[1:]))


# In the networks, chosen by gin

GIN = """
from __gin__ import dynamic_registration

from hamgan import context
from hamgan import decomposition
from hamgan import networks

networks.Generator.image_size = 32
networks.Generator.num_classes = 3
networks.Generator.width = 2
networks.Generator.latent_dim = 8
networks.Discriminator.image_size = 32
networks.Discriminator.num_classes = 3
networks.Discriminator.width = 2
"""
CHOICES = {
    "none in G, attention in D": (
        """
networks.Generator.context = None
networks.Discriminator.context = @D/context.SelfAttention
""",
        [type(None), SelfAttention],
    ),
    "sparse attention in both": (
        """
networks.Generator.context = @G/context.SparseAttention
networks.Discriminator.context = @D/context.SparseAttention
context.SparseAttention.dim = 8
context.SparseAttention.value_dim = 8
""",
        [SparseAttention, SparseAttention],
    ),
    "hams that differ": (
        """
networks.Generator.context = @G/context.HamburgerV2Plus
networks.Discriminator.context = @D/context.HamburgerV2
G/context.HamburgerV2Plus.decomposition = @G/decomposition.nmf
G/context.HamburgerV2Plus.bases = @context.WarmStartBases
G/context.HamburgerV2Plus.eval_steps = 12
context.WarmStartBases.rate = 0.5
D/context.HamburgerV2.decomposition = @D/decomposition.cd
D/decomposition.cd.beta = 0.1
D/context.HamburgerV2.solve = @decomposition.last_steps
decomposition.last_steps.count = 2
""",
        [HamburgerV2Plus, HamburgerV2],
    ),
    "learned bases, implicit gradient": (
        """
networks.Generator.context = @G/context.Hamburger
networks.Discriminator.context = @D/context.Hamburger
G/context.Hamburger.bases = @context.LearnedBases
G/context.Hamburger.solve = @decomposition.unrolled
D/context.Hamburger.decomposition = @decomposition.vq
decomposition.vq.temperature = 0.1
D/context.Hamburger.solve = @decomposition.implicit
D/context.Hamburger.bases = @context.FixedBases
decomposition.implicit.adjoint_steps = 3
""",
        [Hamburger, Hamburger],
    ),
}


@pytest.mark.parametrize("choice", CHOICES)
def test_modules_are_chosen_by_gin_in_both_networks(choice):
    lines, kinds = CHOICES[choice]
    try:
        gin.parse_config(GIN + lines)
        keras.utils.set_random_seed(0)
        generator = gin.get_configurable("networks.Generator")()
        discriminator = gin.get_configurable("networks.Discriminator")()
        for network, kind in zip((generator, discriminator), kinds, strict=True):
            assert isinstance(network.context, kind)
            if network.context is not None:
                network.context.gate.assign(0.5)
        parts = [v for network in (generator, discriminator) for v in network.trainable_variables]

        z = tf.constant(array(3, 8))
        with tf.GradientTape() as tape:
            images = generator(z, LABELS, training=True, keys=KEYS)
            logits = discriminator(images, LABELS, training=True, keys=KEYS)
        assert logits.shape == (3, 1)
        for variable, gradient in zip(
            parts, tape.gradient(logits, [v.value for v in parts]), strict=True
        ):
            gradient = tf.convert_to_tensor(gradient)
            assert np.all(np.isfinite(gradient)), variable.path
            if "context/" in variable.path and "/bases" not in variable.path:
                assert np.any(gradient != 0), variable.path
        assert np.all(np.isfinite(discriminator(generator(z, LABELS), LABELS)))
        if choice == "hams that differ":
            assert generator.context.bases.rate == 0.5 and generator.context.eval_steps == 12
            assert decomposition.draw_bases_of(generator.context.decomposition) is stateless.uniform
            assert (
                decomposition.draw_bases_of(discriminator.context.decomposition) is stateless.normal
            )
    finally:
        gin.clear_config()


@with_kinds
def test_networks_take_every_module(kind):
    arguments = dict(dim=8, value_dim=8) if issubclass(kind, SelfAttention) else dict(rank=2)
    module = functools.partial(kind, **arguments)
    sizes = dict(image_size=32, num_classes=3, width=2, context=module)
    generator, discriminator = Generator(latent_dim=8, **sizes), Discriminator(**sizes)
    assert discriminator(generator(tf.constant(array(3, 8)), LABELS), LABELS).shape == (3, 1)
    norms = [
        any("context/norm" in v.path for v in network.variables)
        for network in (generator, discriminator)
    ]
    assert norms == [not issubclass(kind, SelfAttention), False]
