"""What the tests of layers and networks share."""

import keras
import numpy as np
import tensorflow as tf

# The ways a layer is run: op by op, traced, compiled by XLA.
MODES = {"eager": None, "graph": False, "xla": True}


def run(mode, function, *args):
    """`function(*args)` in one of MODES."""
    if mode == "eager":
        return function(*args)
    return tf.function(function, jit_compile=MODES[mode])(*args)


def assert_close(actual, expected, tolerance):
    """Equal up to `tolerance` times the largest expected value."""
    expected = np.asarray(expected, np.float64)
    actual = np.asarray(actual, np.float64)
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * np.abs(expected).max())


def assert_modes_agree(function, *args, tolerance=1e-5):
    """Eager, graph and XLA give the same; returns eager's result."""
    expected = function(*args)
    for mode in ("graph", "xla"):
        for one, other in zip(
            tf.nest.flatten(run(mode, function, *args)), tf.nest.flatten(expected), strict=True
        ):
            assert_close(one, other, tolerance)
    return expected


def array(*shape, seed=0, scale=1.0):
    """N(0, scale^2), float32."""
    return np.random.default_rng(seed).normal(scale=scale, size=shape).astype(np.float32)


def randomize(layer, seed=0):
    """Gives every weight a value that matters: nothing stays 0 or 1, kernels have norms on both
    sides of 1.
    """
    rng = np.random.default_rng(seed)
    for variable in layer.variables:
        name, shape = variable.path.split("/")[-1], tuple(variable.shape)
        if name == "gate":
            value = 0.7
        elif name in ("gamma", "moving_variance"):
            value = rng.uniform(0.5, 1.5, shape)
        elif name == "kernel":
            # A Gaussian m x n matrix has a norm of about sqrt(m) + sqrt(n).
            rows = np.prod(shape[:-1])
            value = (
                rng.normal(size=shape)
                * rng.uniform(0.5, 1.5)
                / (np.sqrt(rows) + np.sqrt(shape[-1]))
            )
        else:
            value = rng.normal(scale=0.5, size=shape)
        variable.assign(value)
    return layer


def weights(layer):
    """{name: float64 array} of all weights, by their names within `layer`."""
    # A layer that was built by another one has the outer one's name first.
    names = [variable.path.split("/") for variable in layer.variables]
    skip = 1 if all(name[0] == layer.name for name in names) else 0
    return {
        "/".join(name[skip:]): np.float64(variable.numpy())
        for name, variable in zip(names, layer.variables, strict=True)
    }


def assert_config_round_trips(layer, *input_shape):
    """`from_config(get_config())` is a layer of the same configuration, and with the same weights
    once built.
    """
    config = layer.get_config()
    copy = type(layer).from_config(config)
    assert copy.get_config() == config
    copy.build(tuple(input_shape) or None)
    assert [(v.path, v.shape) for v in copy.variables] == [
        (v.path, v.shape) for v in layer.variables
    ]


def gradients(function, *args):
    """Gradients of sum(function(*args)) with respect to each of `args`."""
    args = [tf.convert_to_tensor(arg) for arg in args]
    with tf.GradientTape() as tape:
        tape.watch(args)
        total = tf.reduce_sum(function(*args))
    return tape.gradient(total, args)


def numerical_gradient(function, x, step=1e-5):
    """Central differences of a float64 NumPy function with a scalar result."""
    x = np.float64(x)
    gradient = np.zeros_like(x)
    for index in np.ndindex(*x.shape):
        shifted = x.copy()
        shifted[index] = x[index] + step
        above = function(shifted)
        shifted[index] = x[index] - step
        gradient[index] = (above - function(shifted)) / (2 * step)
    return gradient


def build(layer, *input_shape, seed=0):
    """Builds and randomizes a layer."""
    keras.utils.set_random_seed(seed)
    layer.build(tuple(input_shape) or None)
    return randomize(layer, seed)


def two_replicas():
    """A strategy of two replicas on the logical CPUs that conftest.py makes."""
    devices = [device.name for device in tf.config.list_logical_devices("CPU")]
    assert len(devices) == 2
    # Without collective operations: TensorFlow mixes up those of two strategies in one process, if
    # their shapes differ.
    return tf.distribute.MirroredStrategy(devices, tf.distribute.ReductionToOneDevice())


def per_replica(strategy, *arrays):
    """The halves of each array, as values of two replicas."""
    return [
        strategy.experimental_distribute_values_from_function(
            lambda context, array=array: tf.constant(
                np.split(array, 2)[context.replica_id_in_sync_group]
            )
        )
        for array in arrays
    ]


def joined(strategy, value):
    """The replicas' parts along the first axis, as one array."""
    return np.concatenate([part.numpy() for part in strategy.experimental_local_results(value)])
