import helpers
import keras
import made
import numpy as np
import pytest

from hamgan import sampling, stateless


def make_sampler(strategy, batch_size, seed=5):
    keras.utils.set_random_seed(0)
    with strategy.scope():
        generator = made.small_generator()
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
        stateless.key(5, stateless.EVALUATION), np.array(indices), latent_dim=8, num_classes=made.NUM_CLASSES
    )


def test_labels_are_uniform_over_the_classes():
    _, labels = make_sampler(made.one_device(), 100).sample(600)
    counts = np.bincount(labels, minlength=made.NUM_CLASSES)
    # Binomial(600, 1/3) has a standard deviation of 11.5: five of them.
    assert np.abs(counts - 200).max() < 58


@pytest.mark.parametrize("label", [-1, made.NUM_CLASSES])
def test_label_outside_the_classes_is_refused(label):
    with pytest.raises(ValueError, match=f"Label {label} is outside the classes of this generator, 0 to 2"):
        make_sampler(made.one_device(), 4).sample(2, [0, label])
