"""The losses beside hinge, whose tests are in test_tfgan.py, against NumPy."""

import numpy as np
import pytest
import tensorflow as tf

from hamgan import losses


def softplus(x):
    return np.log1p(np.exp(x))


EXPECTED = {
    "non_saturating": (
        lambda r, f: softplus(-r).mean() + softplus(f).mean(),
        lambda f: softplus(-f).mean(),
    ),
    "least_squares": (
        lambda r, f: ((r - 1) ** 2).mean() / 2 + (f**2).mean() / 2,
        lambda f: ((f - 1) ** 2).mean() / 2,
    ),
    "wasserstein": (lambda r, f: f.mean() - r.mean(), lambda f: -f.mean()),
}


def logits(shape):
    return np.random.default_rng(0).normal(scale=2, size=(2, *shape)).astype(np.float32)


@pytest.mark.parametrize("shape", [(37,), (37, 1)])
@pytest.mark.parametrize("name", EXPECTED)
def test_losses_equal_numpy(name, shape):
    real, fake = logits(shape)
    expected = EXPECTED[name]
    of_pair, of_fakes = (
        getattr(losses, f"{name}_{network}") for network in ("discriminator", "generator")
    )
    loss = of_pair(tf.constant(real), tf.constant(fake))
    assert loss.dtype == tf.float32 and loss.shape == []
    np.testing.assert_allclose(
        loss, expected[0](np.float64(real), np.float64(fake)), rtol=1e-5, atol=1e-7
    )
    np.testing.assert_allclose(
        of_fakes(tf.constant(fake)), expected[1](np.float64(fake)), rtol=1e-5, atol=1e-7
    )


@pytest.mark.parametrize("name", EXPECTED)
def test_losses_of_bfloat16_logits_are_float32(name):
    real, fake = (tf.cast(each, tf.bfloat16) for each in logits((37,)))
    rounded = [np.float64(tf.cast(each, tf.float32)) for each in (real, fake)]
    discriminator = getattr(losses, f"{name}_discriminator")(real, fake)
    generator = getattr(losses, f"{name}_generator")(fake)
    assert discriminator.dtype == generator.dtype == tf.float32
    expected = EXPECTED[name][0](*rounded), EXPECTED[name][1](rounded[1])
    np.testing.assert_allclose([discriminator, generator], expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", EXPECTED)
def test_different_shapes_are_refused(name):
    with pytest.raises(ValueError, match="incompatible"):
        getattr(losses, f"{name}_discriminator")(tf.zeros([4]), tf.zeros([4, 1]))
