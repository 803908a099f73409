import made
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from hamgan import preview


@pytest.fixture(scope="module")
def trainer():
    return made.small_trainer()


def test_table_names_every_variable_and_adds_up(trainer):
    table = preview.parameter_table(trainer)
    for network in (trainer.generator, trainer.discriminator):
        assert all(variable.path in table for variable in network.variables)
        assert f" {sum(int(np.prod(v.shape)) for v in network.trainable_variables):,}\n" in table
    # 4 * 4 * 16 channels from a latent of 8.
    assert [line.split() for line in table.splitlines() if "dense/kernel" in line][0] == [
        "dense/kernel",
        "8x256",
        "2,048",
    ]


def test_memory_is_that_of_the_variables_and_grows_with_the_batch(trainer):
    before = made.values(trainer)
    estimate = preview.memory_estimate(trainer)
    assert estimate["variables"] == pytest.approx(
        sum(value.nbytes for value in before.values()) / 2**30
    )
    networks = [
        network.trainable_variables for network in (trainer.generator, trainer.discriminator)
    ]
    gradients = max(sum(v.numpy().nbytes for v in variables) for variables in networks)
    assert estimate["gradients"] == pytest.approx(gradients / 2**30)
    # At least the outputs of the discriminator's first two blocks, for real and generated images.
    assert estimate["activations (estimate)"] > 16 * 4 * (16 * 16 + 8 * 8 * 2) / 2**30
    trainer.microbatches = 4
    smaller = preview.memory_estimate(trainer)
    trainer.microbatches = 1
    assert smaller["activations (estimate)"] < 0.4 * estimate["activations (estimate)"]
    assert smaller["gradients"] == pytest.approx(2 * estimate["gradients"])
    trainer.batch_size *= 2
    larger = preview.memory_estimate(trainer)
    assert larger["activations (estimate)"] > 1.5 * estimate["activations (estimate)"]
    assert larger["variables"] == estimate["variables"]
    # Looking changes nothing.
    for name, value in made.values(trainer).items():
        np.testing.assert_array_equal(value, before[name], err_msg=name)


def test_first_batch_has_a_row_for_each_class(tmp_path):
    labels = np.repeat([0, 2], [3, 12])
    images = np.broadcast_to(
        np.linspace(-1, 1, 15, dtype=np.float32)[:, None, None, None], [15, 8, 8, 3]
    )
    path = tmp_path / "batch.png"
    preview.draw_batch(
        str(path), {"image": tf.constant(images), "label": labels}, ["cat", "dog", "ship"]
    )
    one_row = tmp_path / "one.png"
    preview.draw_batch(
        str(one_row), {"image": images[:3], "label": labels[:3]}, ["cat", "dog", "ship"]
    )
    assert Image.open(path).height > 1.7 * Image.open(one_row).height
