"""Every form of a convolution against the plain sum."""

import numpy as np
import numpy_reference as reference
import pytest
import tensorflow as tf
from helpers import array, assert_close, gradients

from hamgan import convolutions, devices

# Form: (kernels are boxed from how many channels on, columns are taken from how many channels a
# position on), so that it is the one that is taken.
FORMS = {"fused": (10**9, 10**9), "boxed": (1, 10**9), "columns": (10**9, 0)}
OF_NUMPY = {
    "convolve": reference.conv2d,
    "convolve_upsampled": lambda x, kernel: reference.conv2d(reference.upsample(x), kernel),
    "convolve_pooled": lambda x, kernel: reference.average_pool(reference.conv2d(x, kernel)),
}


def plain(name, x, kernel):
    if name == "convolve_upsampled":
        x = tf.repeat(tf.repeat(x, 2, axis=1), 2, axis=2)
    y = tf.nn.conv2d(x, kernel, 1, "SAME")
    return tf.nn.avg_pool2d(y, 2, 2, "VALID") if name == "convolve_pooled" else y


@pytest.fixture(params=FORMS)
def form(request, monkeypatch):
    boxed, columns = FORMS[request.param]
    monkeypatch.setattr(convolutions, "_BOXED_CHANNELS", boxed)
    monkeypatch.setattr(convolutions, "_COLUMNS", columns)
    with devices.planned("CPU"):
        yield request.param


def operations(name, *shapes):
    """{type of an operation of the graph: shapes of its inputs}."""
    function = tf.function(getattr(convolutions, name), autograph=False)
    graph = function.get_concrete_function(*[tf.TensorSpec(shape) for shape in shapes]).graph
    return {
        operation.type: [tuple(tensor.shape) for tensor in operation.inputs]
        for operation in graph.get_operations()
    }


with_names = pytest.mark.parametrize("name", OF_NUMPY)


@with_names
@pytest.mark.parametrize("shape", [(2, 6, 4, 5), (1, 2, 2, 5), (3, 2, 8, 5), (2, 5, 7, 5)])
def test_form_equals_numpy(name, shape, form):
    x, kernel = array(*shape), array(3, 3, 5, 7, seed=1)
    assert_close(
        getattr(convolutions, name)(tf.constant(x), tf.constant(kernel)),
        OF_NUMPY[name](x, np.float64(kernel)),
        1e-5,
    )


def test_one_by_one_kernels_are_a_product():
    x, kernel = array(2, 6, 4, 5), array(1, 1, 5, 7)
    y = convolutions.convolve(tf.constant(x), tf.constant(kernel))
    assert_close(y, reference.conv2d(x, np.float64(kernel)), 1e-5)
    assert convolutions.convolve(tf.constant(x[:0]), tf.constant(kernel)).shape == (0, 6, 4, 7)


@with_names
def test_gradients_of_form(name, form):
    x, kernel = tf.constant(array(2, 6, 4, 5)), tf.constant(array(3, 3, 5, 7, seed=1))

    def ours(x, kernel):
        return tf.square(getattr(convolutions, name)(x, kernel))

    def theirs(x, kernel):
        return tf.square(plain(name, x, kernel))

    for one, other in zip(gradients(ours, x, kernel), gradients(theirs, x, kernel), strict=True):
        assert_close(one, other, 1e-5)


@with_names
def test_gradients_of_gradients_of_form(name, form):
    """What a gradient penalty takes: of the norm of the input's gradient, by the kernel."""
    x, kernel = tf.constant(array(2, 6, 4, 5)), tf.constant(array(3, 3, 5, 7, seed=1))

    def penalty(function):
        def of(x, kernel):
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = tf.reduce_sum(tf.sin(function(x, kernel)))
            return tf.square(tape.gradient(y, x))

        return gradients(of, x, kernel)

    ours = penalty(getattr(convolutions, name))
    theirs = penalty(lambda x, kernel: plain(name, x, kernel))
    for one, other in zip(ours, theirs, strict=True):
        assert_close(one, other, 1e-4)


@pytest.mark.parametrize("size", [1, 3])
def test_gradients_of_few_rows(size, monkeypatch):
    """A product of no more rows than outputs has a gradient of its own; it too has gradients."""
    monkeypatch.setattr(convolutions, "_COLUMNS", 0)
    x, kernel = tf.constant(array(1, 2, 3, 5)), tf.constant(array(size, size, 5, 7, seed=1))

    def penalty(function):
        def of(x, kernel):
            with tf.GradientTape() as tape:
                tape.watch([x, kernel])
                y = tf.reduce_sum(tf.sin(function(x, kernel)))
            by_x, by_kernel = tape.gradient(y, [x, kernel])
            return tf.reduce_sum(by_x**2) + tf.reduce_sum(tf.sin(by_kernel))

        return [*gradients(function, x, kernel), *gradients(of, x, kernel)]

    with devices.planned("CPU"):
        ours = penalty(convolutions.convolve)
        graph = tf.function(convolutions.convolve).get_concrete_function(x, kernel).graph
    assert any(operation.type == "IdentityN" for operation in graph.get_operations())
    theirs = penalty(lambda x, kernel: tf.nn.conv2d(x, kernel, 1, "SAME"))
    for one, other in zip(ours, theirs, strict=True):
        assert_close(one, other, 1e-5)


@with_names
def test_form_in_bfloat16(name, form):
    x, kernel = (
        np.float32(tf.cast(a, tf.bfloat16)) for a in (array(2, 6, 4, 5), array(3, 3, 5, 7, seed=1))
    )
    y = getattr(convolutions, name)(tf.cast(x, tf.bfloat16), tf.cast(kernel, tf.bfloat16))
    assert y.dtype == tf.bfloat16
    assert_close(tf.cast(y, tf.float32), OF_NUMPY[name](x, np.float64(kernel)), 2e-2)


@with_names
def test_unknown_sizes(name, form):
    """A graph of unknown sizes takes a form that needs none."""
    function = tf.function(getattr(convolutions, name), autograph=False)
    spec = tf.TensorSpec([None, None, None, 5]), tf.TensorSpec([3, 3, 5, 7])
    x, kernel = array(2, 6, 4, 5), array(3, 3, 5, 7, seed=1)
    assert_close(
        function.get_concrete_function(*spec)(tf.constant(x), tf.constant(kernel)),
        OF_NUMPY[name](x, np.float64(kernel)),
        1e-5,
    )


def test_forms_on_cpus():
    """Few positions of many channels are multiplied as a matrix, many channels boxed, few fused."""
    with devices.planned("CPU"):
        large, small = [3, 3, 256, 128], [3, 3, 32, 16]
        few = operations("convolve", [1, 4, 4, 256], large)
        assert "Conv2D" not in few and (288 * 8, 128) in few["MatMul"]
        assert operations("convolve_upsampled", [8, 32, 32, 256], large)["Conv2DBackpropInput"][
            1
        ] == (3, 3, 128, 256)
        assert operations("convolve_pooled", [8, 32, 32, 256], large)["Conv2D"][1] == (
            *(3, 3, 256, 128),
        )
        assert operations("convolve_pooled", [8, 32, 32, 32], small)["Conv2D"][1] == (4, 4, 32, 16)


def test_tpus_have_the_fused_form():
    shapes = [2, 4, 4, 256], [3, 3, 256, 128]
    with devices.planned("TPU"):
        assert operations("convolve_pooled", *shapes)["Conv2D"][1] == (4, 4, 256, 128)
        assert operations("convolve_upsampled", *shapes)["Conv2DBackpropInput"][1] == (
            *(4, 4, 128, 256),
        )
        assert "MatMul" not in operations("convolve", *shapes)


@pytest.mark.parametrize("shape", [[2, 8, 6, 3], [2, 7, 6, 3], [2, None, None, 3]])
def test_no_form_has_explicit_padding(shape, form):
    # TensorFlow has no fast kernels for its gradients.
    for name in OF_NUMPY:
        function = tf.function(getattr(convolutions, name), autograph=False)
        specs = tf.TensorSpec(shape), tf.TensorSpec([3, 3, 3, 5])
        paddings = {
            operation.get_attr("padding")
            for operation in function.get_concrete_function(*specs).graph.get_operations()
            if "padding" in operation.node_def.attr
        }
        assert b"EXPLICIT" not in paddings
