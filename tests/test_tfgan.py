"""The TF-GAN import and the hinge losses."""

import importlib
import sys

import numpy as np
import pytest
import tensorflow as tf

from hamgan import fitting, losses, tfgan
from hamgan.evaluation import features

ORACLES = {
    f"{ours}_{network}": f"{theirs}_{network}_loss"
    for ours, theirs in {
        "hinge": "wasserstein_hinge",
        "non_saturating": "modified",
        "least_squares": "least_squares",
        "wasserstein": "wasserstein",
    }.items()
    for network in ("discriminator", "generator")
}

SELF_SUFFICIENT_RELEASE = """
import tensorflow as tf
SAW_STAND_IN = hasattr(tf, "estimator")
from tensorflow_gan.python import estimator
"""


@pytest.fixture
def without_tensorflow_gan():
    """A MonkeyPatch with tensorflow_gan as if never imported; what was imported comes back."""
    kept = {name: module for name, module in sys.modules.items() if _is_tensorflow_gan(name)}
    for name in kept:
        del sys.modules[name]
    # Undone before the modules come back, or it would take the package out again.
    with pytest.MonkeyPatch.context() as monkeypatch:
        yield monkeypatch
    for name in [name for name in sys.modules if _is_tensorflow_gan(name)]:
        del sys.modules[name]
    sys.modules.update(kept)
    importlib.invalidate_caches()


def _is_tensorflow_gan(name):
    return name.split(".")[0] == "tensorflow_gan"


def _write_package(folder, files):
    for path, text in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    importlib.invalidate_caches()


def _logits(shape=(37,), seed=0):
    # Both sides of both hinges must occur.
    real, fake = np.random.default_rng(seed).normal(scale=2, size=(2, *shape)).astype(np.float32)
    assert (real < 1).any() and (real > 1).any() and (fake < -1).any() and (fake > -1).any()
    return real, fake


def _reference(real, fake):
    real, fake = np.float64(real), np.float64(fake)
    discriminator = np.maximum(0, 1 - real).mean() + np.maximum(0, 1 + fake).mean()
    return discriminator, -fake.mean()


def test_names_are_tf_gan_s_own():
    for name in tfgan.__all__:
        value = getattr(tfgan, name)
        if callable(value):
            assert value.__module__.startswith("tensorflow_gan.python."), name
    assert tfgan.INCEPTION_TFHUB == features.INCEPTION_HANDLE
    own = tfgan._tfgan.eval
    assert (own.INCEPTION_OUTPUT, own.INCEPTION_FINAL_POOL) == features._OUTPUTS
    assert own.INCEPTION_DEFAULT_IMAGE_SIZE == fitting.INCEPTION_SIZE == 299


@pytest.mark.parametrize("ours, theirs", ORACLES.items())
def test_losses_are_tf_gan_s(ours, theirs):
    real, fake = (tf.constant(x) for x in _logits())
    inputs = (real, fake) if ours.endswith("discriminator") else (fake,)
    settings = dict(label_smoothing=0.0) if theirs == "modified_discriminator_loss" else {}
    expected = getattr(tfgan, theirs)(*inputs, loss_collection=None, **settings)
    np.testing.assert_allclose(getattr(losses, ours)(*inputs), expected, rtol=1e-6)


@pytest.mark.skipif(
    tuple(int(part) for part in tf.__version__.split(".")[:2]) < (2, 16),
    reason="this TensorFlow has tf.estimator itself",
)
def test_stand_ins_are_gone_after_the_import():
    assert not hasattr(tf, "estimator")
    assert "tensorflow_gan.python.estimator" not in sys.modules


def test_second_import_from_scratch_works(without_tensorflow_gan):
    module = tfgan._import_tensorflow_gan()
    loss = module.losses.wargs.wasserstein_hinge_generator_loss(tf.constant([1.0, 3.0]))
    assert loss.numpy() == -2


def test_missing_tensorflow_gan_says_how_to_install_it(without_tensorflow_gan):
    without_tensorflow_gan.setitem(sys.modules, "tensorflow_gan", None)
    with pytest.raises(ImportError, match="'tensorflow_gan'.*python -m pip install -e ."):
        tfgan._import_tensorflow_gan()


def test_missing_dependency_is_named(without_tensorflow_gan):
    without_tensorflow_gan.setitem(sys.modules, "tensorflow_hub", None)
    with pytest.raises(ImportError, match="'tensorflow_hub'.*python -m pip install -e ."):
        tfgan._import_tensorflow_gan()


def test_release_that_imports_by_itself_is_left_alone(without_tensorflow_gan, tmp_path):
    _write_package(
        tmp_path,
        {
            "tensorflow_gan/__init__.py": SELF_SUFFICIENT_RELEASE,
            "tensorflow_gan/python/__init__.py": "",
            "tensorflow_gan/python/estimator/__init__.py": "GANEstimator = 'its own'",
        },
    )
    without_tensorflow_gan.syspath_prepend(str(tmp_path))
    module = tfgan._import_tensorflow_gan()
    assert module.estimator.GANEstimator == "its own"
    assert module.SAW_STAND_IN == hasattr(tf, "estimator")
    assert sys.modules["tensorflow_gan.python.estimator"] is module.estimator


def test_release_that_stays_broken_reports_why_and_cleans_up(without_tensorflow_gan, tmp_path):
    _write_package(
        tmp_path,
        {
            "tensorflow_gan/__init__.py": "from tensorflow_gan import python",
            "tensorflow_gan/python/__init__.py": "import tensorflow as tf\ntf.no_such_symbol",
        },
    )
    without_tensorflow_gan.syspath_prepend(str(tmp_path))
    had_estimator = hasattr(tf, "estimator")
    with pytest.raises(ImportError, match=r"cannot be imported on TensorFlow .*no_such_symbol"):
        tfgan._import_tensorflow_gan()
    assert hasattr(tf, "estimator") == had_estimator
    assert not any(_is_tensorflow_gan(name) for name in sys.modules)


@pytest.mark.parametrize("shape", [(37,), (37, 1)])
def test_hinge_losses_equal_numpy(shape):
    real, fake = _logits(shape)
    discriminator, generator = _reference(real, fake)
    for loss, expected in [
        (losses.hinge_discriminator(tf.constant(real), tf.constant(fake)), discriminator),
        (losses.hinge_generator(tf.constant(fake)), generator),
    ]:
        assert loss.dtype == tf.float32 and loss.shape == []
        np.testing.assert_allclose(loss, expected, rtol=1e-6)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_hinge_losses_in_a_device_loop(jit_compile):
    real, fake = _logits()

    @tf.function(jit_compile=jit_compile)
    def total(real, fake, num_steps):
        result = tf.zeros([2])
        for _ in tf.range(num_steps):
            result += [losses.hinge_discriminator(real, fake), losses.hinge_generator(fake)]
        return result

    result = total(tf.constant(real), tf.constant(fake), tf.constant(3))
    np.testing.assert_allclose(result, 3 * np.array(_reference(real, fake)), rtol=1e-6)


def test_hinge_gradients_equal_numpy():
    real, fake = map(tf.constant, _logits())
    with tf.GradientTape(persistent=True) as tape:
        tape.watch([real, fake])
        discriminator = losses.hinge_discriminator(real, fake)
        generator = losses.hinge_generator(fake)
    size = len(real)
    d_real, d_fake = tape.gradient(discriminator, [real, fake])
    np.testing.assert_allclose(d_real, np.where(real.numpy() < 1, -1 / size, 0), rtol=1e-6)
    np.testing.assert_allclose(d_fake, np.where(fake.numpy() > -1, 1 / size, 0), rtol=1e-6)
    np.testing.assert_allclose(tape.gradient(generator, fake), np.full(size, -1 / size), rtol=1e-6)


def test_hinge_losses_of_bfloat16_logits_are_float32():
    real, fake = (tf.cast(logits, tf.bfloat16) for logits in _logits())
    discriminator = losses.hinge_discriminator(real, fake)
    generator = losses.hinge_generator(fake)
    assert discriminator.dtype == generator.dtype == tf.float32
    # Only the inputs are rounded: the mean is taken in float32.
    expected = _reference(real.numpy().astype(np.float32), fake.numpy().astype(np.float32))
    np.testing.assert_allclose([discriminator, generator], expected, rtol=1e-6)


def test_hinge_discriminator_refuses_different_shapes():
    with pytest.raises(ValueError, match="incompatible"):
        losses.hinge_discriminator(tf.zeros([4]), tf.zeros([4, 1]))


def test_oracles_run_inside_tf_function():
    rng = np.random.default_rng(0)
    x, y = (tf.constant(rng.normal(size=(24, 5)) + shift) for shift in (0.0, 0.5))

    @tf.function
    def scores(x, y):
        return (
            tfgan.frechet_classifier_distance_from_activations(x, y),
            tfgan.kernel_classifier_distance_from_activations(x, y),
            tfgan.kernel_classifier_distance_and_std_from_activations(x, y, max_block_size=8),
            tfgan.classifier_score_from_logits(x),
        )

    graph, eager = scores(x, y), scores.python_function(x, y)
    for one, other in zip(tf.nest.flatten(graph), tf.nest.flatten(eager), strict=True):
        assert np.isfinite(one)
        np.testing.assert_allclose(one, other, rtol=1e-9)
