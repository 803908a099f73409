import helpers
import made
import numpy as np
import pytest
import tensorflow as tf

from hamgan import stateless
from hamgan.run import checkpoints


def test_training_changes_every_trainable_weight():
    trainer = made.small_trainer()
    made.open_gates(trainer)
    before = made.values(trainer)
    trainer.train_steps(trainer.batches(made.MadeDataset()), 2)
    after = made.values(trainer)
    for network in ("generator", "discriminator"):
        for variable in getattr(trainer, network).trainable_variables:
            name = f"{network}/{variable.path}"
            assert not np.array_equal(before[name], after[name]), name


def test_step_counts_and_metrics_are_means_over_the_call():
    single, joint = made.small_trainer(), made.small_trainer()
    dataset = made.MadeDataset()
    batches = single.batches(dataset)
    singles = [single.train_steps(batches, 1) for _ in range(3)]
    together = joint.train_steps(joint.batches(dataset), 3)
    assert int(joint.step.numpy()) == 3
    for name in ("loss/discriminator", "loss/generator", "logits/real", "logits/fake"):
        np.testing.assert_allclose(
            together[name], np.mean([m[name] for m in singles]), rtol=1e-5, atol=1e-6
        )
    assert together["first_bad_step"] == -1


@pytest.mark.slow
def test_two_and_two_steps_through_a_checkpoint_equal_four(tmp_path):
    dataset = made.MadeDataset()
    whole = made.small_trainer()
    whole.train_steps(whole.batches(dataset), 4)

    first = made.small_trainer()
    first.train_steps(first.batches(dataset), 2)
    checkpoints.Checkpoints(str(tmp_path), first.variables()).save()
    second = made.small_trainer(seed=3)
    checkpoints.Checkpoints(str(tmp_path), second.variables()).restore_latest()
    second.train_steps(second.batches(dataset), 2)

    expected, got = made.values(whole), made.values(second)
    assert expected.keys() == got.keys()
    for name in expected:
        np.testing.assert_array_equal(got[name], expected[name], err_msg=name)


@pytest.mark.slow
def test_two_replicas_equal_one_device_on_the_joined_batch():
    dataset = made.MadeDataset()
    results = {}
    for name, strategy in (("one", made.one_device()), ("two", helpers.two_replicas())):
        # Large learning rates, plain momentum-free steps: what differs in gradients shows in the
        # weights.
        trainer = made.small_trainer(
            strategy, epsilon=1.0, generator_learning_rate=1.0, discriminator_learning_rate=1.0
        )
        made.open_gates(trainer)
        metrics = trainer.train_steps(trainer.batches(dataset), 1)
        results[name] = metrics, made.values(trainer)
    (metrics_1, values_1), (metrics_2, values_2) = results["one"], results["two"]
    for name, value in metrics_1.items():
        np.testing.assert_allclose(metrics_2[name], value, rtol=1e-4, atol=1e-5, err_msg=name)
    for name, value in values_1.items():
        # The optimizers' second moments are squared gradients, moving_* the batch-norm moments.
        np.testing.assert_allclose(
            values_2[name], value, rtol=2e-3, atol=2e-4 * max(1, np.abs(value).max()), err_msg=name
        )


def test_two_replicas_see_what_one_device_sees():
    dataset = made.MadeDataset()
    trainer = made.small_trainer(helpers.two_replicas())
    batch = next(trainer.batches(dataset))
    joined = np.concatenate(
        [part.numpy() for part in trainer.strategy.experimental_local_results(batch["image"])]
    )
    np.testing.assert_array_equal(joined, dataset.images[:8])


class Hosts:
    """A strategy's iterator over the batches of several hosts, that of one host after the other."""

    def __init__(self, count):
        self.count = count

    def distribute_datasets_from_function(self, function):
        for host in range(self.count):
            context = tf.distribute.InputContext(self.count, host, num_replicas_in_sync=4)
            yield from function(context).take(4 // self.count * 2)


@pytest.mark.parametrize("discriminator_steps", [1, 2])
def test_replicas_of_several_hosts_see_their_rows_of_the_global_batch(discriminator_steps):
    dataset = made.MadeDataset()
    trainer = made.small_trainer(discriminator_steps=discriminator_steps)
    trainer.step.assign(3)
    trainer._replicas, trainer._replica_batch_size = 4, 2
    seen = {}
    for count in (1, 2, 4):
        trainer.strategy = Hosts(count)
        images = np.stack([batch["image"].numpy() for batch in trainer.batches(dataset)])
        # Two global batches: [hosts, batches, replicas of a host] -> [batches, replicas].
        seen[count] = (
            images.reshape(count, 2, 4 // count, *images.shape[1:]).swapaxes(0, 1).reshape(2, 4, -1)
        )
        np.testing.assert_array_equal(seen[count], seen[1])
    start = 3 * discriminator_steps * 8
    rows = np.arange(start, start + 16) % len(dataset.images)
    np.testing.assert_array_equal(seen[1].reshape(16, -1), dataset.images[rows].reshape(16, -1))


def test_each_discriminator_step_has_real_images_of_its_own():
    dataset = made.MadeDataset()
    trainer = made.small_trainer(discriminator_steps=2)
    batches = trainer.batches(dataset)
    trainer.train_steps(batches, 1)
    np.testing.assert_array_equal(next(batches)["image"].numpy(), dataset.images[16:24])
    resumed = next(trainer.batches(dataset))["image"].numpy()
    np.testing.assert_array_equal(resumed, dataset.images[16:24])


def test_first_bad_step_is_named():
    trainer = made.small_trainer()
    batches = trainer.batches(made.MadeDataset())
    trainer.train_steps(batches, 2)
    trainer.discriminator.dense.bias.assign([np.nan])
    assert trainer.train_steps(batches, 3)["first_bad_step"] == 3


def test_adam_is_the_published_one():
    trainer = made.small_trainer()
    assert float(trainer.generator_optimizer.learning_rate) == pytest.approx(1e-4)
    assert float(trainer.discriminator_optimizer.learning_rate) == pytest.approx(4e-4)
    for optimizer in (trainer.generator_optimizer, trainer.discriminator_optimizer):
        assert (optimizer.beta_1, optimizer.beta_2, optimizer.epsilon) == (0.0, 0.999, 1e-8)


def by_hand(trainer, dataset):
    """One training step written out: {name: expected weight}, from hinge losses and Adam's first
    step in NumPy.
    """
    generator, discriminator = trainer.generator, trainer.discriminator
    size = trainer.batch_size

    def fakes(update):
        z, labels, keys = stateless.generator_inputs(
            stateless.key(trainer.seed, stateless.TRAINING, 0, update),
            tf.range(size),
            latent_dim=8,
            num_classes=3,
        )
        return generator(z, labels, training=True, keys=keys), labels

    def bases(update, first, count):
        key = stateless.key(
            trainer.seed, stateless.TRAINING, 0, update, stateless.DISCRIMINATOR_BASES
        )
        return stateless.example_keys(key, first + tf.range(count))

    def adam(network, gradients, rate):
        # t = 1, beta_1 = 0: m = g, v = 0.001 g^2, step = rate sqrt(0.001) g / (sqrt(v) + epsilon).
        expected = {}
        for variable, g in zip(network.trainable_variables, gradients, strict=True):
            g = tf.convert_to_tensor(g).numpy().astype(np.float64)
            expected[variable.path] = variable.numpy() - rate * np.sqrt(1e-3) * g / (
                np.sqrt(1e-3) * np.abs(g) + 1.0
            )
        return expected

    images, labels = fakes(0)
    with tf.GradientTape() as tape:
        logits = discriminator(
            tf.concat([dataset.images[:size], images], 0),
            tf.concat([dataset.labels[:size], labels], 0),
            training=True,
            keys=bases(0, 0, 2 * size),
        )
        loss = tf.reduce_mean(tf.maximum(0.0, 1 - logits[:size])) + tf.reduce_mean(
            tf.maximum(0.0, 1 + logits[size:])
        )
    gradients = tape.gradient(loss, discriminator.trainable_variables)
    expected = {f"discriminator/{k}": v for k, v in adam(discriminator, gradients, 0.5).items()}
    for variable in discriminator.trainable_variables:
        variable.assign(expected[f"discriminator/{variable.path}"])
    with tf.GradientTape() as tape:
        images, labels = fakes(1)
        loss_generator = -tf.reduce_mean(
            discriminator(images, labels, training=True, keys=bases(1, size, size))
        )
    gradients = tape.gradient(loss_generator, generator.trainable_variables)
    expected.update({f"generator/{k}": v for k, v in adam(generator, gradients, 0.25).items()})
    return expected, float(loss), float(loss_generator)


def test_one_step_is_the_one_written_out_by_hand():
    settings = dict(epsilon=1.0, generator_learning_rate=0.25, discriminator_learning_rate=0.5)
    dataset = made.MadeDataset()
    trainer, oracle = made.small_trainer(**settings), made.small_trainer(**settings)
    made.open_gates(trainer)
    made.open_gates(oracle)
    expected, loss_discriminator, loss_generator = by_hand(oracle, dataset)
    metrics = trainer.train_steps(trainer.batches(dataset), 1)
    assert metrics["loss/discriminator"] == pytest.approx(loss_discriminator, rel=1e-5)
    assert metrics["loss/generator"] == pytest.approx(loss_generator, rel=1e-4, abs=1e-5)
    got = made.values(trainer)
    for name, value in expected.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-3, atol=1e-4, err_msg=name)


@pytest.mark.parametrize(
    "batch_size, message",
    [
        (7, r"Batch size \(7\) must be divisible by the number of replicas \(2\); 6 and 8 are"),
        (0, "Batch size must be a positive integer, got 0"),
        ("8", "Batch size must be a positive integer, got '8'"),
    ],
)
def test_batch_that_does_not_divide_is_refused(batch_size, message):
    with pytest.raises(ValueError, match=message):
        made.small_trainer(helpers.two_replicas(), batch_size=batch_size)


def test_no_discriminator_steps_is_refused():
    with pytest.raises(ValueError, match="discriminator_steps must be at least 1, got 0"):
        made.small_trainer(discriminator_steps=0)


def test_same_seed_same_weights():
    first, second, other = made.small_trainer(), made.small_trainer(), made.small_trainer(seed=4)
    name = "generator/dense/kernel"
    np.testing.assert_array_equal(made.values(first)[name], made.values(second)[name])
    assert not np.array_equal(made.values(first)[name], made.values(other)[name])
