"""The layers in other people's models: shapes, labels, saving, extreme values."""

import copy
import functools
import itertools
import pathlib
import pickle
import re
import subprocess
import sys

import hypothesis
import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import array, assert_close, two_replicas
from hypothesis import strategies as st

import hamgan
from hamgan import decomposition, normalization, spectral
from hamgan.networks import Discriminator, Generator

HAMBURGERS = [hamgan.Hamburger, hamgan.HamburgerV2, hamgan.HamburgerV2Plus]
ATTENTIONS = [hamgan.SelfAttention, hamgan.SparseAttention]
KINDS = HAMBURGERS + ATTENTIONS
KEYS = np.arange(8, dtype=np.int32).reshape(4, 2)
few = hypothesis.settings(max_examples=15, deadline=None, derandomize=True, database=None)


def made(kind, **kwargs):
    if kind in ATTENTIONS:
        kwargs = {"dim": 8, "value_dim": 8, **kwargs}
    return kind(**kwargs)


def opened(layer):
    """The layer with its gate open: its result isn't its input."""
    layer.gate.assign(0.5)
    return layer


# Published equality


@pytest.mark.parametrize("num_steps", range(7))
def test_concepts_without_pixels_stay_as_published(num_steps):
    with np.load(pathlib.Path(__file__).parent / "golden" / "cd_dead_concept.npz") as golden:
        x, bases, y = (golden[name] for name in ("x", "bases", f"y_{num_steps}"))
    found = decomposition.cd(tf.constant(x), tf.constant(bases), num_steps=num_steps)
    assert_close(found.product(), y, 1e-5)


def unit(x, axis):
    return x / np.sqrt(np.maximum(np.sum(x**2, axis, keepdims=True), 1e-12))


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def published(name, x, bases, num_steps):
    """The published formulas literally, in float64: x [B, N, D], bases [B, D, R] -> [B, N, D]."""
    x, bases = np.float64(x), np.float64(bases)
    t = functools.partial(np.swapaxes, axis1=1, axis2=2)
    if name == "nmf":
        x = np.maximum(x, 0)
        coef = softmax(x @ bases)
        for _ in range(num_steps):
            coef = coef * (x @ bases) / (coef @ t(bases) @ bases + 1e-6)
            bases = bases * (t(x) @ coef) / (bases @ t(coef) @ coef + 1e-6)
        return coef * (x @ bases) / (coef @ t(bases) @ bases + 1e-6) @ t(bases)
    bases = unit(bases, 1)
    for _ in range(num_steps):
        coef = softmax(100 * unit(x, 2) @ (bases if name == "cd" else unit(bases, 1)))
        bases = t(x) @ (coef / (1e-6 + coef.sum(1, keepdims=True)))
        bases = unit(bases, 1) if name == "cd" else bases
    if name == "cd":
        return (
            x @ bases @ np.linalg.inv(t(bases) @ bases + 0.01 * np.eye(bases.shape[2])) @ t(bases)
        )
    length = np.sqrt(np.sum(x**2, 2, keepdims=True))
    return softmax(100 * (x / (1e-6 + length)) @ unit(bases, 1)) @ t(bases)


def extremes():
    x = np.random.default_rng(0).normal(size=(2, 20, 8))
    yield "ordinary", x
    yield "zero", 0 * x
    yield "constant", 0 * x + 0.7
    yield "negative", 0 * x - 0.7
    yield "zero row", x * (np.arange(20) != 3)[:, None]
    yield "zero column", x * (np.arange(8) != 3)
    yield "one huge row", x * np.where(np.arange(20) == 3, 1e30, 1)[:, None]
    for scale in (1e-10, 1e-6, 1e-3, 1e3, 1e10, 1e15, 1e20, 1e30):
        yield f"{scale:g}", scale * x


def sensitivity(name, x, bases, num_steps, expected):
    """How far the published result moves when its arguments are rounded to float32 otherwise."""
    moved = []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        others = (a * (1 + rng.choice([-1, 1], a.shape) * 2.0**-24) for a in (x, bases))
        moved.append(np.abs(published(name, *others, num_steps) - expected).max())
    return max(moved)


@pytest.mark.parametrize("dead", [False, True])
@pytest.mark.parametrize("name", ["nmf", "cd", "vq"])
def test_extreme_values_follow_the_published_formulas(name, dead):
    rng = np.random.default_rng(1)
    bases = rng.uniform(size=(2, 8, 4)) if name == "nmf" else rng.normal(size=(2, 8, 4))
    bases[:, :, 1] *= not dead
    bases = np.float64(np.float32(bases))
    solve = getattr(decomposition, name)
    for (label, x), num_steps in itertools.product(extremes(), (0, 1, 6)):
        case = (label, num_steps)
        x = np.float64(np.float32(x))
        expected = published(name, x, bases, num_steps)
        # float32 holds no squares of 1e-23.
        largest = max(np.abs(expected).max(), 1e-30)
        y = solve(tf.constant(x), tf.constant(bases), num_steps=num_steps).product()
        assert np.abs(y - expected).max() < 1e-10 * largest, case

        narrow = tf.constant(np.float32(x))
        with tf.GradientTape() as tape:
            tape.watch(narrow)
            found = solve(narrow, tf.constant(np.float32(bases)), num_steps=num_steps)
            y = found.product()
        # A softmax of large logits passes rounding on, of whichever implementation.
        rounding = sensitivity(name, x, bases, num_steps, expected)
        error = np.abs(y - expected).max()
        # CD and VQ square the entries of rows: above 1e18 that leaves float32, as published.
        if name == "nmf" or np.abs(x).max() < 1e18:
            told = (*case, error / largest, rounding / largest)
            assert error < 1e-5 * largest + 10 * rounding, told
        assert np.all(np.isfinite(tape.gradient(y, narrow))), case
        assert np.isfinite(found.residual()), case


# Shapes and labels


@pytest.mark.parametrize("mode", ["new", "eager", "graph", "symbolic"])
@pytest.mark.parametrize("shape", [(4, 16), (4, 8, 16), (4, 2, 8, 8, 16)])
@pytest.mark.parametrize("kind", KINDS)
def test_other_ranks_are_refused(kind, shape, mode):
    layer = made(kind)
    if mode in ("eager", "graph"):
        layer(array(4, 8, 8, 16))
    with pytest.raises(ValueError, match=r"must be \[B, H, W, C\]"):
        if mode == "symbolic":
            layer(keras.Input(shape[1:]))
        else:
            (tf.function(layer) if mode == "graph" else layer)(array(*shape))


@pytest.mark.parametrize("kind", [normalization.BatchNorm, lambda: spectral.SpectralConv2D(3, 1)])
def test_other_ranks_are_refused_by_the_parts(kind):
    for shape in ((4, 16), (4, 2, 8, 8, 16)):
        with pytest.raises(ValueError, match=r"must be \[B, H, W, C\]"):
            kind()(array(*shape))
    with pytest.raises(ValueError, match=r"must be \[B, C\]"):
        spectral.SpectralDense(3)(array(4, 8, 8, 16))


@pytest.mark.parametrize("kind", HAMBURGERS)
def test_labels_of_a_column_are_labels(kind):
    x, labels = array(4, 8, 8, 16), np.array([0, 2, 1, 2], np.int32)
    layer = made(kind, num_classes=3)
    layer(x, labels)
    layer.norm.gamma.assign(array(3, 16))
    expected = opened(layer)(x, labels, keys=KEYS)
    assert np.any(expected != layer(x, 0 * labels, keys=KEYS))
    for column in (labels[:, None], labels[:, None].astype(np.float32)):
        np.testing.assert_array_equal(layer(x, column, keys=KEYS), expected)
    for shape in ((4, 2), (4, 1, 1), ()):
        with pytest.raises(ValueError, match=r"labels must be \[B\] or \[B, 1\], got shape"):
            layer(x, np.zeros(shape, np.int32))


def test_labels_that_mixed_precision_has_rounded_are_refused():
    layer = normalization.BatchNorm(num_classes=300, dtype="mixed_bfloat16")
    with pytest.raises(ValueError, match="labels must be integers, got bfloat16"):
        layer(array(4, 8, 8, 16), np.float32([0, 257, 258, 259]))


def test_channels_first_is_refused():
    keras.config.set_image_data_format("channels_first")
    try:
        with pytest.raises(ValueError, match="image_data_format.. must be 'channels_last'"):
            hamgan.Hamburger()(array(4, 16, 8, 8))
    finally:
        keras.config.set_image_data_format("channels_last")


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_empty_batches_change_nothing(kind, training):
    layer = made(kind, num_classes=3)
    y = layer(np.zeros((0, 8, 8, 16), np.float32), np.zeros([0], np.int32), training=training)
    assert y.shape == (0, 8, 8, 16)
    assert all(np.all(np.isfinite(weight)) for weight in layer.get_weights())


@pytest.mark.parametrize("kind", [hamgan.Hamburger, hamgan.HamburgerV2, hamgan.SelfAttention])
def test_height_and_width_may_be_unknown(kind):
    layer = made(kind)
    image = keras.Input((None, None, 16))
    model = keras.Model(image, layer(image))
    opened(layer)
    for height, width in ((8, 8), (4, 6)):
        x = array(4, height, width, 16)
        traced = tf.function(
            lambda x: layer(x, keys=KEYS), input_signature=[tf.TensorSpec([None, None, None, 16])]
        )
        assert_close(traced(x), layer(x, keys=KEYS), 1e-5)
        assert model.predict(x, verbose=0).shape == x.shape


# Saved, copied, trained


def functional(kind, **kwargs):
    image, label = keras.Input((8, 8, 16)), keras.Input((1,))
    layer = made(kind, num_classes=3, name="layer", **kwargs)
    return keras.Model([image, label], layer(image, label))


@pytest.mark.parametrize("kind", KINDS)
def test_functional_models_are_saved_and_copied(kind, tmp_path):
    fixed = {} if kind in ATTENTIONS else {"bases": "FixedBases", "solve": "one_step"}
    model = functional(kind, **fixed)
    opened(model.get_layer("layer"))
    model.save(tmp_path / "model.keras")
    inputs = [array(4, 8, 8, 16), np.float32([[0], [1], [2], [2]])]
    expected = model.predict(inputs, verbose=0)
    assert np.any(expected != inputs[0])
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    for other in (
        keras.models.load_model(tmp_path / "model.keras"),
        pickle.loads(pickle.dumps(model)),
        copy.deepcopy(model),
        clone,
    ):
        assert type(other.get_layer("layer")) is kind
        np.testing.assert_array_equal(other.predict(inputs, verbose=0), expected)


@pytest.mark.parametrize("network", ["Generator", "Discriminator"])
def test_networks_are_saved(network, tmp_path):
    ridge = functools.partial(decomposition.cd, beta=0.1)
    context = functools.partial(
        hamgan.HamburgerV2, decomposition=ridge, bases=hamgan.FixedBases, solve="one_step"
    )
    if network == "Generator":
        model = Generator(image_size=32, num_classes=3, width=2, latent_dim=4, context=context)
        inputs = array(2, 4), np.int32([0, 2])
    else:
        model = Discriminator(image_size=32, num_classes=3, width=4, context=context)
        inputs = array(2, 32, 32, 3), np.int32([0, 2])
    opened(model.context)
    expected = model(*inputs)
    model.save(tmp_path / "model.keras")
    other = keras.models.load_model(tmp_path / "model.keras")
    assert [v.path for v in other.variables] == [v.path for v in model.variables]
    np.testing.assert_array_equal(other(*inputs), expected)
    assert other.context.decomposition.keywords == {"beta": 0.1}


def test_parts_may_be_names():
    layer = hamgan.Hamburger(
        decomposition="cd", solve="unrolled", bases="FixedBases", norm="BatchNorm", num_classes=2
    )
    assert layer.decomposition is decomposition.cd and layer.solve is decomposition.unrolled
    assert layer.bases_constructor is hamgan.FixedBases
    ridge = functools.partial(decomposition.cd, beta=0.1)
    config = hamgan.Hamburger(decomposition=ridge).get_config()
    assert config["decomposition"] == {"name": "cd", "arguments": {"beta": 0.1}}
    copied = hamgan.Hamburger.from_config(config).decomposition
    assert copied.func is decomposition.cd and copied.keywords == {"beta": 0.1}


def test_parts_without_a_name_are_refused():
    with pytest.raises(ValueError, match="Hamburger: decomposition must be .* got 'nnmf'"):
        hamgan.Hamburger(decomposition="nnmf")
    with pytest.raises(ValueError, match="Hamburger: solve must be .* got 3"):
        hamgan.Hamburger(solve=3)
    layer = hamgan.Hamburger(decomposition=lambda x, bases, **_: x)
    with pytest.raises(ValueError, match="decomposition can be saved only by its name"):
        layer.get_config()


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize("replicas", [1, 2])
def test_fit(policy, jit_compile, replicas):
    if jit_compile and replicas == 2:
        pytest.skip("two logical CPUs can't compile one step together")
    strategy = two_replicas() if replicas == 2 else tf.distribute.get_strategy()
    with strategy.scope():
        image = keras.Input((8, 8, 16))
        layer = hamgan.HamburgerV2(dtype=policy, name="layer")
        y = keras.layers.GlobalAveragePooling2D()(layer(image))
        model = keras.Model(image, keras.layers.Dense(1, dtype="float32")(y))
        model.compile("adam", "mse", jit_compile=jit_compile)
    x = array(16, 8, 8, 16)
    history = model.fit(x, x.mean((1, 2, 3)), batch_size=8, epochs=2, verbose=0).history
    assert np.all(np.isfinite(history["loss"])) and float(layer.gate.numpy()) != 0


def test_subclassed_models_and_saved_models(tmp_path):
    class Model(keras.Model):
        def __init__(self):
            super().__init__()
            self.ham = hamgan.Hamburger(bases="FixedBases")

        def call(self, x):
            return self.ham(x)

    model, x = Model(), array(4, 8, 8, 16)
    model(x)
    opened(model.ham)
    model.export(tmp_path / "saved", verbose=False)
    loaded = tf.saved_model.load(str(tmp_path / "saved"))
    assert_close(loaded.serve(x), model(x), 1e-5)


def test_the_package_imports_tensorflow_with_its_first_layer():
    code = (
        "import sys, hamgan; assert 'tensorflow' not in sys.modules; "
        "from hamgan import Hamburger; assert 'tensorflow' in sys.modules; "
        "assert 'hamgan.trainer' not in sys.modules; print(Hamburger.__module__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "hamgan.context.hamburger"
    with pytest.raises(ImportError):
        from hamgan import Hotdog  # noqa: F401


# Any values


@few
@hypothesis.given(
    kind=st.sampled_from(HAMBURGERS),
    name=st.sampled_from(["nmf", "cd", "vq"]),
    dtype=st.sampled_from(["float32", "mixed_bfloat16"]),
    scale=st.sampled_from([0.0, 1e-30, 1e-10, 1.0, 1e10, 1e25]),
    constant=st.booleans(),
    seed=st.integers(0, 99),
)
def test_results_and_gradients_are_finite(kind, name, dtype, scale, constant, seed):
    x = np.ones((2, 4, 4, 8), np.float32) if constant else array(2, 4, 4, 8, seed=seed)
    layer = kind(decomposition=name, rank=2, dtype=dtype)
    x = tf.constant(scale * x)
    layer.build(x.shape)
    opened(layer)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = layer(x, keys=KEYS[:2])
    gradient = tape.gradient(y, x)
    assert np.all(np.isfinite(np.float32(y))) and np.all(np.isfinite(gradient))
    assert scale == 0 or np.any(np.float32(y) != 0)


@few
@hypothesis.given(
    kind=st.sampled_from(KINDS),
    name=st.sampled_from(["nmf", "cd", "vq"]),
    bad=st.sampled_from([np.nan, np.inf, -np.inf]),
    index=st.integers(0, 3),
)
def test_what_is_not_finite_stays_in_its_example(kind, name, bad, index):
    layer = made(kind, **({} if kind in ATTENTIONS else {"decomposition": name}))
    x = array(4, 4, 4, 16)
    layer.build(x.shape)
    opened(layer)
    expected = layer(x, keys=KEYS).numpy()
    x[index, 1, 2, 3] = bad
    y = layer(x, keys=KEYS).numpy()
    others = np.arange(4) != index
    assert not np.all(np.isfinite(y[index]))
    np.testing.assert_array_equal(y[others], expected[others])


def test_the_lines_in_readme_make_a_model_that_learns():
    readme = (pathlib.Path(__file__).parent.parent / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    names = {}
    exec(code, names)
    model = names["model"]
    assert any(isinstance(layer, hamgan.Hamburger) for layer in model.layers)
    rng = np.random.default_rng(0)
    images, labels = rng.normal(size=[16, 8, 8, 3]).astype(np.float32), np.arange(16) % 10
    losses = model.fit(images, labels, epochs=8, batch_size=16, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    assert model(images[:2, :4]).shape == (2, 10)
