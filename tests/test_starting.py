"""A run that begins with another run's weights, and layers that stay as they are."""

import functools

import helpers
import made
import numpy as np
import pytest

from hamgan import starting
from hamgan.cli import train
from hamgan.run import checkpoints, class_names

CLASSES = ["cat", "dog", "eel"]


def make_trainer(num_classes=3, **kwargs):
    sizes = dict(num_classes=num_classes)
    return made.small_trainer(
        generator=functools.partial(made.small_generator, **sizes),
        discriminator=functools.partial(made.small_discriminator, **sizes),
        **kwargs,
    )


def copy_untrained(trainer):
    """Of what isn't trained the average is a copy, as each step leaves it."""
    pairs = trainer.ema.non_trainable_variables, trainer.generator.non_trainable_variables
    for ours, original in zip(*pairs, strict=True):
        ours.assign(original)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """(a run's folder, the values of its variables)."""
    folder = str(tmp_path_factory.mktemp("source"))
    trainer = make_trainer(ema_decay=0.9)
    for seed, network in enumerate((trainer.generator, trainer.discriminator, trainer.ema)):
        helpers.randomize(network, seed)
    copy_untrained(trainer)
    class_names.write(folder, CLASSES)
    checkpoints.Checkpoints(f"{folder}/checkpoints", trainer.variables()).save()
    return folder, made.values(trainer)


def test_rows_of_classes_go_by_name_and_the_rest_as_it_is(source):
    folder, before = source
    names = ["eel", "fox", "cat", "owl"]
    trainer = make_trainer(4, ema_decay=0.9, seed=8)
    taken = starting.take(trainer, folder, names)
    assert taken.classes == ["eel", "cat"] and taken.new_classes == ["fox", "owl"]
    assert taken.checkpoint == f"{folder}/checkpoints/ckpt-0"
    assert "rows of 2 classes by name; new: fox, owl" in taken.words()
    after = made.values(trainer)
    by_class = 0
    for name, value in before.items():
        if name.split("/")[0] not in ("generator", "discriminator", "generator_ema"):
            continue
        if value.shape == after[name].shape:
            np.testing.assert_array_equal(after[name], value, err_msg=name)
            continue
        by_class += 1
        mean = value.mean(axis=0)
        np.testing.assert_allclose(
            after[name], np.stack([value[2], mean, value[0], mean]), rtol=1e-6, err_msg=name
        )
    # Two norms of three blocks and the ham's, gamma and beta, twice with the average; embedding.
    assert by_class == 2 * 2 * (2 * 3 + 1) + 1


def test_same_number_of_classes_in_another_order(source):
    folder, before = source
    trainer = make_trainer()
    starting.take(trainer, f"{folder}/checkpoints/ckpt-0", ["dog", "eel", "cat"])
    name = "discriminator/embedding/kernel"
    np.testing.assert_array_equal(made.values(trainer)[name], before[name][[1, 2, 0]])


def test_networks_of_other_sizes_are_refused_before_anything_is_taken(source):
    folder, _ = source
    trainer = made.small_trainer(generator=functools.partial(made.small_generator, width=2))
    before = made.values(trainer)
    with pytest.raises(ValueError, match=r"(?s)holds other networks.*generator/dense/kernel is"):
        starting.take(trainer, folder, CLASSES)
    for name, value in made.values(trainer).items():
        np.testing.assert_array_equal(value, before[name])
    with pytest.raises(ValueError, match="No checkpoint"):
        starting.take(trainer, f"{folder}/nothing", CLASSES)


def test_frozen_layers_stay_and_others_learn():
    trainer = make_trainer(freeze=("generator/block_1", "discriminator/embedding"), ema_decay=0.5)
    made.open_gates(trainer)
    before = made.values(trainer)
    trainer.train_steps(trainer.batches(made.MadeDataset()), 2)
    after = made.values(trainer)
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    kernels = {name for name in before if name.endswith("kernel") and "optimizer" not in name}
    frozen = {n for n in kernels if n.split("/", 1)[1].startswith(("block_1/", "embedding/"))}
    frozen = {n for n in frozen if not n.startswith("discriminator/block_1")}
    assert len(frozen) == 3 + 3 + 1 and not frozen & changed
    assert kernels - frozen <= changed
    assert "generator/block_1/norm_1/moving_mean" in changed
    assert not any("generator_optimizer" in name and "block_1" in name for name in before)


def test_the_average_of_frozen_layers_starts_at_their_weights_and_stays(source):
    folder, before = source
    trainer = make_trainer(ema_decay=0.9, freeze=("generator/block_1",), seed=8)
    starting.take(trainer, folder, CLASSES)

    def averages():
        found = {n: v for n, v in made.values(trainer).items() if n.startswith("generator_ema/")}
        return {n.removeprefix("generator_ema/"): v for n, v in found.items()}

    taken = averages()
    frozen = [name for name in taken if name.startswith("block_1/") and name.endswith("kernel")]
    assert len(frozen) == 3
    trainer.train_steps(trainer.batches(made.MadeDataset()), 1)
    for name in frozen:
        weight, average = (before[f"{kind}/{name}"] for kind in ("generator", "generator_ema"))
        assert not np.array_equal(weight, average)
        np.testing.assert_array_equal(taken[name], weight, err_msg=name)
        np.testing.assert_array_equal(averages()[name], weight, err_msg=name)
    others = "dense/kernel"
    np.testing.assert_array_equal(taken[others], before[f"generator_ema/{others}"])


def test_weights_that_do_not_fit_leave_no_configuration(source, tmp_path):
    folder, _ = source
    parts = dict(dataset=made.MadeDataset(), init_from=folder, writes=True)
    wide = made.small_trainer(generator=functools.partial(made.small_generator, width=2))
    with pytest.raises(ValueError, match="holds other networks"):
        train.begin(str(tmp_path), trainer=wide, **parts)
    assert not list(tmp_path.iterdir())
    train.begin(str(tmp_path), trainer=make_trainer(), **parts)
    assert {path.name for path in tmp_path.iterdir()} == {"config.gin", "metrics.jsonl"}


def test_freezing_what_is_not_there_is_refused():
    with pytest.raises(
        ValueError, match="no layer is named 'generator/blok_1'; there are: .*dense"
    ):
        make_trainer(freeze=("generator/blok_1",))
