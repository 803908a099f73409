"""A network of Inception's shape with random weights: 299x299 in, 2048 features and 1008 logits
out, little inside.

Its weights are NumPy arrays, so that every format holds the same network, and tests can compute it
by hand.
"""

import pathlib

import numpy as np
import tensorflow as tf

SIZE, PATCH, WIDTH, FEATURES, CLASSES = 299, 23, 8, 2048, 1008


def weights():
    rng = np.random.default_rng(0)
    cells = (SIZE // PATCH) ** 2 * 3
    return {
        "conv": rng.normal(size=[cells, WIDTH]).astype(np.float32) / 4,
        "expand": rng.normal(size=[WIDTH, FEATURES]).astype(np.float32),
        "softmax": rng.normal(size=[FEATURES, CLASSES]).astype(np.float32) / 8,
    }


def by_hand(images):
    """{'pool_3', 'logits'} of images [N, 299, 299, 3] in [-1, 1], float64."""
    w = {name: value.astype(np.float64) for name, value in weights().items()}
    side = SIZE // PATCH
    cells = images.astype(np.float64).reshape(-1, side, PATCH, side, PATCH, 3).mean(axis=(2, 4))
    pool = np.maximum(np.tanh(cells.reshape(len(images), -1) @ w["conv"]) @ w["expand"], 0)
    return {"pool_3": pool, "logits": pool @ w["softmax"]}


def compute(images, w):
    """The same in TensorFlow; `pool_3` keeps its two axes of one pixel, as Inception's does."""
    cells = tf.nn.avg_pool2d(images, PATCH, PATCH, "VALID")
    pool = tf.nn.relu(
        tf.tanh(tf.reshape(cells, [-1, w["conv"].shape[0]]) @ w["conv"]) @ w["expand"]
    )
    return {"pool_3": pool[:, None, None, :], "logits": pool @ w["softmax"]}


class _Module(tf.Module):
    def __init__(self):
        super().__init__()
        self.weights = {name: tf.Variable(value) for name, value in weights().items()}

    @tf.function(input_signature=[tf.TensorSpec([None, SIZE, SIZE, 3], tf.float32, name="images")])
    def __call__(self, images):
        return compute(images, self.weights)


def save_tf2(folder):
    """As TF2 saves it: an object that can be called, and a signature."""
    module = _Module()
    tf.saved_model.save(module, str(folder), signatures={"serving_default": module.__call__})
    return str(folder)


def save_tf1_hub(folder, outputs=("pool_3", "logits", "default")):
    """As TF1's hub saved it: two graphs, one without tags, TF1's variables, the signature
    'default', its own file.
    """
    folder = pathlib.Path(folder)
    builder = tf.compat.v1.saved_model.Builder(str(folder))
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        images = tf.compat.v1.placeholder(tf.float32, [None, SIZE, SIZE, 3], name="images")
        variables = {
            name: tf.compat.v1.get_variable(name, initializer=value, use_resource=False)
            for name, value in weights().items()
        }
        result = compute(images, variables)
        result["default"] = result["logits"]
        signature = tf.compat.v1.saved_model.signature_def_utils.predict_signature_def(
            {"images": images}, {name: result[name] for name in outputs}
        )
        session.run(tf.compat.v1.global_variables_initializer())
        builder.add_meta_graph_and_variables(session, [], {"default": signature})
        builder.add_meta_graph(["train"], {"default": signature})
        builder.save()
    (folder / "tfhub_module.pb").write_bytes(b"\x08\x03")
    return str(folder)


def batch_norm(width):
    """Statistics of a batch norm over the image's three channels: (mean, variance, beta, gamma)."""
    rng = np.random.default_rng(1)
    return tuple(rng.uniform(0.5, 1.5, width).astype(np.float32) for _ in range(4))


def save_frozen_2015(path, *, scale=False):
    """As `classify_image_graph_def.pb` is made: a JPEG file in, one image at a time, pixels 0 to
    255.

    Ahead of the network above stands a batch norm of the op that TensorFlow has dropped since; it
    scales if `scale`.
    """
    with tf.Graph().as_default() as graph:
        contents = tf.compat.v1.placeholder(tf.string, [], name="DecodeJpeg/contents")
        image = tf.cast(tf.io.decode_jpeg(contents, channels=3), tf.float32, name="Cast")
        image = tf.expand_dims(image, 0, name="ExpandDims")
        image = tf.compat.v1.image.resize_bilinear(image, [SIZE, SIZE], name="ResizeBilinear")
        image = tf.multiply(tf.subtract(image, 128.0, name="Sub"), 1 / 128, name="Mul")
        statistics = [
            tf.constant(value, name=f"batchnorm/{i}") for i, value in enumerate(batch_norm(3))
        ]
        image = tf.identity(image, name="batchnorm")
        cells = tf.nn.avg_pool2d(image, PATCH, PATCH, "VALID", name="pool")
        w = {name: tf.constant(value, name=f"weights/{name}") for name, value in weights().items()}
        side = SIZE // PATCH
        kernel = tf.constant(weights()["conv"].reshape(side, side, 3, WIDTH), name="conv/kernel")
        conv = tf.tanh(tf.nn.conv2d(cells, kernel, 1, "VALID"))
        expand = tf.constant(weights()["expand"][None, None], name="expand/kernel")
        tf.identity(tf.nn.relu(tf.nn.conv2d(conv, expand, 1, "VALID")), name="pool_3")
        row = tf.reshape(
            graph.get_tensor_by_name("pool_3:0"), [1, FEATURES], name="pool_3/_reshape"
        )
        logits = tf.matmul(row, w["softmax"], name="softmax/logits/MatMul")
        logits = tf.nn.bias_add(logits, tf.ones([CLASSES]), name="softmax/logits")
        tf.nn.softmax(logits, name="softmax")
    definition = graph.as_graph_def()
    definition.versions.producer = 8
    (node,) = [node for node in definition.node if node.name == "batchnorm"]
    node.op = "BatchNormWithGlobalNormalization"
    node.input.extend([f"{value.op.name}" for value in statistics])
    node.attr["variance_epsilon"].f = 1e-3
    node.attr["scale_after_normalization"].b = scale
    pathlib.Path(path).write_bytes(definition.SerializeToString())
    return str(path)


def frozen_2015_by_hand(images, *, scale=False):
    """{'pool_3', 'logits'} of that graph for images [N, 299, 299, 3] in [-1, 1]."""
    mean, variance, beta, gamma = batch_norm(3)
    x = ((images.astype(np.float64) + 1) * 127.5 - 128) / 128
    x = (x - mean) / np.sqrt(variance + 1e-3) * (gamma if scale else 1) + beta
    return by_hand(x)
