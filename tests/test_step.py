"""The training step: what it says of itself, and Adam for summed gradients."""

import helpers
import keras
import made
import numpy as np
import pytest
import tensorflow as tf

from hamgan import device_loop, step, trainer


def values_of_step(**kwargs):
    small = made.small_trainer(**kwargs)
    batches = small.batches(made.MadeDataset())
    reals = [next(batches) for _ in range(small.discriminator_steps)]
    zero = tf.constant(0, tf.int64)
    return small, small.strategy.run(small.step_of_replica, args=(reals, zero, zero))


@pytest.mark.slow
def test_values_are_named_in_the_order_of_the_computation():
    small, values = values_of_step(discriminator_steps=2)
    assert all(value.shape == () and value.dtype == tf.float32 for value in values.values())
    # Updates follow each other; in each the loss comes before the gradients, from the output back,
    # and the updated variables come last.
    updates = [update for update, _ in values]
    assert updates == sorted(updates) and set(updates) == {0, 1, 2}
    for update, kind in enumerate(("discriminator", "discriminator", "generator")):
        network = getattr(small, kind)
        expected = ["images"] if kind == "discriminator" else []
        expected += [f"loss/{kind}"]
        expected += [f"gradient/{kind}/{v.path}" for v in reversed(network.trainable_variables)]
        expected += [f"{kind}/{v.path}" for v in network.variables]
        names = [name for number, name in values if number == update]
        assert [name for name in names if name.split("/")[0] in step.CHECKED] == expected
        others = {name for name in names if name not in expected}
        logits = {"logits/real", "logits/fake"} if kind == "discriminator" else set()
        assert others == {f"gradient_norm/{kind}", f"residual/{kind}/space", *logits}
    for (_, name), value in values.items():
        if name.startswith(("discriminator/", "generator/")):
            network, path = name.split("/", 1)
            (variable,) = [v for v in getattr(small, network).variables if v.path == path]
            if network == "generator":
                expected = np.sum(np.square(variable.numpy())) / 2
                np.testing.assert_allclose(value, expected, rtol=1e-5, err_msg=name)


def test_packing_keeps_the_names_of_the_entries():
    packing = device_loop.Packing()
    assert packing.names is None
    packed = tf.function(lambda x: packing.pack({"b": x, (1, "a"): x + 1.0}))(tf.constant(2.0))
    np.testing.assert_array_equal(packed, [2.0, 3.0])
    assert packing.names == ["b", (1, "a")]


GRADIENTS = np.float32([[0.5, -2.0, 0.0], [1e-6, 3.0, -1.0], [4.0, 0.25, 1.0]])


def after_adam(kind, strategy):
    """A variable's values after steps of Adam whose gradients are the same on all replicas."""
    with strategy.scope():
        variable = keras.Variable(np.float32([1.0, 2.0, 3.0]), name="w")
        optimizer = kind(lambda: 0.1 / tf.cast(optimizer.iterations + 1, tf.float32), beta_1=0.5)
        optimizer.build([variable])

    @tf.function
    def update(gradient):
        strategy.run(lambda g: optimizer.apply([g], [variable]), args=(gradient,))

    values = []
    for gradient in GRADIENTS:
        update(tf.constant(gradient))
        values.append(variable.numpy())
    assert int(optimizer.iterations.numpy()) == len(GRADIENTS)
    return np.array(values)


def adam_in_numpy(beta_1=0.5, beta_2=0.999, epsilon=1e-7):
    """What `after_adam` gives, in float64 (Kingma and Ba 2015, end of section 2)."""
    variable, momentum, velocity = np.array([1.0, 2.0, 3.0]), np.zeros(3), np.zeros(3)
    for t, gradient in enumerate(np.float64(GRADIENTS), start=1):
        momentum = beta_1 * momentum + (1 - beta_1) * gradient
        velocity = beta_2 * velocity + (1 - beta_2) * gradient**2
        rate = 0.1 / t * np.sqrt(1 - beta_2**t) / (1 - beta_1**t)
        variable = variable - rate * momentum / (np.sqrt(velocity) + epsilon)
        yield variable


def test_adam_of_summed_gradients_is_keras_adam_on_one_device_whatever_the_replicas():
    expected = np.array(list(adam_in_numpy()))
    assert np.all(expected[1:] != expected[:-1])
    of_keras = after_adam(keras.optimizers.Adam, made.one_device())
    np.testing.assert_allclose(of_keras, expected, rtol=3e-6)
    ours = after_adam(trainer.SummedAdam, made.one_device())
    np.testing.assert_allclose(ours, expected, rtol=3e-6)
    on_two = after_adam(trainer.SummedAdam, helpers.two_replicas())
    np.testing.assert_array_equal(on_two, ours)
