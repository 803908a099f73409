"""What the device says of its own health: first non-finite tensor, gradient norms, sigmas,
residuals; rollbacks.
"""

import functools

import helpers
import made
import numpy as np
import pytest
import tensorflow as tf

from hamgan import context, decomposition, guard, inspection, losses, stateless
from hamgan.step import update_key


class Poisoned(made.MadeDataset):
    """One value of the second batch isn't a number."""

    def __init__(self):
        super().__init__()
        self.images[8 + 3, 5, 5, 1] = np.nan


# Where a test can put something that isn't finite: factors of what they are named after.
FACTORS = {
    name: tf.Variable(1.0)
    for name in (
        "loss/discriminator",
        "loss/generator",
        "gradient/discriminator/block_3/conv_2/bias",
        "gradient/generator/block_2/conv_1/bias",
    )
}


def poisonable_loss(network):
    def loss(*logits):
        return getattr(losses, f"hinge_{network}")(*logits) * FACTORS[f"loss/{network}"]

    return loss


def poisonable_network(network, block, layer):
    factor = FACTORS[f"gradient/{network}/block_{block}/{layer}/bias"]

    @tf.custom_gradient
    def poisonable(x):
        return tf.identity(x), lambda dy: dy * factor

    def constructor():
        built = getattr(made, f"small_{network}")()
        part = getattr(built.blocks[block - 1], layer)
        # The bias alone gets this gradient: what flows on to the layers before it passes beside.
        part._with_bias = lambda x: tf.nn.bias_add(x, poisonable(tf.convert_to_tensor(part.bias)))
        return built

    return constructor


@pytest.fixture(scope="module")
def trained():
    """A trainer after two steps, and what they returned."""
    trainer = made.small_trainer(
        generator=poisonable_network("generator", 2, "conv_1"),
        discriminator=poisonable_network("discriminator", 3, "conv_2"),
        generator_loss=poisonable_loss("generator"),
        discriminator_loss=poisonable_loss("discriminator"),
    )
    made.open_gates(trainer)
    return trainer, trainer.train_steps(trainer.batches(made.MadeDataset()), 2)


@pytest.fixture
def restored(trained):
    """The trainer; all that a test changes is put back."""
    trainer, _ = trained
    before = made.values(trainer)
    yield trainer
    for name, variable in trainer.variables().items():
        variable.assign(before[name])
    for factor in FACTORS.values():
        factor.assign(1.0)


def first_bad(trainer, num_steps, dataset=None):
    metrics = trainer.train_steps(trainer.batches(dataset or made.MadeDataset()), num_steps)
    return metrics["first_bad_step"], metrics["first_bad"]


def test_healthy_steps_name_nothing(trained):
    _, metrics = trained
    assert metrics["first_bad_step"] == -1 and "first_bad" not in metrics
    assert all(np.isfinite(value) for value in metrics.values())


@pytest.mark.parametrize(
    "name, value",
    [
        ("discriminator/dense/bias", np.nan),
        ("discriminator/block_2/conv_1/u", np.nan),
        ("discriminator/context/lower_bread/kernel", np.nan),
        ("generator/block_1/norm_2/gamma", np.inf),
        ("generator/norm/moving_variance", -np.inf),
    ],
)
def test_bad_weight_is_named(restored, name, value):
    variable = restored.variables()[name]
    values = variable.numpy()
    values.flat[-1] = value
    variable.assign(values)
    assert first_bad(restored, 2) == (3, name)


def test_bad_image_is_named_with_its_step(restored):
    restored.step.assign(0)
    assert first_bad(restored, 3, Poisoned()) == (2, "images")


@pytest.mark.slow
def test_bad_image_on_one_replica_is_named():
    assert first_bad(made.small_trainer(helpers.two_replicas()), 3, Poisoned()) == (2, "images")


@pytest.mark.parametrize("name", FACTORS)
def test_bad_loss_or_gradient_is_named(restored, name):
    FACTORS[name].assign(np.nan)
    assert first_bad(restored, 2) == (3, name)


def test_update_that_goes_wrong_is_named(restored):
    restored.generator_optimizer.learning_rate.assign(np.inf)
    assert first_bad(restored, 1) == (3, f"generator/{restored.generator.variables[0].path}")


@pytest.mark.slow
def test_first_of_several_discriminator_updates_is_looked_at():
    dataset = made.MadeDataset()
    dataset.images[0] = np.nan
    trainer = made.small_trainer(discriminator_steps=2)
    assert first_bad(trainer, 1, dataset) == (1, "images")
    assert trainer._checked_names.count("images") == 2


def test_first_bad_is_the_first():
    assert guard.first_bad(tf.constant([1.0, 2.0])) == -1
    assert guard.first_bad(tf.constant([1.0, np.inf, 2.0, np.nan])) == 1


# Norms, sigmas, residuals


def test_gradient_norms_equal_numpy(restored):
    metrics = restored.train_steps(restored.batches(made.MadeDataset()), 1)
    for network in ("generator", "discriminator"):
        # Adam's first moment with beta_1 = 0 is the gradient.
        variables = getattr(restored, f"{network}_optimizer").variables
        squares = [np.sum(np.square(v.numpy())) for v in variables if v.path.endswith("momentum")]
        assert len(squares) == len(getattr(restored, network).trainable_variables)
        assert metrics[f"gradient_norm/{network}"] == pytest.approx(
            np.sqrt(np.sum(squares)), rel=1e-5
        )


def test_adam_s_second_moment_is_the_square_of_the_summed_gradient(restored):
    # Rows of gamma, beta and the embedding are met several times in a batch of 8 with 3 classes.
    before = made.values(restored)
    restored.train_steps(restored.batches(made.MadeDataset()), 1)
    after = made.values(restored)
    names = [name for name in after if name.endswith("_velocity")]
    assert any("gamma" in name for name in names)
    for name in names:
        gradient = after[name.removesuffix("velocity") + "momentum"]
        expected = 0.999 * before[name] + 0.001 * np.square(gradient)
        np.testing.assert_allclose(
            after[name], expected, rtol=1e-4, atol=1e-7 * np.abs(expected).max(), err_msg=name
        )


def test_sigmas_are_the_largest_singular_values(restored, trained):
    _, metrics = trained
    for network in ("generator", "discriminator"):
        layers = guard.spectral_layers(getattr(restored, network))
        names = [
            v.path.removesuffix("/u")
            for v in getattr(restored, network).variables
            if v.path.endswith("/u")
        ]
        assert sorted(layers) == sorted(names)
        for name, layer in layers.items():
            matrix = layer._kernel_matrix().numpy()
            largest = np.linalg.svd(matrix, compute_uv=False)[0]
            # After three power iterations the estimate is below, and not by much.
            assert 0.5 * largest < metrics[f"sigma/{network}/{name}"] <= largest * 1.0001, name
            assert metrics[f"sigma/{network}/{name}"] == pytest.approx(
                layer.sigma().numpy(), rel=1e-6
            )


MODULES = {
    "v1": functools.partial(context.Hamburger, rank=2),
    "sections": functools.partial(context.HamburgerV2, rank=2, dim=4, sections=2),
    "v2+": functools.partial(context.HamburgerV2Plus, rank=2, decomposition=decomposition.vq),
    "cd": functools.partial(context.Hamburger, rank=2, decomposition=decomposition.cd),
    "implicit": functools.partial(context.Hamburger, rank=2, solve=decomposition.implicit),
    "own": functools.partial(
        context.Hamburger, rank=2, decomposition=lambda x, bases, *, num_steps, solve: 0.75 * x
    ),
}


@pytest.mark.parametrize("name", MODULES)
def test_residuals_equal_numpy(name):
    network = helpers.randomize(made.small_discriminator(context=MODULES[name]))
    images, labels = made.MadeDataset().images[:4], made.MadeDataset().labels[:4]
    keys = stateless.example_keys(stateless.key(5), tf.range(4))
    _, passed = network(images, labels, keys=keys, return_context=True)
    errors = {ham: found.residual() for ham, found in passed.hams.items()}
    _, seen = inspection.inspect(network, images, labels, keys=keys)
    assert errors.keys() == seen.hams.keys() == set(network.context.hams)
    for ham, part in seen.hams.items():
        expected = np.mean(inspection.reconstruction_error(part.x, part.y))
        assert expected > 0.01
        assert errors[ham].numpy() == pytest.approx(expected, rel=1e-3, abs=5e-4)


def test_residual_of_nothing_is_zero():
    zeros = tf.zeros([2, 4, 3])
    assert decomposition.Approximation(zeros, zeros).residual() == 0
    assert decomposition.Factors(zeros, tf.ones([2, 3, 2]), tf.zeros([2, 4, 2])).residual() == 0


def test_residuals_of_training(trained):
    _, metrics = trained
    for network in ("generator", "discriminator"):
        assert 0 < metrics[f"residual/{network}/space"] < 1


@pytest.mark.slow
def test_networks_without_a_ham_have_no_residual():
    trainer = made.small_trainer(
        discriminator=functools.partial(made.small_discriminator, context=None)
    )
    metrics = trainer.train_steps(trainer.batches(made.MadeDataset()), 1)
    assert [name for name in metrics if name.startswith("residual")] == ["residual/generator/space"]


# Rollbacks


def key_of(trainer, step, rollbacks, update):
    return update_key(
        trainer.seed, tf.constant(step, tf.int64), tf.constant(rollbacks, tf.int64), update
    ).numpy()


def test_keys_without_a_rollback_are_those_of_the_step(trained):
    trainer, _ = trained
    for step, update in ((0, 0), (7, 1)):
        expected = stateless.key(trainer.seed, stateless.TRAINING, step, update)
        np.testing.assert_array_equal(key_of(trainer, step, 0, update), expected)


def test_no_two_steps_or_rollbacks_share_a_key(trained):
    trainer, _ = trained
    numbers = [
        (step, rollbacks, update)
        for step in range(4)
        for rollbacks in range(4)
        for update in range(2)
    ]
    assert len({tuple(key_of(trainer, *each)) for each in numbers}) == len(numbers)


def test_rollbacks_change_noise_and_the_order_of_images(restored):
    class Noting(made.MadeDataset):
        def train_batches(self, *, seed, **kwargs):
            seeds.append(seed)
            return super().train_batches(seed=seed, **kwargs)

    seeds, outcomes, before = [], [], made.values(restored)
    for rollbacks in (0, 1, 2, 1):
        for name, variable in restored.variables().items():
            variable.assign(before[name])
        restored.rollbacks.assign(rollbacks)
        outcomes.append(restored.train_steps(restored.batches(Noting()), 1)["loss/discriminator"])
    assert seeds[0] == restored.seed and seeds[1] == seeds[3] and len(set(seeds)) == 3
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert outcomes[1] == outcomes[3] and len(set(outcomes)) == 3


def test_rollbacks_are_in_checkpoints(trained):
    trainer, _ = trained
    assert (
        trainer.variables()["rollbacks"] is trainer.rollbacks
        and trainer.rollbacks.dtype == tf.int64
    )
