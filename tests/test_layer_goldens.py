"""Decompositions and attention: the published code's recorded arrays, and NumPy."""

import functools
import pathlib

import numpy as np
import numpy_reference as reference
import pytest
import tensorflow as tf
from helpers import array, assert_close, assert_modes_agree, numerical_gradient

from hamgan import decomposition
from hamgan.context import SelfAttention, SparseAttention, sparse_masks

GOLDEN = pathlib.Path(__file__).parent / "golden"
TOLERANCE = 1e-4
B, N, D, R, K = 3, 20, 8, 4, 6

# As the published segmentation code has them. Its NMF stands after a ReLU: the golden x has zeros,
# and they a gradient.
SEGMENTATION = {
    "NMF": functools.partial(decomposition.nmf, normalize=True, rectify=False),
    "CD": functools.partial(decomposition.cd, beta=0.1),
    "VQ": decomposition.vq,
}


def product(name, *args, **kwargs):
    """The product of the factors that the decomposition `name` gives."""
    return getattr(decomposition, name)(*args, **kwargs).product()


@functools.cache
def golden(name):
    with np.load(GOLDEN / name) as arrays:
        return dict(arrays)


def value_and_gradient(function, x, dy):
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = function(x)
    return y, tape.gradient(y, x, dy)


# Decompositions


def ham_layer(kind):
    """{name: array} with x, y, dy, dx as [B*S, N, D], bases [B*S, D, R]; and K."""
    arrays = {
        name: golden("ham_layers.npz")[f"{kind}_a_{name}"]
        for name in ("x", "bases", "y", "dy", "dx", "meta")
    }
    batch, sections, dim, height, width, rank, num_steps = arrays.pop("meta")
    for name in ("x", "y", "dy", "dx"):
        rows = arrays[name].reshape(batch * sections, dim, height * width)  # channels first
        arrays[name] = np.ascontiguousarray(rows.transpose(0, 2, 1))
    assert arrays["bases"].shape == (batch * sections, dim, rank)
    return arrays, int(num_steps)


@pytest.mark.parametrize("kind", SEGMENTATION)
def test_ham_equals_published(kind):
    arrays, num_steps = ham_layer(kind)

    def ham(x):
        found = SEGMENTATION[kind](x, tf.constant(arrays["bases"]), num_steps=num_steps)
        return found.product()

    y, dx = value_and_gradient(ham, tf.constant(arrays["x"]), arrays["dy"])
    assert_close(y, arrays["y"], TOLERANCE)
    assert_close(dx, arrays["dx"], TOLERANCE)


def test_rectified_zeros_have_no_gradient():
    arrays, num_steps = ham_layer("NMF")
    ham = functools.partial(
        product, "nmf", bases=tf.constant(arrays["bases"]), num_steps=num_steps, normalize=True
    )
    y, dx = value_and_gradient(ham, tf.constant(arrays["x"]), arrays["dy"])
    assert np.any(arrays["x"] == 0)
    assert_close(y, arrays["y"], TOLERANCE)
    assert_close(dx, np.where(arrays["x"] > 0, arrays["dx"], 0), TOLERANCE)


def test_beta_of_the_published_gan_is_another():
    arrays, num_steps = ham_layer("CD")
    y = product("cd", tf.constant(arrays["x"]), tf.constant(arrays["bases"]), num_steps=num_steps)
    assert np.abs(y - arrays["y"]).max() > 0.05 * np.abs(arrays["y"]).max()


# The formulas once more, in float64 NumPy. x [B, N, D], bases [B, D, R].


def columns_of_length_1(bases):
    return bases / np.maximum(np.linalg.norm(bases, axis=1, keepdims=True), 1e-6)


def cosines(x, bases):
    return (x / np.linalg.norm(x, axis=2, keepdims=True)) @ columns_of_length_1(bases)


def weighted_means(x, bases, temperature):
    coef = reference.softmax(cosines(x, bases) / temperature)
    coef = coef / (1e-6 + coef.sum(axis=1, keepdims=True))
    return x.transpose(0, 2, 1) @ coef


def numpy_cd(x, bases, num_steps, *, temperature=0.01, beta=0.01, factors=None):
    """`factors`: bases to use in place of the solved ones."""
    if factors is None:
        factors = columns_of_length_1(bases)
        for _ in range(num_steps):
            factors = columns_of_length_1(weighted_means(x, factors, temperature))
    transposed = factors.transpose(0, 2, 1)
    coef = x @ factors @ np.linalg.inv(transposed @ factors + beta * np.eye(factors.shape[2]))
    return coef @ transposed, factors


def numpy_vq(x, bases, num_steps, *, temperature=0.01, factors=None, length=None):
    """`factors`, `length`: what to use in place of the solved bases and the rows' norms."""
    if factors is None:
        factors = columns_of_length_1(bases)
        for _ in range(num_steps):
            factors = weighted_means(x, factors, temperature)
    length = np.linalg.norm(x, axis=2, keepdims=True) if length is None else length
    coef = reference.softmax(x / (1e-6 + length) @ columns_of_length_1(factors) / temperature)
    return coef @ factors.transpose(0, 2, 1), factors


def numpy_nmf(x, bases, num_steps, *, temperature=1.0, normalize=False):
    x = np.maximum(x, 0)
    bases = columns_of_length_1(bases) if normalize else bases
    coef = reference.softmax(x @ bases / temperature)
    for step in range(num_steps + 1):
        coef = coef * (x @ bases) / (coef @ bases.transpose(0, 2, 1) @ bases + 1e-6)
        if step < num_steps:
            bases = (
                bases
                * (x.transpose(0, 2, 1) @ coef)
                / (bases @ coef.transpose(0, 2, 1) @ coef + 1e-6)
            )
    return coef @ bases.transpose(0, 2, 1), bases


NUMPY = {"cd": numpy_cd, "vq": numpy_vq, "nmf": numpy_nmf}
OPTIONS = [
    ("cd", dict()),
    ("cd", dict(beta=0.1)),
    ("cd", dict(temperature=0.5, beta=2.0)),
    ("vq", dict()),
    ("vq", dict(temperature=0.5)),
    ("nmf", dict(normalize=True)),
    ("nmf", dict(temperature=0.1)),
    ("nmf", dict(temperature=0.1, normalize=True)),
]


def problem(name, dtype=np.float64):
    """x [B, N, D], initial bases [B, D, R], dy [B, N, D]."""
    rng = np.random.default_rng(0)
    draw = rng.uniform if name == "nmf" else rng.normal
    arrays = rng.normal(size=(B, N, D)), draw(size=(B, D, R)), rng.normal(size=(B, N, D))
    return [each.astype(dtype) for each in arrays]


@pytest.mark.parametrize("num_steps", [0, 1, K])
@pytest.mark.parametrize(("name", "options"), OPTIONS)
def test_decomposition_equals_numpy(name, options, num_steps):
    x, bases, _ = problem(name)
    y = product(name, tf.constant(x), tf.constant(bases), num_steps=num_steps, **options)
    assert_close(y, NUMPY[name](x, bases, num_steps, **options)[0], 1e-10)


@pytest.mark.parametrize(("name", "options"), OPTIONS[:5])
def test_length_of_initial_bases_does_not_matter(name, options):
    x, bases, _ = problem(name)
    function = functools.partial(product, name, tf.constant(x), num_steps=2, **options)
    assert_close(
        function(tf.constant(bases * np.array([1.0, 0.1, 7.0, 100.0]))),
        function(tf.constant(bases)),
        1e-10,
    )


def test_gradient_of_cd_is_that_of_the_regression():
    x, bases, dy = problem("cd")
    _, dx = value_and_gradient(
        lambda x: product("cd", x, tf.constant(bases), num_steps=K),
        tf.constant(x),
        tf.constant(dy),
    )
    _, factors = numpy_cd(x, bases, K)
    expected = numerical_gradient(
        lambda x: np.sum(dy * numpy_cd(x, bases, K, factors=factors)[0]), x
    )
    assert_close(dx, expected, 1e-7)


def test_gradient_of_vq_is_that_of_the_last_choice_at_constant_length():
    x, bases, dy = problem("vq")
    _, dx = value_and_gradient(
        lambda x: product("vq", x, tf.constant(bases), num_steps=K),
        tf.constant(x),
        tf.constant(dy),
    )
    _, factors = numpy_vq(x, bases, K)

    def gradient_at(length):
        return numerical_gradient(
            lambda x: np.sum(dy * numpy_vq(x, bases, K, factors=factors, length=length)[0]), x
        )

    expected = gradient_at(np.linalg.norm(x, axis=2, keepdims=True))
    assert_close(dx, expected, 1e-6)
    free = gradient_at(None)
    assert np.abs(free - expected).max() > 0.01 * np.abs(expected).max()


@pytest.mark.parametrize("name", ["cd", "vq"])
def test_float32_input_of_zeros_gives_zeros(name):
    x, bases, dy = problem(name, np.float32)
    y, dx = value_and_gradient(
        lambda x: product(name, x, tf.constant(bases), num_steps=K),
        tf.zeros_like(x),
        dy,
    )
    np.testing.assert_array_equal(y, np.zeros_like(x))
    assert np.all(np.isfinite(dx))


# The published temperature of vector quantisation would multiply float32's rounding by 100, twice.
@pytest.mark.parametrize(
    ("name", "options"), [("cd", {}), ("vq", dict(temperature=0.1)), ("nmf", dict(normalize=True))]
)
def test_modes_agree_with_dynamic_batch(name, options):
    x, bases, dy = problem(name, np.float32)

    def both(x, bases, dy):
        function = functools.partial(product, name, num_steps=2, **options)
        return value_and_gradient(lambda x: function(x, bases), x, dy)

    expected = assert_modes_agree(both, *map(tf.constant, (x, bases, dy)), tolerance=1e-4)
    signature = [tf.TensorSpec([None, *each.shape[1:]]) for each in (x, bases, dy)]
    dynamic = tf.function(both, input_signature=signature)
    for batch in (1, B):
        for one, other in zip(dynamic(x[:batch], bases[:batch], dy[:batch]), expected, strict=True):
            assert_close(one, other[:batch], 1e-4)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("nmf", dict(temperature=0.0)),
        ("vq", dict(temperature=-1.0)),
        ("cd", dict(temperature=0.0)),
        ("cd", dict(beta=0.0)),
    ],
)
def test_parameters_must_be_positive(name, options):
    x, bases, _ = problem(name)
    ((argument, value),) = options.items()
    with pytest.raises(ValueError, match=f"{name}: {argument} must be positive, got {value}"):
        getattr(decomposition, name)(tf.constant(x), tf.constant(bases), num_steps=1, **options)


# Attention

ATTENTION = {"sagan": SelfAttention, "ylg": SparseAttention}


def attention_layer(kind):
    """The layer with its golden weights, and {name: array} with x, y, dy, dx."""
    prefix = f"{kind}/"
    arrays = {
        k.removeprefix(prefix): v
        for k, v in golden("attention_layers.npz").items()
        if k.startswith(prefix)
    }
    layer = ATTENTION[kind]()
    layer.build(arrays["x"].shape)
    for name in ("theta", "phi", "g", "attn"):
        conv = getattr(layer, name)
        conv.kernel.assign(arrays[f"sn_conv_{name}/weights"])
        conv.u.assign(arrays[f"sn_conv_{name}/u"])
    layer.gate.assign(arrays["sigma_ratio"])
    return layer, arrays


@pytest.mark.parametrize("kind", ATTENTION)
def test_attention_equals_published(kind):
    layer, arrays = attention_layer(kind)
    vectors = [v.numpy() for v in layer.non_trainable_variables]
    y, dx = value_and_gradient(layer, tf.constant(arrays["x"]), arrays["dy"])
    assert_close(y, arrays["y"], TOLERANCE)
    assert_close(dx, arrays["dx"], TOLERANCE)
    # What attention adds to x is as exact.
    assert_close(y - arrays["x"], arrays["y"] - arrays["x"], TOLERANCE)
    # The power iteration is computed, but not stored.
    assert len(vectors) == 4
    for before, after in zip(vectors, layer.non_trainable_variables, strict=True):
        np.testing.assert_array_equal(after, before)


def test_masks_equal_published():
    masks = np.tile(sparse_masks(16).numpy(), [1, 4, 1])
    np.testing.assert_array_equal(masks, golden("ylg_masks_32x32.npz")["masks"])


def test_masks_in_words():
    # A second way to the same patterns, cell by cell, on a grid small enough to do by hand: side 2,
    # diagonals (0,0); (0,1), (1,0); (1,1), so that the numbers are row-major already.
    floor_left = np.array([[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]], bool)
    repetitive_left = np.array([[1, 1, 0, 1], [0, 1, 0, 1], [0, 1, 1, 1], [0, 1, 0, 1]], bool)
    repetitive_right = np.array([[1, 0, 1, 0], [1, 1, 1, 0], [1, 0, 1, 0], [1, 0, 1, 1]], bool)
    right, left = [floor_left.T, repetitive_right], [floor_left, repetitive_left]
    np.testing.assert_array_equal(sparse_masks(2), right + right + left + left)


def test_masks_leave_every_query_something():
    for side in (1, 2, 4, 8):
        masks = sparse_masks(side).numpy()
        assert masks.shape == (8, side**2, side**2)
        assert masks.diagonal(axis1=1, axis2=2).all()


def numpy_sparse_attention(layer, x, masks):
    """Head by head, from the layer's weights: scores + (1 - mask) * -1000."""

    def conv(name, x):
        weights = {
            "kernel": getattr(layer, name).kernel.numpy(),
            "u": getattr(layer, name).u.numpy(),
        }
        return reference.sn_conv(weights, x, exact=True)

    def pool(x):
        batch, height, width, channels = x.shape
        return (
            x.reshape(batch, height // 2, 2, width // 2, 2, channels)
            .max(axis=(2, 4))
            .reshape(batch, -1, channels)
        )

    batch, height, width, _ = x.shape
    theta = conv("theta", x).reshape(batch, height * width, -1)
    phi, g = pool(conv("phi", x)), pool(conv("g", x))
    c, v = theta.shape[2] // 8, g.shape[2] // 8
    y = np.zeros([batch, height * width, 8 * v])
    for head in range(8):
        keys, values = slice(head * c, (head + 1) * c), slice(head * v, (head + 1) * v)
        scores = (
            theta[:, :, keys] @ phi[:, :, keys].transpose(0, 2, 1) + (1 - masks[head]) * -1000.0
        )
        y[:, :, head::8] = reference.softmax(scores) @ g[:, :, values]
    return x + float(layer.gate.numpy()) * conv("attn", y.reshape(batch, height, width, -1))


def test_sparse_attention_equals_numpy_where_heads_have_several_channels():
    # The golden layer has one channel of theta per head. Here: 2 and 3, at the golden masks' size.
    layer = SparseAttention(dim=16, value_dim=24)
    x = array(2, 32, 32, 6)
    layer.build(x.shape)
    layer.gate.assign(0.7)
    expected = numpy_sparse_attention(layer, np.float64(x), golden("ylg_masks_32x32.npz")["masks"])
    assert_close(layer(tf.constant(x)), expected, 1e-5)
