"""Feature networks: Inception as SavedModel, TF-Hub module or frozen graph, or any network with the
same outputs.
"""

import contextlib
import hashlib
import json
import os
from typing import Any

import tensorflow as tf
from google.protobuf import message
from tensorflow.core.protobuf import saved_model_pb2

from hamgan import arguments

# TF-GAN's Inception, the network of published FIDs.
INCEPTION_HANDLE = "https://tfhub.dev/tensorflow/tfgan/eval/inception/1"

_OUTPUTS = ("logits", "pool_3")

# Beside a SavedModel: {"dataset": name of the data set it was trained on}, with what
# `hamgan.evaluation.own_features` adds.
TRAINED_ON = "trained_on.json"

_THREE_WAYS = (
    "There are three ways to have TF-GAN's Inception: run where TF-Hub can be reached; point "
    "TFHUB_CACHE_DIR at a "
    "cache that holds it; or name the folder, local or gs://, of a SavedModel that was fetched "
    "elsewhere: "
    "--gin_param=\"features.FeatureNetwork.handle = 'FOLDER'\" (data_prep/inception.py checks one)."
)


@arguments.take(size=arguments.whole(1), data_dir=arguments.optional(arguments.text()))
class FeatureNetwork:
    """Images [B, S, S, 3] in [-1, 1] -> {'pool_3': [B, D], 'logits': [B, C]}, float32.

    Args:
      handle: folder of a SavedModel (local or gs://; '{data_dir}' stands for the run's data folder)
        or a TF-Hub handle; both the TF2 format and the older one of TF1's hub are read. The default
        is TF-GAN's Inception network for photographs.
      size: side of the network's input in pixels; images are resized to it.
      data_dir: what '{data_dir}' in `handle` stands for.

    Attributes:
      trained_on: the data set that the network says it was trained on (trained_on.json beside it);
        None: it doesn't say.
      task: what it was trained to tell, where it was trained for scoring these images alone (see
        `hamgan.evaluation.own_features`); None: it wasn't, or doesn't say.

    Raises:
      ValueError: the network can't be had, takes other images, or lacks one of the two outputs.
    """

    def __init__(
        self, *, handle: str = INCEPTION_HANDLE, size: int = 299, data_dir: str | None = None
    ):
        self.handle = _in_data_dir(handle, data_dir)
        self.size = size
        folder = resolve(self.handle)
        self.digest = _digest(_files_of_saved_model(folder))
        about = about_of(folder)
        self.trained_on, self.task = about.get("dataset"), about.get("task")
        with _readable(folder):
            graphs = _graphs_of_tf1(folder)
            # Kept: its functions hold its variables by weak references.
            self._module = None if graphs else tf.saved_model.load(folder)
        if graphs:
            with _readable(folder):
                self._network = _network_of_tf1(folder, graphs, self.handle, size)
        else:
            self._network = _network(self._module, self.handle, size)

    def __call__(self, images: tf.Tensor) -> dict[str, tf.Tensor]:
        return self.outputs(images)

    def outputs(self, images: tf.Tensor) -> dict[str, tf.Tensor]:
        """Features of images as they are; to be called in a `tf.function`, on any device."""
        if images.shape[1] != self.size or images.shape[2] != self.size:
            # The kernel of TF1 and of the published numbers. tf.image.resize samples at pixel
            # centres instead.
            images = tf.compat.v1.image.resize_bilinear(
                images, [self.size, self.size], align_corners=False, half_pixel_centers=False
            )
        outputs = self._network(images)
        return {
            name: tf.cast(tf.reshape(outputs[name], [tf.shape(images)[0], -1]), tf.float32)
            for name in _OUTPUTS
        }

    def identity(self) -> dict[str, str | int]:
        """What a record says of the network."""
        own = {"trained_on": self.trained_on, "task": self.task} if self.task else {}
        return {"handle": self.handle, "digest": self.digest, "size": self.size, **own}


@arguments.take(path=arguments.text())
class FrozenGraph(FeatureNetwork):
    """Inception of December 2015 as one frozen graph: images and features as those of
    `FeatureNetwork`.

    The defaults are the tensors of `classify_image_graph_def.pb` (inception-2015-12-05.tgz): the
    network of OpenAI's Inception Score, of the first FID code and of ADM's evaluation, which all
    take the logits before their bias. TF-GAN 1 took `inceptionv1_for_inception_score.pb`
    (frozen_inception_v1_2015_12_05.tar.gz): input_name 'Mul:0', logits_name 'logits:0', low -1,
    high 1.

    Args:
      path: the file of the graph, a binary GraphDef, local or gs://; '{data_dir}' stands for the
        run's data folder.
      input_name: the tensor that takes the images [B, size, size, 3].
      pool_name: the tensor of the features.
      logits_name: the tensor of the logits.
      low: what a black pixel is at the input.
      high: what a white pixel is at the input.
      size: side of the input in pixels; images are resized to it first, so a resize in the graph
        has nothing to do.
      data_dir: what '{data_dir}' in `path` stands for.

    Raises:
      ValueError: the file isn't there or holds no graph, or the graph lacks one of the tensors.
    """

    def __init__(
        self,
        *,
        path,
        input_name="ExpandDims:0",
        pool_name="pool_3:0",
        logits_name="softmax/logits/MatMul:0",
        low=0.0,
        high=255.0,
        size=299,
        data_dir=None,
    ):
        self.handle = _in_data_dir(path, data_dir)
        self.size = size
        names = {"input_name": input_name, "pool_name": pool_name, "logits_name": logits_name}
        graph = _for_any_batch(_read_graph(self.handle), self.handle, **names)
        self.trained_on = self.task = None
        # Other tensors of one file are other features.
        self.digest = _digest([self.handle], repr((sorted(names.items()), low, high)))

        def scaled(images):
            return (images + 1.0) * ((high - low) / 2) + low

        tensors = {"pool_3": pool_name, "logits": logits_name}
        self._network = _function_of(graph, input_name, tensors, size, preprocess=scaled)


def _in_data_dir(path, data_dir):
    return (
        path.replace("{data_dir}", os.path.expanduser(data_dir or ""))
        if "{data_dir}" in path
        else path
    )


def resolve(handle: str) -> str:
    """The folder of a SavedModel, or of what a hub handle names, which is fetched where it must be.

    Raises:
      ValueError: it can't be had.
    """
    if handle.startswith(("https://", "http://")):
        try:
            # Here, since it imports a second Keras.
            import tensorflow_hub

            return tensorflow_hub.resolve(handle)
        except Exception as error:  # the hub raises whatever its transport raises
            raise ValueError(
                f"The feature network {handle} can't be fetched: {error}\n{_THREE_WAYS}"
            ) from error
    if tf.io.gfile.exists(os.path.join(handle, "saved_model.pb")):
        return handle
    raise ValueError(
        f"No SavedModel at {handle!r} (there is no {os.path.join(handle, 'saved_model.pb')}). The "
        "digits' network is "
        "made by: python data_prep/digits_features.py --data_dir=DATA_DIR; one of your own images "
        f"by: python data_prep/features.py --data=NAME --data_dir=DATA_DIR\n{_THREE_WAYS}"
    )


@contextlib.contextmanager
def _readable(folder):
    """What TensorFlow says of a damaged SavedModel, in one sentence.

    Raises:
      ValueError: its files can't be read: one is missing, cut or changed.
    """
    try:
        yield
    except (OSError, KeyError, IndexError, message.DecodeError, tf.errors.OpError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        files = ", ".join(os.path.relpath(path, folder) for path in _files_of_saved_model(folder))
        raise ValueError(
            f"The feature network in {folder} can't be read: {first[:300]} (files: {files}). One "
            "of them is damaged or missing: copy it again, or make it anew (the digits' by python "
            "data_prep/digits_features.py --data_dir=DATA_DIR in a folder without it)."
        ) from error


def _files_of_saved_model(folder):
    """The files of its graph and weights."""
    return [
        os.path.join(folder, "saved_model.pb"),
        *sorted(tf.io.gfile.glob(os.path.join(folder, "variables", "*"))),
    ]


def about_of(folder: str) -> dict[str, Any]:
    """What a network's folder says of its training (trained_on.json); nothing: it doesn't say."""
    try:
        with tf.io.gfile.GFile(os.path.join(folder, TRAINED_ON), "rb") as file:
            about = json.loads(file.read())
        return {"dataset": about["dataset"], **about}
    except (tf.errors.OpError, ValueError, KeyError, TypeError):
        # The digits' network used to say so by its name alone.
        is_digits = os.path.basename(os.path.normpath(folder)) == "digits_features"
        return {"dataset": "digits"} if is_digits else {}


def _digest(paths, text=""):
    """SHA-256 over files and a text, 16 hexadecimal digits."""
    digest = hashlib.sha256(text.encode())
    for path in paths:
        digest.update(os.path.basename(path).encode())
        with tf.io.gfile.GFile(path, "rb") as file:
            while block := file.read(1 << 24):
                digest.update(block)
    return digest.hexdigest()[:16]


def _function_of(graph, input_name, tensors, size, *, preprocess=lambda images: images):
    """A graph of constants as a function images -> {output name: tensor}."""

    def network(images):
        found = tf.graph_util.import_graph_def(
            graph,
            input_map={input_name: preprocess(images)},
            return_elements=list(tensors.values()),
            name="",
        )
        return dict(zip(tensors, found, strict=True))

    # Traced once: Inception is 90 MB of constants, which would go into each function that calls it.
    return tf.function(network).get_concrete_function(
        tf.TensorSpec([None, size, size, 3], tf.float32)
    )


def _graphs_of_tf1(folder):
    """The graphs (MetaGraphDef) of a SavedModel that TF1 wrote; an empty list for one of TF2."""
    with tf.io.gfile.GFile(os.path.join(folder, "saved_model.pb"), "rb") as file:
        graphs = saved_model_pb2.SavedModel.FromString(file.read()).meta_graphs
    return (
        []
        if any(graph.object_graph_def.nodes for graph in graphs)
        else sorted(graphs, key=_num_tags)
    )


def _num_tags(graph):
    return len(
        graph.meta_info_def.tags
    )  # the hub's graph for inference has none, that for training one


def _network_of_tf1(folder, graphs, handle, size):
    """`_network` of a SavedModel of TF1; its variables, which strategies can't place, become
    constants.
    """
    images = tf.TensorSpec([None, size, size, 3], tf.float32)
    signatures = [
        (graph, signature) for graph in graphs for signature in graph.signature_def.values()
    ]
    fitting = [pair for pair in signatures if set(_OUTPUTS) <= set(pair[1].outputs)]
    if not fitting:
        found = [sorted(signature.outputs) for _, signature in signatures]
        raise ValueError(f"{handle} must have the outputs {_OUTPUTS}; its signatures have {found}.")
    graph, signature = fitting[0]
    shapes = {
        name: tf.TensorShape(tensor.tensor_shape) for name, tensor in signature.inputs.items()
    }
    if len(shapes) != 1 or not images.shape.is_compatible_with(next(iter(shapes.values()))):
        raise ValueError(
            f"{handle} must take images {images.shape}, its signature takes {shapes}: set "
            "features.FeatureNetwork.size to the side of its input."
        )
    tensors = {name: signature.outputs[name].name for name in _OUTPUTS}
    # Not on an accelerator: a session would take all its memory.
    on_host = tf.compat.v1.ConfigProto(device_count={"GPU": 0, "TPU": 0})
    with tf.Graph().as_default() as inner, tf.compat.v1.Session(config=on_host) as session:
        tf.compat.v1.saved_model.load(session, list(graph.meta_info_def.tags), folder)
        nodes = [name.split(":")[0] for name in tensors.values()]
        frozen = tf.compat.v1.graph_util.convert_variables_to_constants(
            session, inner.as_graph_def(), nodes
        )
    (argument,) = signature.inputs.values()
    return _function_of(frozen, argument.name, tensors, size)


def _network(module, handle, size):
    """A function images -> {output name: tensor}; what doesn't fit is refused here, before any
    image is drawn.
    """
    images = tf.TensorSpec([None, size, size, 3], tf.float32)
    for signature in module.signatures.values():
        if set(_OUTPUTS) <= set(signature.structured_outputs):
            arguments = signature.structured_input_signature[1]
            if len(arguments) != 1 or not images.is_compatible_with(next(iter(arguments.values()))):
                raise ValueError(
                    f"{handle} must take images {images.shape}, its signature takes {arguments}: "
                    "set "
                    "features.FeatureNetwork.size to the side of its input."
                )
            (argument,) = arguments
            return lambda images: signature(**{argument: images})
    found = {
        name: sorted(signature.structured_outputs) for name, signature in module.signatures.items()
    }
    if not callable(module):
        raise ValueError(f"{handle} must have the outputs {_OUTPUTS}; its signatures have {found}.")
    try:
        outputs = (
            tf.function(lambda images: module(images))
            .get_concrete_function(images)
            .structured_outputs
        )
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{handle} can't be called with images {images.shape} (features.FeatureNetwork.size is "
            f"{size}): {error}"
        ) from error
    if not isinstance(outputs, dict) or not set(_OUTPUTS) <= set(outputs):
        outputs = sorted(outputs) if isinstance(outputs, dict) else type(outputs).__name__
        raise ValueError(
            f"{handle} must have the outputs {_OUTPUTS}, got {outputs}; its signatures have "
            f"{found}."
        )
    return module


def _read_graph(path):
    if not tf.io.gfile.exists(path):
        raise ValueError(
            f"There is no frozen graph {path!r}. Fetch inception-2015-12-05.tgz where the web can "
            "be reached and name "
            'the classify_image_graph_def.pb in it: --gin_param="features.FrozenGraph.path = '
            "'FILE'\"."
        )
    graph = tf.compat.v1.GraphDef()
    try:
        with tf.io.gfile.GFile(path, "rb") as file:
            graph.ParseFromString(file.read())
    except Exception as error:  # the parser's own type of error is private to protobuf
        raise ValueError(
            f"{path} must hold a binary GraphDef, but can't be parsed as one: {error}"
        ) from error
    return graph


def _for_any_batch(graph, path, **names):
    """The part of a frozen graph between its input and outputs, made to take any number of images.

    Raises:
      ValueError: it lacks one of the tensors.
    """
    nodes = {node.name: node for node in graph.node}
    missing = {
        argument: name for argument, name in names.items() if name.split(":")[0] not in nodes
    }
    if missing:
        inputs = [node.name for node in graph.node if node.op == "Placeholder"]
        raise ValueError(
            f"{path} must hold the tensors {missing}; it has {len(nodes)} nodes, the inputs "
            f"{inputs}, and ends with "
            f"{[node.name for node in graph.node[-3:]]}."
        )
    # What decodes a JPEG file ahead of the input falls away.
    images = nodes[names["input_name"].split(":")[0]]
    images.op = "Placeholder"
    del images.input[:]
    images.attr.clear()
    images.attr["dtype"].type = tf.float32.as_datatype_enum
    graph = tf.compat.v1.graph_util.extract_sub_graph(
        graph, [names[n].split(":")[0] for n in ("pool_name", "logits_name")]
    )
    nodes = {node.name: node for node in graph.node}
    for node in list(graph.node):
        if node.op == "BatchNormWithGlobalNormalization":
            _modernise_batch_norm(graph, node)
        # Made for one image, the graph of 2015 reshapes its features to [1, 2048].
        if node.op == "Reshape" and nodes[node.input[1]].op == "Const":
            shape = tf.make_ndarray(nodes[node.input[1]].attr["value"].tensor).copy()
            if shape.size and shape[0] == 1:
                shape[0] = -1
                nodes[node.input[1]].attr["value"].tensor.CopyFrom(tf.make_tensor_proto(shape))
    return graph


def _modernise_batch_norm(graph, node):
    """Turns the batch norm of 2015, which functions of today's TensorFlow refuse, into the one that
    replaced it.
    """
    x, mean, variance, beta, gamma = node.input
    epsilon = node.attr["variance_epsilon"].f
    if not node.attr["scale_after_normalization"].b:
        ones = graph.node.add(name=f"{node.name}/ones", op="OnesLike", input=[gamma])
        ones.attr["T"].type = tf.float32.as_datatype_enum
        gamma = ones.name
    node.op = "FusedBatchNormV3"
    del node.input[:]
    node.input.extend([x, gamma, beta, mean, variance])
    node.attr.clear()
    for name in ("T", "U"):
        node.attr[name].type = tf.float32.as_datatype_enum
    node.attr["epsilon"].f = epsilon
    node.attr["is_training"].b = False
