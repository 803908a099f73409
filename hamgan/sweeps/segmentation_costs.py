"""Whether a point of a segmentation sweep can be built, and what it costs."""

import tensorflow as tf

from hamgan import distribution
from hamgan.benchmarks import measure
from hamgan.segmentation.experiment import check_classes
from hamgan.sweeps.costs import dataset_of, num_parameters

# Of the image that multiply-adds are counted for, as in published tables.
SIDE = 512


def build(experiment, *, replicas=1, data_dir=None):
    """The trainer of a `SegmentationExperiment`, on the CPU.

    Args:
      experiment: the `SegmentationExperiment`.
      replicas: which its batch must be cut for.
      data_dir: of the images, which are asked for; None: they aren't.

    Raises:
      ValueError: it can't be built: images that aren't there, other classes than theirs, or a batch
        that replicas don't divide.
    """
    dataset = dataset_of(experiment, data_dir)
    strategy = distribution.create_strategy("cpu", across_hosts=False)
    trainer = experiment.trainer(strategy=strategy, network=experiment.network)
    if dataset is not None:
        check_classes(trainer.network, dataset)
    distribution.per_replica_batch_size(trainer.batch_size, replicas)
    return trainer


def check_fields(experiment, fields, *, data_dir):
    """ValueError for fields of single classes, 'class_iou/cat', that the data set doesn't have.

    Args:
      experiment: the `SegmentationExperiment`.
      fields: names of fields of an evaluation's record.
      data_dir: of the images; None: they aren't asked.
    """
    asked = [name.partition("/")[2] for name in fields if name.startswith("class_")]
    if data_dir is None or not asked:
        return
    known = experiment.dataset(data_dir=data_dir).class_names
    if strange := [name for name in asked if name not in known]:
        raise ValueError(
            f"Sweep.details must name classes of {', '.join(known)}; got {', '.join(strange)}."
        )


def count(trainer):
    """What a trainer's network costs.

    Args:
      trainer: a `segmentation.training.SegmentationTrainer`.

    Returns:
      {name: number}: 'parameters' (trained) and 'macs' (multiply-adds of inference on one image of
        SIDE x SIDE pixels), 'module_parameters' and 'module_macs' of the Hamburger, or what stands
        in its place, alone.
    """
    network = trainer.network
    image, keys = tf.TensorSpec([1, SIDE, SIDE, 3]), tf.TensorSpec([1, 2], tf.int32)
    squeezed = []

    def infer(x, k):
        found = network(x, keys=k)
        squeezed.append(found.features.get("squeeze"))
        return found.logits

    found = {
        "parameters": num_parameters(network),
        "macs": measure.count_macs(infer, image, keys),
        "module_parameters": 0,
        "module_macs": 0,
    }
    module = network.head.hamburger
    if module is not None:
        x = tf.TensorSpec(squeezed[0].shape, squeezed[0].dtype)
        found["module_parameters"] = num_parameters(module)
        found["module_macs"] = measure.count_macs(lambda x, k: module(x, keys=k), x, keys)
    return found
