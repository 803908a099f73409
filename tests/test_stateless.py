"""Keys, and draws that are functions of their keys alone."""

import numpy as np
import pytest
import tensorflow as tf
from helpers import assert_close, run
from tensorflow.python.framework import kernels

from hamgan import devices, philox, stateless

DRAWS = {
    "normal": lambda keys: stateless.normal([3, 5], keys),
    "uniform": lambda keys: stateless.uniform([3, 5], keys),
    "labels": lambda keys: stateless.labels(1000, keys),
    "folds": lambda keys: stateless.fold_each(keys, 5),
}


def inputs(indices, *path):
    return stateless.generator_inputs(
        stateless.key(7, *path), indices, latent_dim=6, num_classes=1000
    )


def test_keys_are_functions_of_seed_and_path():
    paths = [(0,), (1,), (0, 0), (0, 1), (1, 0), (0, 0, 0), (0, 0, 1), (0, 1, 0), (0, 0, 0, 0)]
    keys = {
        tuple(stateless.key(seed, *path[1:]).numpy())
        for seed in range(3)
        for path in [(seed, *p) for p in paths]
    }
    assert len(keys) == 3 * len(paths)
    np.testing.assert_array_equal(stateless.key(5, 2, 3), stateless.key(5, 2, 3))
    np.testing.assert_array_equal(stateless.key(5, 2, 3), stateless.fold(stateless.key(5, 2), 3))


@pytest.mark.parametrize("dtype", [tf.int32, tf.int64])
def test_keys_of_tensors_are_those_of_python_integers(dtype):
    expected = stateless.key(5, 2, 3)
    assert expected.dtype == tf.int32
    as_tensors = stateless.key(*(tf.constant(number, dtype) for number in (5, 2, 3)))
    assert as_tensors.dtype == tf.int32
    np.testing.assert_array_equal(as_tensors, expected)


def test_example_keys_are_folds_of_the_index():
    parent = stateless.key(5, 2)
    expected = [stateless.fold(parent, index) for index in (3, 0, 12)]
    for dtype in (tf.int32, tf.int64):
        keys = stateless.example_keys(parent, tf.constant([3, 0, 12], dtype))
        assert keys.dtype == tf.int32
        np.testing.assert_array_equal(keys, expected)


def test_no_two_purposes_steps_or_examples_share_a_key():
    # Purposes are small integers, and so are indices: their keys must not be sums of the two.
    keys = [
        tuple(key)
        for step in range(4)
        for purpose in range(4)
        for key in stateless.example_keys(
            stateless.key(0, stateless.TRAINING, step, purpose), tf.range(8)
        ).numpy()
    ]
    assert len(set(keys)) == 4 * 4 * 8


def test_noise_is_not_the_noise_of_another_row_s_bases():
    z, labels, keys = inputs(tf.range(16), 0)
    rows = {tuple(row) for row in z.numpy()}
    assert len(rows) == 16
    assert not rows & {tuple(row) for row in stateless.normal([6], keys).numpy()}
    assert labels.numpy().tolist() != stateless.labels(1000, keys).numpy().tolist()


@pytest.mark.parametrize("name", DRAWS)
def test_row_depends_on_its_own_key_alone(name):
    draw = DRAWS[name]
    keys = stateless.example_keys(stateless.key(1), tf.range(9))
    rows = draw(keys).numpy()
    assert len({row.tobytes() for row in rows}) == 9
    order = [4, 0, 8, 4]
    np.testing.assert_array_equal(draw(tf.gather(keys, order)), rows[order])


@pytest.mark.parametrize("name", DRAWS)
def test_dynamic_batch_and_every_mode_give_the_same(name):
    draw = DRAWS[name]
    keys = stateless.example_keys(stateless.key(1), tf.range(9))
    expected = draw(keys).numpy()
    dynamic = tf.function(draw, input_signature=[tf.TensorSpec([None, 2], tf.int32)])
    np.testing.assert_array_equal(dynamic(keys), expected)
    np.testing.assert_array_equal(dynamic(keys[:4]), expected[:4])
    # XLA has its own logarithm and cosine, so its normal numbers differ in the last digits.
    assert_close(run("xla", draw, keys), expected, 1e-6 if name == "normal" else 0)


def test_distributions():
    keys = stateless.example_keys(stateless.key(2), tf.range(50))
    count = 50 * 1000
    normal = stateless.normal([1000], keys).numpy()
    uniform = stateless.uniform([10, 100], keys).numpy()
    labels = run(
        "graph",
        lambda: stateless.labels(4, stateless.example_keys(stateless.key(2), tf.range(4000))),
    ).numpy()
    assert normal.shape == (50, 1000) and uniform.shape == (50, 10, 100)
    assert normal.dtype == uniform.dtype == np.float32
    # Five standard errors: of a mean 1/sqrt(n), of a variance sqrt((kurtosis - 1)/n).
    assert abs(normal.mean()) < 5 / count**0.5 and abs(normal.var() - 1) < 5 * (2 / count) ** 0.5
    assert 0 <= uniform.min() and uniform.max() < 1
    assert abs(uniform.mean() - 1 / 2) < 5 * (1 / 12 / count) ** 0.5
    assert abs(uniform.var() - 1 / 12) < 5 * (1 / 180 / count) ** 0.5
    # Normal: a share of 15.87% lies beyond one deviation on each side, and the draws of a row don't
    # hang together.
    for side in (-normal, normal):
        assert abs(np.mean(side > 1) - 0.15866) < 5 * (0.15866 * 0.84134 / count) ** 0.5
    for step in (1, 2, 500):
        assert abs(np.mean(normal[:, step:] * normal[:, :-step])) < 5 / normal[:, step:].size ** 0.5
    assert labels.dtype == np.int32 and labels.shape == (4000,)
    share = np.bincount(labels, minlength=4)
    assert share.size == 4 and np.all(np.abs(share - 1000) < 5 * (4000 * 3 / 16) ** 0.5)


def test_generator_inputs_do_not_depend_on_how_examples_are_batched():
    whole = inputs(tf.range(8), stateless.EVALUATION)
    assert [tuple(part.shape) for part in whole] == [(8, 6), (8,), (8, 2)]
    parts = [inputs(indices, stateless.EVALUATION) for indices in (tf.range(3), tf.range(3, 8))]
    for all_rows, *rows in zip(whole, *parts, strict=True):
        np.testing.assert_array_equal(all_rows, np.concatenate(rows))


def test_generator_inputs_differ_between_keys():
    for one, other in zip(inputs(tf.range(8), 0), inputs(tf.range(8), 1), strict=True):
        assert np.any(one.numpy() != other.numpy())


def test_fresh_keys_differ_between_calls_and_rows():
    keys = np.concatenate([stateless.fresh_keys(5), stateless.fresh_keys(5)])
    assert keys.dtype == np.int32 and len({tuple(key) for key in keys}) == 10
    traced = tf.function(lambda: stateless.fresh_keys(5))
    assert np.any(traced().numpy() != traced().numpy())


def test_seeds_count_in_their_full_width():
    seeds = [0, 1, 2**31 - 1, 2**31, 2**32, 2**32 + 1, 2**33, 2**62 + 1, 2**63 - 1]
    keys = {tuple(stateless.key(seed, 5).numpy()) for seed in seeds}
    assert len(keys) == len(seeds)
    graph = tf.function(lambda seed: stateless.key(seed, 5))
    for seed in seeds:
        for dtype in [tf.int64] + [tf.int32] * (seed < 2**31):
            np.testing.assert_array_equal(
                graph(tf.constant(seed, dtype)), stateless.key(seed, 5), err_msg=str(seed)
            )


@pytest.mark.parametrize("jit_compile", [False, True])
def test_numbers_are_those_of_tensorflow_s_own_functions(jit_compile):
    """XLA and TensorFlow's kernels have the same numbers of the shorter form too."""
    rng = np.random.default_rng(1)
    limits = np.iinfo(np.int32)
    draws = tf.function(
        lambda key, part: (stateless.fold(key, part), stateless._integers([5, 3], key, 1000)),
        jit_compile=jit_compile,
    )
    for key in rng.integers(limits.min, limits.max, [20, 2], np.int32, endpoint=True):
        part = int(rng.integers(limits.min, limits.max))
        folded = tf.random.experimental.stateless_fold_in(key, part, alg="philox")
        drawn = tf.random.stateless_uniform([5, 3], key, 0, 1000, tf.int32, alg="philox")
        for result, expected in zip(
            draws(key, tf.constant(part, tf.int32)), (folded, drawn), strict=True
        ):
            np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("mode", ["eager", "graph", "xla"])
@pytest.mark.parametrize(
    ("shape", "limit"), [([], 1000), ([1], 2**24), ([7], 10), ([3, 5], 2**31 - 1), ([0], 2)]
)
def test_many_keys_at_once_have_the_numbers_of_each(shape, limit, mode):
    bounds = np.iinfo(np.int32)
    keys = np.random.default_rng(3).integers(bounds.min, bounds.max, [20, 2], np.int32, True)
    keys[:4] = [[0, 0], [-1, -1], [bounds.min, bounds.max], [1, -1]]
    drawn = run(mode, lambda keys: philox.integers(shape, keys, limit), tf.constant(keys))
    expected = [
        tf.random.stateless_uniform(shape, key, 0, limit, tf.int32, alg="philox") for key in keys
    ]
    assert drawn.dtype == tf.int32
    np.testing.assert_array_equal(drawn, expected)


@pytest.mark.parametrize("mode", ["eager", "graph", "xla"])
@pytest.mark.parametrize("kind", ["CPU", "TPU"])
def test_folds_of_many_keys_are_those_of_each(kind, mode):
    bounds = np.iinfo(np.int32)
    keys = np.random.default_rng(4).integers(bounds.min, bounds.max, [40, 2], np.int32, True)
    keys[:4] = [[0, 0], [-1, -1], [bounds.min, bounds.max], [1, -1]]
    expected = [tf.random.experimental.stateless_fold_in(key, 7, alg="philox") for key in keys]
    assert {bool(hash_ < 0) for hash_, _ in expected} == {True, False}
    with devices.planned(kind):
        folded = run(mode, lambda keys: stateless.fold_each(keys, 7), tf.constant(keys))
        wide = stateless.fold_each(tf.constant(keys, tf.int64), 7)
    assert folded.dtype == wide.dtype == tf.int32
    np.testing.assert_array_equal(folded, expected)
    np.testing.assert_array_equal(wide, expected)


@pytest.mark.parametrize("name", DRAWS)
@pytest.mark.parametrize("kind", ["GPU", "TPU"])
def test_accelerators_draw_the_same_without_a_loop(kind, name):
    keys = stateless.example_keys(stateless.key(1), tf.range(9))
    expected = DRAWS[name](keys)
    with devices.planned(kind):
        graph = tf.function(DRAWS[name], input_signature=[tf.TensorSpec([None, 2], tf.int32)])
        for count in (9, 4):
            # Whole vectors and what is left of them have logarithms of their own in the kernels.
            assert_close(graph(keys[:count]), expected[:count], 1e-6 if name == "normal" else 0)
        assert graph(keys[:0]).shape == expected[:0].shape
        graph = tf.function(DRAWS[name]).get_concrete_function(keys)
    assert graph.output_shapes == expected.shape
    operations = {operation.type for operation in graph.graph.get_operations()}
    assert not operations & {"While", "StatelessWhile", "TensorListReserve"}


@pytest.mark.parametrize("limit", [0, -1, 2**31])
def test_limits_out_of_range_are_refused(limit):
    with pytest.raises(ValueError, match=f"limit must be from 1 to 2.31 - 1, got {limit}"):
        philox.integers([3], stateless.fresh_keys(2), limit)


def test_every_operation_of_many_keys_has_a_kernel_for_gpus():
    """Without one it is done on the host, and everything copied there and back."""
    graph = tf.function(lambda keys: philox.integers([5], keys, 10))
    graph = graph.get_concrete_function(tf.TensorSpec([4, 2], tf.int32)).graph
    bodies = [function.graph for function in graph._functions.values()]
    nodes = [node for one in (graph, *bodies) for node in one.as_graph_def().node]
    wide = {
        (node.op, name)
        for node in nodes
        for name, value in node.attr.items()
        if value.type == tf.uint64.as_datatype_enum and node.op not in ("Placeholder", "Const")
    }
    assert {op for op, _ in wide} >= {"Mul", "BitwiseXor", "RightShift", "FloorMod", "Pack"}
    registered = {op: kernels.get_registered_kernels_for_op(op).kernel for op, _ in wide}
    if not any(kernel.device_type == "GPU" for kernel in registered["Mul"]):
        pytest.skip("this TensorFlow has no kernels for GPUs")
    for op, name in wide:
        assert any(
            tf.uint64.as_datatype_enum in types.allowed_values.list.type
            for kernel in registered[op]
            for types in kernel.constraint
            if kernel.device_type in ("GPU", "DEFAULT") and types.name == name
        ), op
