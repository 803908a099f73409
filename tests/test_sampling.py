import functools

import helpers
import keras
import made
import numpy as np
import pytest
import scipy.stats
import tensorflow as tf

from hamgan import distribution, normalization, sampling, stateless
from hamgan.run import checkpoints, contents


def make_sampler(strategy, batch_size, seed=5, constructor=made.small_generator):
    keras.utils.set_random_seed(0)
    with strategy.scope():
        generator = constructor()
    if constructor is made.small_generator:
        generator.context.gate.assign(0.7)
    return sampling.Sampler(generator, strategy=strategy, batch_size=batch_size, seed=seed)


def test_samples_depend_on_neither_batch_size_nor_replicas():
    images, labels = make_sampler(made.one_device(), 7).sample(20)
    assert images.shape == (20, 32, 32, 3) and labels.shape == (20,)
    for strategy, batch_size in ((made.one_device(), 64), (helpers.two_replicas(), 6)):
        other_images, other_labels = make_sampler(strategy, batch_size).sample(20)
        np.testing.assert_array_equal(other_labels, labels)
        np.testing.assert_allclose(other_images, images, atol=1e-5)


def test_another_seed_gives_other_samples():
    images, labels = make_sampler(made.one_device(), 8).sample(8)
    other_images, other_labels = make_sampler(made.one_device(), 8, seed=6).sample(8)
    assert np.abs(other_images - images).max() > 1e-2
    assert (other_labels != labels).any()


def test_given_labels_are_used_in_order():
    sampler = make_sampler(made.one_device(), 4)
    wanted = np.array([2, 2, 0, 1, 1, 0])
    images, labels = sampler.sample(6, wanted)
    np.testing.assert_array_equal(labels, wanted)
    # Sample 5 has the noise of seed and index 5, whatever the batch it is in, and class 0.
    z, _, keys = sampling_inputs(sampler, [5])
    expected = sampler.generator(z, np.array([0]), training=False, keys=keys).numpy()[0]
    np.testing.assert_allclose(images[5], expected, atol=1e-5)


def sampling_inputs(sampler, indices):
    return stateless.generator_inputs(
        stateless.key(5, stateless.EVALUATION),
        np.array(indices),
        latent_dim=8,
        num_classes=made.NUM_CLASSES,
    )


def test_labels_are_uniform_over_the_classes():
    _, labels = make_sampler(made.one_device(), 100).sample(600)
    counts = np.bincount(labels, minlength=made.NUM_CLASSES)
    # Binomial(600, 1/3) has a standard deviation of 11.5: five of them.
    assert np.abs(counts - 200).max() < 58


@pytest.mark.parametrize("label", [-1, made.NUM_CLASSES])
def test_label_outside_the_classes_is_refused(label):
    with pytest.raises(
        ValueError, match=f"Label {label} is outside the classes of this generator, 0 to 2"
    ):
        make_sampler(made.one_device(), 4).sample(2, [0, label])


class Noise(tf.Module):
    """A generator whose images are its noise and labels."""

    latent_dim, num_classes = 50, 3

    def __call__(self, z, labels, training=False, keys=None):
        return tf.concat([z, tf.cast(labels, tf.float32)[:, None]], axis=1)


@pytest.mark.parametrize("bound", [0.5, 2.0])
def test_truncated_noise_is_the_normal_distribution_within_the_bound(bound):
    def draw(**kwargs):
        sampler = sampling.Sampler(
            Noise(), strategy=made.one_device(), truncation=bound, seed=5, **kwargs
        )
        return sampler.sample(200)[0][:, :-1]

    noise = draw(batch_size=200)
    assert np.abs(noise).max() <= bound < np.abs(noise).max() + 0.01
    # 10,000 numbers; a test at one in a million.
    assert scipy.stats.kstest(noise.ravel(), scipy.stats.truncnorm(-bound, bound).cdf).pvalue > 1e-6
    np.testing.assert_allclose(draw(batch_size=7), noise, atol=1e-6)


@pytest.mark.parametrize("truncation", [0, -1.0])
def test_truncation_to_nothing_is_refused(truncation):
    with pytest.raises(ValueError, match=f"truncation must be positive .* got {truncation}"):
        sampling.Sampler(Noise(), strategy=made.one_device(), truncation=truncation)


def test_labels_of_a_sampler_are_those_it_was_given():
    sampler = sampling.Sampler(
        Noise(),
        strategy=made.one_device(),
        batch_size=4,
        labels=lambda indices, keys: (indices + 1) % 3,
    )
    images, labels = sampler.sample(6)
    np.testing.assert_array_equal(labels, [1, 2, 0, 1, 2, 0])
    np.testing.assert_array_equal(images[:, -1], labels)


def draw(sampler, part, count=6):
    """Samples with batch norm's moments from `part`, and its words."""

    @tf.function
    def batch(first):
        images, _ = sampler.strategy.run(sampler.of_replica, args=(first,))
        return distribution.gather(sampler.strategy, images)

    batch_norm = part(sampler)
    with batch_norm.applied(5):
        images = [
            batch(tf.constant(first)).numpy() for first in range(0, count, sampler.batch_size)
        ]
    return np.concatenate(images)[:count], batch_norm


def inputs_of_first_norm(sampler, indices):
    """What the generator's first batch norm is given: the reshaped output of its first layer."""
    z, labels, _ = sampling_inputs(sampler, indices)
    return (
        sampler.generator.dense(z)
        .numpy()
        .reshape(-1, 16 * sampler.generator.width)
        .astype(np.float64)
    )


def test_standing_statistics_are_the_plain_mean_of_batch_moments():
    sampler = make_sampler(made.one_device(), 6)
    moving = {v.path: v.numpy() for v in sampler.generator.variables}
    part = functools.partial(sampling.StandingStatistics, batches=3, batch_size=4)
    images, batch_norm = draw(sampler, part)
    batches = [inputs_of_first_norm(sampler, range(-4 * n, -4 * n + 4)) for n in (1, 2, 3)]
    first = batch_norm._layers.index(sampler.generator.blocks[0].norm_1)
    mean, variance = (v.numpy() for v in batch_norm._moments[first])
    np.testing.assert_allclose(mean, np.mean([b.mean(axis=0) for b in batches], axis=0), atol=1e-5)
    np.testing.assert_allclose(
        variance, np.mean([b.var(axis=0) for b in batches], axis=0), atol=1e-5
    )
    for variable in sampler.generator.variables:
        np.testing.assert_array_equal(variable, moving[variable.path], err_msg=variable.path)
    # As if they were the moving averages.
    for layer, (mean, variance) in zip(batch_norm._layers, batch_norm._moments, strict=True):
        layer.moving_mean.assign(mean)
        layer.moving_variance.assign(variance)
    np.testing.assert_allclose(sampler.sample(6)[0], images, atol=1e-5)


@pytest.mark.parametrize(
    "part",
    [
        functools.partial(sampling.StandingStatistics, batches=2, batch_size=4),
        sampling.BatchStatistics,
    ],
)
def test_recomputed_moments_do_not_depend_on_the_replicas(part):
    one, _ = draw(make_sampler(made.one_device(), 6, constructor=made.Tiny), part)
    two, _ = draw(make_sampler(helpers.two_replicas(), 6, constructor=made.Tiny), part)
    np.testing.assert_allclose(two, one, atol=1e-5)


def test_batch_statistics_are_those_of_training():
    sampler = make_sampler(made.one_device(), 6, constructor=made.Tiny)
    images, batch_norm = draw(sampler, sampling.BatchStatistics)
    assert batch_norm.words == "the moments of each batch of 6"
    with_moving_averages, _ = sampler.sample(6)
    z, labels, keys = sampling_inputs(sampler, range(6))
    expected = sampler.generator(z, labels, training=True, keys=keys).numpy()
    np.testing.assert_allclose(images, expected, atol=1e-5)
    assert np.abs(with_moving_averages - expected).max() > 1e-2


def test_generator_without_batch_norm_has_no_moments_to_recompute():
    sampler = sampling.Sampler(
        keras.Sequential([keras.layers.Dense(3)]), strategy=made.one_device()
    )
    with pytest.raises(ValueError, match="no hamgan.normalization.BatchNorm"):
        sampling.BatchStatistics(sampler)


def test_no_standing_batches_are_refused():
    sampler = make_sampler(made.one_device(), 6)
    with pytest.raises(ValueError, match="batches must be at least 1, got 0"):
        sampling.StandingStatistics(sampler, batches=0)


def test_weights_are_restored_raw_or_averaged(tmp_path):
    def norm(value):
        layer = normalization.BatchNorm(name="norm")
        layer.build((None, 2, 2, 1))
        layer.beta.assign([[value]])
        return layer

    variables = contents.network_variables("generator", norm(1.0))
    variables["step"] = tf.Variable(1, dtype=tf.int64)
    raw_only = checkpoints.Checkpoints(str(tmp_path / "raw"), variables).save()
    both = {**variables, **contents.network_variables("generator_ema", norm(2.0))}
    path = checkpoints.Checkpoints(str(tmp_path / "both"), both).save()
    layer = norm(0.0)
    for weights, value in (("raw", 1), ("ema", 2)):
        sampling.restore(layer, path, weights=weights)
        assert float(layer.beta.numpy().item()) == value
    with pytest.raises(
        ValueError,
        match="holds no generator_ema/ variables: it was trained without a moving average",
    ):
        sampling.restore(layer, raw_only, weights="ema")
    with pytest.raises(ValueError, match="weights must be one of raw, ema, got 'best'"):
        sampling.restore(layer, path, weights="best")
