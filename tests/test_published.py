"""A checkpoint of the published code, with its recorded outputs and gradients.

`golden/published_v1_nmf/`: width 4, 5 classes, 30 steps on noise, gates set to 0.7 and -0.4.
`golden.npz` holds inputs, initial bases, outputs and input gradients, `info.json` every variable's
name.
"""

import functools
import pathlib
import re

import numpy as np
import numpy_reference as reference
import pytest
import tensorflow as tf
from helpers import assert_close, weights

from hamgan.benchmarks import published_step
from hamgan.context import Hamburger
from hamgan.networks import Discriminator, Generator

FOLDER = pathlib.Path(__file__).parent / "golden" / "published_v1_nmf"

# Scopes of the published graph, and ours.
SCOPES = [
    (r"[gd]_snh0/dense|d_sn_linear/dense", "dense"),
    (r"[gd]_(?:optimized_)?block(\d)/sn_?conv([12])/sn_?conv[12]", r"block_\1/conv_\2"),
    (r"[gd]_(?:optimized_)?block(\d)/sn_?conv3/sn_?conv3", r"block_\1/shortcut"),
    (r"g_block(\d)/cbn_0", r"block_\1/norm_1"),
    (r"g_block(\d)/cbn_1", r"block_\1/norm_2"),
    (r"[gd]_ops/sn_(lower|upper)_bread", r"context/\1_bread"),
    (r"g_ops/upper_bread_bn", "context/norm"),
    (r"[gd]_ops", "context"),
    (r"g_bn", "norm"),
    (r"g_snconv_last/g_snconv_last", "to_rgb"),
    (r"d_embedding", "embedding"),
]
NAMES = {
    "weights": "kernel",
    "embedding_map": "kernel",
    "spectral_norm_u": "u",
    "sigma_ratio": "gate",
}


def our_name(published):
    """E.g. g_block1/snconv1/snconv1/kernel -> block_1/conv_1/kernel."""
    name = published.split("/")[-1]
    for pattern, ours in SCOPES:
        match = re.match(rf"(?:{pattern})(?=/)", published)
        if match:
            return f"{match.expand(ours)}/{NAMES.get(name, name)}"
    raise KeyError(published)


def assign(variables, scope):
    """Puts the checkpoint's variables under `scope` into those of a network, {our name: variable}:
    all of them, and nothing is left as it was.
    """
    reader = tf.train.load_checkpoint(str(FOLDER / "model.ckpt-30"))
    published = [
        name
        for name in reader.get_variable_to_shape_map()
        if name.startswith(scope) and "/Adam" not in name
    ]
    assert sorted(our_name(name[len(scope) :]) for name in published) == sorted(variables)
    for name in published:
        ours = our_name(name[len(scope) :])
        value = reader.get_tensor(name)
        if ours.endswith(("gamma", "beta")):
            value = value.reshape(variables[ours].shape)  # [classes, 1, 1, C]
        variables[ours].assign(value)


def assigned(network, scope):
    """A network of ours with the checkpoint's variables."""
    assign({variable.path: variable for variable in network.variables}, scope)
    return network


@pytest.fixture(scope="module")
def golden():
    with np.load(FOLDER / "golden.npz") as arrays:
        return dict(arrays)


def initial(bases):
    """A network's `initial` that gives the recorded bases [B, d, r]."""
    return lambda keys: {"space": tf.constant(bases[:, None])}


@pytest.fixture(scope="module")
def generator():
    network = Generator(
        image_size=128, width=4, num_classes=5, context=functools.partial(Hamburger, rank=4)
    )
    return assigned(network, "Generator/generator/")


@pytest.fixture(scope="module")
def discriminator():
    network = Discriminator(
        image_size=128, width=4, num_classes=5, context=functools.partial(Hamburger, rank=2)
    )
    return assigned(network, "Discriminator/discriminator/")


def test_gates_matter(generator, discriminator):
    gates = [network.context.gate.numpy() for network in (generator, discriminator)]
    np.testing.assert_allclose(gates, [0.7, -0.4], rtol=1e-6)


def test_generator(generator, golden):
    z = tf.constant(golden["z"])
    with tf.GradientTape() as tape:
        tape.watch(z)
        images = generator(z, golden["labels"], initial=initial(golden["g_bases"]))
        total = tf.reduce_sum(images * golden["real_images"])
    assert_close(images, golden["images"], 2e-5)
    # Loose, because in this checkpoint one ReLU's input is so close to 0 that its sign depends on
    # rounding.
    assert_close(tape.gradient(total, z), golden["z_grad"], 2e-2)


def test_discriminator(discriminator, golden):
    images = tf.constant(golden["real_images"])
    with tf.GradientTape() as tape:
        tape.watch(images)
        logits = discriminator(images, golden["labels"], initial=initial(golden["d_bases"]))
    assert_close(logits, golden["logits"], 2e-5)
    assert_close(tape.gradient(logits, images), golden["img_grad"], 2e-5)


@pytest.fixture(scope="module")
def plain():
    """The published step of the benchmark, with the checkpoint's variables."""
    step = published_step.Step(
        np.zeros([2, 128, 128, 3], np.float32), np.array([1, 4], np.int32), width=4, num_classes=5
    )
    assign(step.generator.variables, "Generator/generator/")
    assign(step.discriminator.variables, "Discriminator/discriminator/")
    return step


def test_the_benchmarks_published_networks(plain, golden):
    z, images = tf.constant(golden["z"]), tf.constant(golden["real_images"])
    with tf.GradientTape(persistent=True) as tape:
        tape.watch([z, images])
        drawn = plain.generator(z, golden["labels"], training=False, bases=golden["g_bases"])
        total = tf.reduce_sum(drawn * images)
        logits = plain.discriminator(images, golden["labels"], bases=golden["d_bases"])
    assert_close(drawn, golden["images"], 2e-5)
    assert_close(tape.gradient(total, z), golden["z_grad"], 2e-2)
    assert_close(logits, golden["logits"], 2e-5)
    assert_close(tape.gradient(logits, images), golden["img_grad"], 2e-5)


@pytest.mark.parametrize(
    "update,moved,still,rate",
    [
        ("discriminator_update", "discriminator", "generator", 4e-4),
        ("generator_update", "generator", "discriminator", 1e-4),
    ],
)
def test_the_benchmarks_published_updates(update, moved, still, rate):
    images = np.random.default_rng(0).uniform(-1, 1, [2, 128, 128, 3]).astype(np.float32)
    tf.random.set_seed(0)
    step = published_step.Step(images, np.array([1, 4], np.int32), width=4, num_classes=5)
    moved, still = getattr(step, moved), getattr(step, still)
    before = [variable.numpy() for variable in moved.trainable_variables]
    others = [variable.numpy() for variable in still.trainable_variables]
    # The kernel of the discriminator's logit has one column: its u is right at the first call.
    right = step.discriminator.variables["dense/u"]
    iterated = [
        (name, variable, variable.numpy())
        for network in (moved, still)
        for name, variable in network.variables.items()
        if name.endswith(("/u", "moving_mean")) and variable is not right
    ]
    getattr(step, update)()
    # Adam's first step with beta1 0 is the learning rate times the gradient's sign.
    moves = [
        np.abs(variable.numpy() - value).max()
        for variable, value in zip(moved.trainable_variables, before, strict=True)
    ]
    np.testing.assert_allclose(max(moves), rate, rtol=0.02)
    # All but those behind the gate, which is 0 at the start, and biases that a norm takes away.
    assert sum(move > rate / 2 for move in moves) > len(moves) / 2
    for variable, value in zip(still.trainable_variables, others, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)
    assert [name for name, variable, value in iterated if np.all(variable.numpy() == value)] == []


def test_numpy_reference(generator, discriminator, golden):
    g_bases, d_bases = golden["g_bases"][:, None], golden["d_bases"][:, None]
    images = reference.generator(weights(generator), golden["z"], golden["labels"], g_bases)
    assert_close(images, golden["images"], 2e-5)
    logits = reference.discriminator(
        weights(discriminator), golden["real_images"], golden["labels"], d_bases
    )
    assert_close(logits, golden["logits"], 2e-5)
