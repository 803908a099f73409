"""What a trainer can be given: EMA, microbatches, augmentation, penalties, labels, schedules,
losses, precision.
"""

import functools

import helpers
import made
import numpy as np
import pytest
import tensorflow as tf

from hamgan import labels, losses
from hamgan.augmentation import DiffAugment
from hamgan.experiment import Experiment
from hamgan.normalization import BatchNorm
from hamgan.regularization import R1, Consistency
from hamgan.run import checkpoints, contents
from hamgan.schedules import LinearDecay

# Large learning rates, plain momentum-free steps: what differs in gradients shows in the weights.
PLAIN = dict(epsilon=1.0, generator_learning_rate=1.0, discriminator_learning_rate=1.0)


def train(trainer, num_steps, gates=True):
    if gates:
        made.open_gates(trainer)
    metrics = trainer.train_steps(trainer.batches(made.MadeDataset()), num_steps)
    assert metrics["first_bad_step"] == -1
    return metrics


def assert_same_weights(one, other, *, but=(), tolerance=2e-4):
    values, expected = made.values(one), made.values(other)
    assert values.keys() == expected.keys()
    for name, value in expected.items():
        if not name.endswith(tuple(but)) or not but:
            limit = tolerance * max(1, np.abs(value).max())
            np.testing.assert_allclose(values[name], value, rtol=2e-3, atol=limit, err_msg=name)


@pytest.fixture(scope="module")
def eagerly():
    """Op by op: a few steps of a small network take less time than its graph. The slow tests are of
    graphs.
    """
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


@pytest.fixture
def in_graph():
    before = tf.config.functions_run_eagerly()
    tf.config.run_functions_eagerly(False)
    yield
    tf.config.run_functions_eagerly(before)


# EMA


@pytest.fixture(scope="module")
def with_ema(eagerly):
    """A trainer with an average that starts at step 2, and what its generator was after each of
    four steps.
    """
    trainer = made.small_trainer(ema_decay=0.75, ema_start=2, generator_learning_rate=0.01)
    batches = trainer.batches(made.MadeDataset())
    history = [made.values(trainer)]
    for _ in range(4):
        trainer.train_steps(batches, 1)
        history.append(made.values(trainer))
    return trainer, history


def of_part(values, part):
    return {
        name.removeprefix(part + "/"): value
        for name, value in values.items()
        if name.startswith(part + "/")
    }


def test_ema_is_a_copy_until_it_starts(with_ema):
    _, history = with_ema
    for step in (0, 1, 2):
        average, raw = of_part(history[step], "generator_ema"), of_part(history[step], "generator")
        assert average.keys() == raw.keys()
        for name, value in raw.items():
            np.testing.assert_array_equal(average[name], value, err_msg=name)


def test_ema_then_averages_weights_and_copies_the_rest(with_ema):
    trainer, history = with_ema
    trained = {variable.path for variable in trainer.generator.trainable_variables}
    raw = [of_part(values, "generator") for values in history]
    average = of_part(history[4], "generator_ema")
    for name, value in average.items():
        expected = raw[4][name]
        if name in trained:
            expected = 0.25 * raw[4][name] + 0.75 * (0.25 * raw[3][name] + 0.75 * raw[2][name])
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-6, err_msg=name)
    moved = [name for name in trained if not np.allclose(average[name], raw[4][name], atol=1e-6)]
    assert len(moved) > len(trained) / 2


def test_ema_is_in_checkpoints(with_ema, tmp_path):
    trainer, history = with_ema
    path = checkpoints.Checkpoints(str(tmp_path), trainer.variables()).save()
    fresh = made.small_generator()
    contents.restore(path, contents.network_variables("generator_ema", fresh), partial=True)
    for variable in fresh.variables:
        np.testing.assert_array_equal(
            variable.numpy(), history[4][f"generator_ema/{variable.path}"]
        )


def test_without_ema_there_is_no_second_generator():
    trainer = made.small_trainer()
    assert trainer.ema is None
    assert not [name for name in trainer.variables() if "ema" in name]


@pytest.mark.slow
def test_ema_on_two_replicas_equals_one_device(in_graph):
    trainers = [
        made.small_trainer(s, ema_decay=0.5, **PLAIN)
        for s in (made.one_device(), helpers.two_replicas())
    ]
    for trainer in trainers:
        train(trainer, 2)
    assert_same_weights(trainers[1], trainers[0], tolerance=2e-3)


@pytest.mark.parametrize(
    "kwargs, message",
    [
        (dict(ema_decay=1.0), r"ema_decay must be in \[0, 1\), or None for no average; got 1.0"),
        (dict(ema_decay=0.9, ema_start=-1), "ema_start must not be negative, got -1"),
        (
            dict(microbatches=3),
            (
                r"microbatches \(3\) must divide the batch of a replica "
                r"\(8: batch_size 8, 1 replicas\)"
            ),
        ),
        (dict(microbatches=0), r"microbatches \(0\) must divide"),
        (dict(regularizers=(R1(), R1(weight=1.0))), r"names that differ, got \['r1', 'r1'\]"),
        (
            dict(fake_labels=labels.Weighted(weights=(1, 2))),
            "as many weights .* as there are classes, 3; got 2",
        ),
    ],
)
def test_settings_that_make_no_sense_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        made.small_trainer(**kwargs)


# Microbatches and replicas


class FixedNorm(BatchNorm):
    """Batch norm that is the same for every batch: the moving averages, which stay as they are."""

    def call(self, x, labels=None, training=False):
        return super().call(x, labels, training=False)


def with_norm(norm):
    # The Hamburger's norm too.
    hamburger = functools.partial(made.context.Hamburger, rank=2, norm=norm)
    return functools.partial(made.small_generator, norm=norm, context=hamburger)


def test_microbatches_equal_the_large_batch(eagerly):
    parts = dict(augment=DiffAugment(), regularizers=(Consistency(),), **PLAIN)
    whole, cut = (
        made.small_trainer(generator=with_norm(FixedNorm), microbatches=m, **parts) for m in (1, 4)
    )
    metrics = [train(trainer, 1) for trainer in (whole, cut)]
    for name, value in metrics[0].items():
        assert metrics[1][name] == pytest.approx(value, rel=2e-3, abs=1e-4), name
    assert_same_weights(cut, whole)


def graph_of(trainer):
    """All operations that a host call is made of, as many as there are."""
    steps = trainer._train_steps.get_concrete_function(
        trainer.batches(made.MadeDataset()), tf.constant(1, tf.int64)
    )
    graph = steps.graph.as_graph_def()
    return len(graph.node) + sum(len(function.node_def) for function in graph.library.function)


@pytest.mark.slow
def test_graph_does_not_grow_with_microbatches(in_graph):
    few, many = (made.small_trainer(microbatches=count, **PLAIN) for count in (2, 4))
    # Rounds that are written out would add half of it.
    assert graph_of(many) == pytest.approx(graph_of(few), rel=0.01)


@pytest.mark.slow
def test_microbatches_in_a_graph_equal_the_large_batch(in_graph):
    """Rounds of a loop on one replica; one after the other on two, which meet outside of loops."""
    whole = made.small_trainer(generator=with_norm(FixedNorm), **PLAIN)
    looped = made.small_trainer(generator=with_norm(FixedNorm), microbatches=4, **PLAIN)
    shared = made.small_trainer(
        helpers.two_replicas(), generator=with_norm(FixedNorm), microbatches=2, **PLAIN
    )
    expected = train(whole, 2)
    for trainer in (looped, shared):
        for name, value in train(trainer, 2).items():
            assert value == pytest.approx(expected[name], rel=5e-3, abs=1e-3), name
        assert_same_weights(trainer, whole)


@pytest.mark.slow
def test_microbatches_have_the_moments_of_replicas_of_their_own(in_graph):
    # Batch norm of each half in both, so that all but the moving averages agree.
    own = functools.partial(BatchNorm, cross_replica=False)
    halves = made.small_trainer(generator=with_norm(BatchNorm), microbatches=2, **PLAIN)
    apart = made.small_trainer(helpers.two_replicas(), generator=with_norm(own), **PLAIN)
    joint = made.small_trainer(helpers.two_replicas(), generator=with_norm(BatchNorm), **PLAIN)
    losses_of = [train(trainer, 1)["loss/discriminator"] for trainer in (halves, apart, joint)]
    assert losses_of[0] == pytest.approx(losses_of[1], rel=1e-4)
    assert losses_of[2] != pytest.approx(losses_of[1], rel=1e-4)
    assert_same_weights(apart, halves, but=("moving_mean", "moving_variance"))


# Parts


class Constant:
    """Grey images instead of any others: what the discriminator sees then is known."""

    def __call__(self, images, keys):
        assert images.shape[0] == keys.shape[0]
        return images * 0 + 0.25


@pytest.mark.slow
def test_everything_the_discriminator_sees_is_augmented(eagerly):
    # All images are one, so real and generated logits differ by the labels alone, which a single
    # class takes away.
    class OneClass(made.MadeDataset):
        def __init__(self):
            super().__init__()
            self.labels[:] = 1

    trainer = made.small_trainer(
        augment=Constant(),
        fake_labels=labels.of_data,
        discriminator=functools.partial(made.small_discriminator, context=None),
    )
    before = made.values(trainer)
    metrics = trainer.train_steps(trainer.batches(OneClass()), 1)
    assert metrics["logits/real"] == pytest.approx(metrics["logits/fake"], rel=1e-5)
    # No image reaches the discriminator, so no gradient reaches the generator.
    assert metrics["gradient_norm/generator"] == 0
    np.testing.assert_array_equal(
        made.values(trainer)["generator/dense/kernel"], before["generator/dense/kernel"]
    )


@pytest.mark.slow
def test_lazy_penalty_is_applied_in_its_steps_as_often_as_strong(eagerly):
    def one_step(*regularizers):
        trainer = made.small_trainer(
            discriminator=discriminator, regularizers=regularizers, **PLAIN
        )
        return trainer, trainer.train_steps(trainer.batches(made.MadeDataset()), 1)

    discriminator = functools.partial(made.small_discriminator, context=None)
    lazy, first = one_step(R1(weight=0.5, interval=2))
    second = lazy.train_steps(lazy.batches(made.MadeDataset()), 1)
    assert first["regularizer/r1"] > 0 and second["regularizer/r1"] == 0
    # The first step is that of twice the weight in every step, and differs from one without.
    _, twice = one_step(R1(weight=1.0))
    for name in ("gradient_norm/discriminator", "regularizer/r1"):
        assert first[name] == pytest.approx(twice[name], rel=1e-4)
    _, without = one_step()
    assert first["gradient_norm/discriminator"] != pytest.approx(
        without["gradient_norm/discriminator"], rel=1e-4
    )


@pytest.mark.slow
def test_penalties_on_two_replicas_equal_one_device(in_graph):
    parts = dict(
        regularizers=(R1(weight=0.5, interval=2), Consistency(fake_weight=3.0)),
        augment=DiffAugment(),
    )
    trainers = [
        made.small_trainer(s, **parts, **PLAIN) for s in (made.one_device(), helpers.two_replicas())
    ]
    metrics = [train(trainer, 1) for trainer in trainers]
    for name, value in metrics[0].items():
        assert metrics[1][name] == pytest.approx(value, rel=1e-3, abs=1e-4), name
    # In the norm, and after an update of the discriminator at a learning rate of 1: where a
    # pre-activation near 0 falls on the other side of a ReLU, single entries of a penalty's
    # gradient move by percents. Shares that were summed wrongly would make a difference of the
    # gradient's own size.
    values = made.values(trainers[1])
    for name, value in made.values(trainers[0]).items():
        assert np.linalg.norm(values[name] - value) <= 1e-2 * max(1, np.linalg.norm(value)), name


@pytest.mark.slow
def test_all_parts_together_and_resumed_equal_one_run(in_graph, tmp_path):
    parts = dict(
        ema_decay=0.9,
        microbatches=2,
        discriminator_steps=2,
        augment=DiffAugment(),
        regularizers=(R1(interval=2), Consistency()),
        fake_labels=labels.Weighted(weights=(1, 2, 3)),
        generator_learning_rate=LinearDecay(initial=1e-3, end=4),
    )
    whole, second = made.small_trainer(**parts), made.small_trainer(**parts)
    made.open_gates(whole)
    batches = whole.batches(made.MadeDataset())
    assert whole.train_steps(batches, 2)["first_bad_step"] == -1
    checkpoints.Checkpoints(str(tmp_path), whole.variables()).save()
    assert whole.train_steps(batches, 2)["first_bad_step"] == -1
    checkpoints.Checkpoints(str(tmp_path), second.variables()).restore_latest()
    train(second, 2, gates=False)
    got = made.values(second)
    for name, value in made.values(whole).items():
        np.testing.assert_array_equal(got[name], value, err_msg=name)


@pytest.mark.slow
def test_learning_rate_follows_its_schedule(eagerly):
    schedule = LinearDecay(initial=0.5, end=2)
    trainer = made.small_trainer(
        epsilon=1.0, generator_learning_rate=schedule, discriminator_learning_rate=0.25
    )
    batches, name = trainer.batches(made.MadeDataset()), "generator/to_rgb/bias"
    for rate in (0.5, 0.25, 0.0):
        before = made.values(trainer)
        trainer.train_steps(batches, 1)
        after = made.values(trainer)
        m = after["generator_optimizer/adam/to_rgb_bias_momentum"]
        v = after["generator_optimizer/adam/to_rgb_bias_velocity"]
        t = after["generator_optimizer/adam/iteration"]
        step = rate * np.sqrt(1 - 0.999**t) * m / (np.sqrt(v) + 1.0)
        np.testing.assert_allclose(before[name] - after[name], step, rtol=1e-2, atol=1e-7)
        assert rate == 0 or np.any(np.abs(step) > 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["non_saturating", "least_squares", "wasserstein"])
def test_other_losses_train(in_graph, name):
    pair = {
        f"{network}_loss": getattr(losses, f"{name}_{network}")
        for network in ("generator", "discriminator")
    }
    trainer = made.small_trainer(**pair)
    before = made.values(trainer)
    train(trainer, 2, gates=False)
    after = made.values(trainer)
    for network in ("generator", "discriminator"):
        assert np.any(after[f"{network}/dense/kernel"] != before[f"{network}/dense/kernel"])


# Precision


def test_one_setting_makes_both_networks_compute_in_bfloat16():
    experiment = Experiment(
        generator=made.small_generator,
        discriminator=made.small_discriminator,
        precision="mixed_bfloat16",
    )
    for network in (experiment.generator(), experiment.discriminator()):
        assert {layer.compute_dtype for layer in network.blocks} == {"bfloat16"}
        assert network.context.compute_dtype == "bfloat16"
        assert {variable.dtype for variable in network.variables} == {"float32"}
    plain = Experiment(generator=made.small_generator)
    assert plain.generator is made.small_generator
    with pytest.raises(ValueError, match=r"precision must be None or one of .*, got 'float16'"):
        Experiment(precision="float16")


@pytest.mark.slow
def test_one_step_in_bfloat16_is_close_to_one_in_float32(eagerly):
    half, full = (
        made.small_trainer(
            generator=functools.partial(made.small_generator, dtype=dtype),
            discriminator=functools.partial(made.small_discriminator, dtype=dtype),
        )
        for dtype in ("mixed_bfloat16", "float32")
    )
    metrics = [train(trainer, 1) for trainer in (half, full)]
    for name, value in metrics[1].items():
        assert metrics[0][name] == pytest.approx(value, rel=0.1, abs=0.05), name
