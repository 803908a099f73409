"""Inversion and the ham viewer."""

import functools

import gin
import helpers
import keras
import made
import numpy as np
import pytest
import served
import tensorflow as tf
from PIL import Image

from hamgan import context, decomposition, sampling, stateless
from hamgan.cli import explore, sampled
from hamgan.exploring import ham_view, inversion

KEYS = np.array([[5, 6]], np.int32)


@functools.cache
def networks():
    keras.utils.set_random_seed(0)
    return (
        helpers.randomize(made.small_generator()),
        helpers.randomize(made.small_discriminator(), seed=1),
    )


def targets(count=2):
    """Images that the generator can make, their labels and keys."""
    generator, _ = networks()
    keys = np.repeat(KEYS, count, axis=0)
    z, labels = helpers.array(count, 8, seed=3), np.arange(count) % 3
    return generator(z, labels, training=False, keys=keys).numpy(), labels, keys


@functools.cache
def found(with_features=True):
    generator, discriminator = networks()
    images, labels, keys = targets()
    return inversion.invert(
        generator,
        images,
        keys=keys,
        labels=labels,
        discriminator=discriminator if with_features else None,
        starts=3,
        steps=60,
        stages=4,
        progress=False,
    )


def test_images_are_found_again():
    generator, discriminator = networks()
    images, _, keys = targets()
    result = found()
    assert result.strip.shape == (2, 4, 32, 32, 3) and result.steps.tolist() == [0, 20, 40, 60]
    errors = np.sqrt(((result.strip - images[:, None]) ** 2).mean(axis=(2, 3, 4)))
    assert (errors[:, -1] < 0.6 * errors[:, 0]).all()
    # What is stated is what noise and shares give.
    made_again = generator(result.z, result.shares, training=False, keys=keys).numpy()
    np.testing.assert_allclose(made_again, result.images, atol=1e-4)
    np.testing.assert_allclose(result.pixel_error, errors[:, -1], rtol=1e-3)
    _, of_target = discriminator(images, np.zeros(2, int), keys=keys, return_context=True)
    _, of_found = discriminator(result.images, np.zeros(2, int), keys=keys, return_context=True)
    f, g = (seen.before.numpy().reshape(2, -1) for seen in (of_target, of_found))
    expected = np.linalg.norm(f - g, axis=1) / np.linalg.norm(f, axis=1)
    np.testing.assert_allclose(result.feature_error, expected, rtol=1e-3)


def test_the_best_of_the_starts_counts():
    result = found()
    assert result.losses.shape == (2, 3)
    loss = result.pixel_error**2 + result.feature_error**2
    np.testing.assert_allclose(loss, result.losses.min(axis=1), rtol=1e-3)
    assert (result.losses.max(axis=1) > result.losses.min(axis=1)).all()


@pytest.mark.slow
def test_without_a_discriminator_pixels_count_alone():
    result = found(with_features=False)
    assert np.isnan(result.feature_error).all()
    np.testing.assert_allclose(result.pixel_error**2, result.losses.min(axis=1), rtol=1e-3)


def test_lookahead_goes_half_of_the_way_and_begins_there():
    generator, _ = networks()
    images, labels, keys = targets(1)
    search = inversion._Search(
        generator,
        images,
        keys=keys,
        labels=labels,
        discriminator=None,
        feature_weight=0.0,
        learning_rate=0.1,
        seed=0,
    )
    (z, _), (fast, _) = search._slow, search._fast
    start = z.numpy()
    fast.assign(start + 4.0)
    search.synchronise()
    np.testing.assert_allclose(fast.numpy(), start + 2.0, rtol=1e-6)
    fast.assign(fast + 4.0)
    search.synchronise()
    np.testing.assert_allclose(z.numpy(), start + 4.0, rtol=1e-6)


@pytest.mark.parametrize(
    "changed, message",
    [
        (dict(images=np.zeros([1, 16, 16, 3], np.float32)), r"images must be \[N, 32, 32, 3\]"),
        (dict(starts=0), "starts must be at least 1, got 0"),
        (dict(steps=0), "steps must be at least 1, got 0"),
    ],
)
def test_wrong_inversions_are_refused(changed, message):
    images, _, keys = targets(1)
    with pytest.raises(ValueError, match=message):
        inversion.invert(networks()[0], **{"images": images, "keys": keys, **changed})


# The ham viewer


@functools.cache
def viewed(network="generator"):
    generator, discriminator = networks()
    if network == "generator":
        return ham_view.view(generator, helpers.array(1, 8), 1, keys=KEYS, seeds=2)
    return ham_view.view(discriminator, targets(1)[0], 1, keys=KEYS, seeds=2)


def test_a_base_is_switched_off_by_its_part_of_the_product():
    layer = helpers.build(context.Hamburger(rank=3, dim=6, sections=2), None, 8, 8, 4)
    x = helpers.array(1, 8, 8, 4)
    whole, hams = layer(x, keys=KEYS, return_hams=True)
    _, bases, coef = (part.numpy() for part in hams["space"])
    kernel = layer.upper_bread.normalized_kernel(False).numpy().reshape(2, 6, 4)
    with layer.without(1, 2):
        without = layer(x, keys=KEYS)
    part = np.outer(coef[1, :, 2], bases[1, :, 2]) @ kernel[1]
    expected = 0.7 * part.reshape(1, 8, 8, 4)  # the gate
    np.testing.assert_allclose(whole - without, expected, atol=1e-5)
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_array_equal(layer(x, keys=KEYS), whole)


def test_a_view_is_of_the_network_as_it_is():
    generator, _ = networks()
    result = viewed()
    z = helpers.array(1, 8)
    expected = generator(z, np.array([1]), training=False, keys=KEYS).numpy()[0]
    np.testing.assert_allclose(result.output, expected, atol=1e-6)
    np.testing.assert_allclose(result.by_steps[generator.context.num_steps], expected, atol=1e-6)
    assert generator.context.eval_steps is None
    assert result.codes.shape == (1, 32, 32, 2) and result.without.shape == (2, 32, 32, 3)
    assert (result.effects() > 0).all()
    assert np.abs(result.by_steps[0] - expected).max() > 0
    assert len({float(of.sum()) for of in result.by_seed.values()}) == 2
    with_others = generator(z, np.array([1]), training=False, keys=KEYS + [[0, 2]]).numpy()[0]
    np.testing.assert_allclose(result.by_seed[2], with_others, atol=1e-6)


@pytest.mark.parametrize("network", ["generator", "discriminator"])
def test_views_are_drawn(network, tmp_path):
    result = viewed(network)
    path = str(tmp_path / "view.png")
    ham_view.draw(result, path, pixels=[(0, 1), (3, 3)], title="words")
    assert min(Image.open(path).size) > 400
    numbers = ham_view.numbers(result, [(3, 3)])
    assert len(numbers["effects"]) == 2 and len(numbers["by_steps"]) == 8
    largest = max(abs(result.codes).max(), 1e-12)
    np.testing.assert_allclose(
        numbers["codes"][0]["codes"], result.codes[0, 3, 3] / largest, rtol=1e-6
    )
    with pytest.raises(ValueError, match="Pixels are .row, column. within the map"):
        ham_view.draw(result, path, pixels=[(99, 0)])


def test_networks_without_factors_are_refused():
    plain = made.small_generator(context=None)
    with pytest.raises(ValueError, match="has no Hamburger"):
        ham_view.view(plain, helpers.array(1, 8), 0, keys=KEYS)

    def product_alone(x, bases, *, num_steps, solve):
        return decomposition.nmf(x, bases, num_steps=num_steps, solve=solve).product()

    product_alone.draw_bases = stateless.uniform
    other = made.small_generator(
        context=functools.partial(context.Hamburger, rank=2, decomposition=product_alone)
    )
    with pytest.raises(ValueError, match="gives no factors"):
        ham_view.view(other, tf.constant(helpers.array(1, 8)), 0, keys=KEYS)


# The command


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(folder of a run, its experiment); its standing statistics are quick."""
    folder = str(tmp_path_factory.mktemp("around") / "run")
    experiment = served.make_run(folder)
    # Only now: gin keeps what it finds under a name for all later tests.
    quick = functools.partial(sampling.StandingStatistics, batches=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, "StandingStatistics", quick)
        yield folder, experiment
    gin.clear_config()


def sample_of(run, path, **flags):
    """Pixels that the sample command writes of class dog and seed 5."""
    folder, experiment = run
    request = sampled.Request(
        model_dir=folder, output=str(path), classes=["dog"], seeds=["5"], **flags
    )
    sampled.run(request, experiment)
    with np.load(path) as file:
        return file["images"][0].astype(int)


@pytest.mark.parametrize("flags", [{}, dict(weights="raw")])
def test_the_image_looked_at_is_that_of_the_sample_command(run, tmp_path, flags):
    expected = sample_of(run, tmp_path / "sample.npz", **flags)
    folder, experiment = run
    drawing, discriminator = explore.load(sampled.Request(model_dir=folder, **flags), experiment)
    network = "discriminator" if flags else "generator"
    found = explore.look(drawing, discriminator, 1, network=network, seed=5)
    assert np.abs(np.rint((found.image + 1) * 127.5) - expected).max() <= 1
    if not flags:  # the moments make a difference
        z, _, keys = drawing.sampler(None, 1.0).inputs(np.array([5], np.int32))
        without = drawing.generator(z, np.array([1]), training=False, keys=keys)
        assert np.abs(without - found.image).max() > 0.1


def test_an_inversion_is_of_the_generator_of_the_sample_command(run):
    folder, experiment = run
    drawing, discriminator = explore.load(sampled.Request(model_dir=folder), experiment)
    images = np.zeros([1, 32, 32, 3], np.float32)
    settings = dict(feature_weight=0.0, starts=1, steps=1, learning_rate=0.05, progress=False)
    result = explore.find(drawing, discriminator, images, np.array([1]), seed=5, **settings)
    sampler = drawing.sampler(None, 1.0)
    _, _, keys = sampler.inputs(np.array([5], np.int32))
    with drawing.applied(sampler):
        (expected,) = sampler.of_inputs(result.z, result.shares, keys)
    np.testing.assert_allclose(result.images, expected, atol=1e-4)
    without = drawing.generator(result.z, result.shares, training=False, keys=keys)
    assert np.abs(without - expected).max() > 0.1


def test_a_class_is_one():
    names = ["cat", "dog"]
    assert explore.class_of("dog", names) == 1 and explore.class_of("all", ["cat"]) == 0
    with pytest.raises(ValueError, match="--class must be one class, got 'all', which are 2: name"):
        explore.class_of("all", names)


def test_pictures_to_be_found_again_are_read_as_they_are_shown(tmp_path):
    pixels = np.zeros([40, 32, 3], np.uint8)
    pixels[:, :16] = 255
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    path = str(tmp_path / "photo.png")
    Image.fromarray(pixels).save(path, exif=exif)
    image = explore.decode_file(path, 32)
    assert image.shape == (1, 32, 32, 3)
    assert (image[0, :, :16] == -1).all() and (image[0, :, 16:] == 1).all()
    (tmp_path / "text.png").write_text("no picture")
    for name in ("text.png", "nothing.png"):
        with pytest.raises(ValueError, match=f"{name} can't be read"):
            explore.decode_file(str(tmp_path / name), 32)


def test_the_picture_and_its_numbers_have_names_of_their_own():
    explore.check_output("a.png")
    for path in ("a.npz", "a.json", "folder/"):
        with pytest.raises(ValueError, match="--output must end in .png"):
            explore.check_output(path)
