"""What the segmentation networks of the published tables cost: counted, and measured."""

import contextlib
import dataclasses
import math
import statistics

import keras
import tensorflow as tf

from hamgan import normalization
from hamgan.benchmarks import measure

# Operations of TensorFlow that are convolutions, whose second input is the kernel.
_CONVOLUTIONS = ("Conv2D", "DepthwiseConv2dNative")
# What tables count beside products: operations on each element of a norm's input, and of what a
# bilinear enlargement gives.
_NORMS = {
    normalization.BatchNorm: 1,
    keras.layers.GroupNormalization: 5,
    keras.layers.LayerNormalization: 5,
}
_BILINEAR = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Published:
    """What the tables say of a network.

    Attributes:
      millions: of parameters, or None.
      giga: multiply-adds at 512x512 in 10^9, or None.
      of_convolutions: whether these are of the convolutions alone.
    """

    millions: float | None = None
    giga: float | None = None
    of_convolutions: bool = False


# By the names of gin files.
NETWORKS = {
    "hamnet_voc": Published(),
    "hamnet_plus_voc": Published(),
    # Convolutions alone, published for four times as many pixels.
    "hamnet_ade20k": Published(millions=57, giga=918 / 4, of_convolutions=True),
    "hamnet_plus_ade20k": Published(millions=69, giga=1111 / 4, of_convolutions=True),
    "hamnet_van_tiny": Published(millions=11.9, giga=50.8),
    "hamnet_van_small": Published(millions=24.2, giga=100.6),
    "hamnet_van_base": Published(millions=36.9, giga=153.6),
    "hamnet_van_large": Published(millions=55.1, giga=227.7),
    "light_ham_tiny_d256": Published(millions=4.2, giga=6.5),
    "light_ham_tiny": Published(millions=4.9, giga=11.3),
    "light_ham_small_d256": Published(millions=13.8, giga=15.8),
    "light_ham_small": Published(millions=14.7, giga=21.4),
    "light_ham_base": Published(millions=27.4, giga=34.4),
    "light_ham_large": Published(millions=45.6, giga=55.0),
    "light_ham_huge": Published(millions=61.1, giga=71.8),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Count:
    """What a network takes, counted in its graph.

    Attributes:
      parameters: trained ones.
      convolutions: multiply-adds; the bread behind the ham as published, over all pixels. (Here it
        is applied to the bases.)
      products: multiply-adds of the ham's matrix products.
      others: operations of norms and bilinear enlargements, which the tables of VAN's networks
        count too.
    """

    parameters: int
    convolutions: int
    products: int
    others: int

    def giga(self, published):
        """Multiply-adds in 10^9 as a table counts them."""
        total = self.convolutions
        if not published.of_convolutions:
            total += self.products + self.others
        return total / 1e9


def count(constructor, size=512):
    """The `Count` of a network in inference on one image, which isn't run.

    Args:
      constructor: of a `segmentation.segmenter.Segmenter`.
      size: side of the image.
    """
    with keras.StatelessScope(initialize_variables=False):
        network = constructor()
        keys = tf.zeros([1, 2], tf.int32)
        seen = []

        def infer(image):
            found = network(image, keys=keys)
            seen.append(found)
            return found.logits

        image = tf.TensorSpec([1, size, size, 3], tf.float32)
        with _norms_counted() as norms:
            graph = tf.function(infer).get_concrete_function(image).graph
        convolutions, products = _of_graph(graph)
        result = Count(
            parameters=sum(math.prod(v.shape) for v in network.trainable_variables),
            convolutions=convolutions + _bread(network, seen[0].features),
            products=products,
            others=sum(norms) + _BILINEAR * _enlarged(network, seen[0], size),
        )
    keras.utils.clear_session(free_memory=False)
    return result


def _of_graph(graph):
    convolutions = products = 0
    for operation in graph.get_operations():
        if operation.type in _CONVOLUTIONS:
            height, width, inputs, outputs = operation.inputs[1].shape
            output = operation.outputs[0]
            # A dilation is computed on parts of the image, which are padded to one size.
            joined = [c for c in output.consumers() if c.type == "BatchToSpaceND"]
            output = joined[0].outputs[0] if joined else output
            convolutions += math.prod(output.shape[:3]) * height * width * inputs * outputs
        elif operation.type == "BatchMatMulV2":
            batch, rows, columns = operation.outputs[0].shape
            left = operation.inputs[0].shape
            inner = left[1] if operation.get_attr("adj_x") else left[2]
            products += batch * rows * columns * inner
    return convolutions, products


@contextlib.contextmanager
def _norms_counted():
    """A list that the norms that are called within add their operations to."""
    found = []
    before = {}

    def counting(call, factor):
        def counted(self, x, *args, **kwargs):
            found.append(factor * math.prod(x.shape[1:]))
            return call(self, x, *args, **kwargs)

        return counted

    for kind, factor in _NORMS.items():
        before[kind] = kind.call
        kind.call = counting(kind.call, factor)
    try:
        yield found
    finally:
        for kind, call in before.items():
            kind.call = call


def _bread(network, features):
    """Multiply-adds of the 1x1 convolution behind the ham on all pixels."""
    burger = network.head.hamburger
    if burger is None:
        return 0
    bread = getattr(burger, "cheese", burger.upper_bread)
    return math.prod(features["squeeze"].shape[1:3]) * math.prod(bread.kernel.shape)


def _enlarged(network, found, size):
    """Elements that bilinear enlargements give: features of the head's stages, and logits."""
    stages = [found.features[f"layer{stage}"] for stage in network.head.stages]
    pixels = math.prod(stages[0].shape[1:3])
    resized = sum(pixels * stage.shape[-1] for stage in stages[1:])
    return resized + size * size * network.num_classes


class MadeCrops:
    """Random crops and labels, which a trainer takes for a data set.

    Args:
      size: side of a crop.
      num_classes: of the labels.
    """

    def __init__(self, size, num_classes):
        self._size = size
        self._num_classes = num_classes

    def train_batches(self, *, batch_size, **order):
        """The same batch for ever; the order has no effect."""
        del order
        shape = [batch_size, self._size, self._size]
        batch = {
            "image": tf.random.stateless_normal([*shape, 3], [0, 1]),
            "label": tf.random.stateless_uniform(shape, [0, 2], 0, self._num_classes, tf.int32),
        }
        return tf.data.Dataset.from_tensors(batch).repeat()


def cost(experiment, *, size, step_images, repeats, strategy):
    """Measures inference on one image and a training step, each after a first one.

    Args:
      experiment: a `segmentation.experiment.SegmentationExperiment`.
      size: side of the image.
      step_images: images of a training step.
      repeats: of each, of which the median counts.
      strategy: where to compute.

    Yields:
      {name: number}: 'inference_seconds' and 'inference_bytes', then 'step_seconds' and
      'step_bytes'; bytes beyond weights and input, None where they can't be measured.
    """
    device = strategy.extended.worker_devices[0]
    trainer = experiment.trainer(
        strategy=strategy, network=experiment.network, batch_size=step_images
    )
    image = tf.random.stateless_normal([1, size, size, 3], [0, 1])
    keys = tf.zeros([1, 2], tf.int32)
    infer = tf.function(lambda x: trainer.network(x, keys=keys).logits)
    batches = trainer.batches(MadeCrops(size, trainer.network.num_classes))
    calls = {
        "inference": lambda: infer(image),
        "step": lambda: trainer.train_steps(batches, 1),
    }
    for name, call in calls.items():
        with tf.device(device):
            call()
            taken = statistics.median(measure.seconds(call) for _ in range(repeats))
            peak = measure.peak_memory(call, device=device, repeats=min(repeats, 3))
        yield {f"{name}_seconds": taken, f"{name}_bytes": peak}


def table(rows):
    """Rows of `cost` and `count`, {'name', 'count', 'published', ...}, as a Markdown table."""
    lines = [
        "| network | parameters M | published | multiply-adds G | published | inference s | GB "
        "| step s | GB |",
        "|---" * 9 + "|",
    ]

    def cell(row, key, scale=1.0, digits=2):
        value = row.get(key)
        return "–" if value is None else f"{value * scale:.{digits}f}"

    for row in rows:
        if "error" in row:
            lines.append(f"| {row['name']} | {row['error']} |" + " |" * 7)
            continue
        cells = [
            cell(row, "parameters", 1e-6),
            cell(row, "published_millions", digits=1),
            cell(row, "giga", digits=1),
            cell(row, "published_giga", digits=1),
            *(
                cell(row, f"{what}_{key}", scale)
                for what in ("inference", "step")
                for key, scale in (("seconds", 1.0), ("bytes", 1e-9))
            ),
        ]
        lines.append(f"| {row['name']} | {' | '.join(cells)} |")
    return "\n".join(lines)
