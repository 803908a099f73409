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


def assign(network, scope):
    """Puts the checkpoint's variables under `scope` into `network`: all of them, and nothing is
    left as it was.
    """
    reader = tf.train.load_checkpoint(str(FOLDER / "model.ckpt-30"))
    variables = {variable.path: variable for variable in network.variables}
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
            value = value[:, 0, 0]  # [classes, 1, 1, C]
        variables[ours].assign(value)
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
    return assign(network, "Generator/generator/")


@pytest.fixture(scope="module")
def discriminator():
    network = Discriminator(
        image_size=128, width=4, num_classes=5, context=functools.partial(Hamburger, rank=2)
    )
    return assign(network, "Discriminator/discriminator/")


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


def test_numpy_reference(generator, discriminator, golden):
    g_bases, d_bases = golden["g_bases"][:, None], golden["d_bases"][:, None]
    images = reference.generator(weights(generator), golden["z"], golden["labels"], g_bases)
    assert_close(images, golden["images"], 2e-5)
    logits = reference.discriminator(
        weights(discriminator), golden["real_images"], golden["labels"], d_bases
    )
    assert_close(logits, golden["logits"], 2e-5)
