"""Whether a point can be built, and what it costs: its networks are built, counted and let go."""

import dataclasses

import numpy as np
import tensorflow as tf

from hamgan import distribution, preview, watching
from hamgan.benchmarks import context, context_modules, measure
from hamgan.context import RandomBases
from hamgan.layers import layers_of

# Images for which the memory of a module is measured.
MODULE_BATCH = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Case:
    """A network's own module, as `benchmarks.context.Subject` takes it."""

    shape: context_modules.Shape


def dataset_of(experiment, data_dir):
    """The data set of an experiment, whose files are there; None where data_dir is: it isn't asked.

    Raises:
      ValueError: there is no such data set, or a file of it is missing.
    """
    if data_dir is None:
        return None
    dataset = experiment.dataset(data_dir=data_dir)
    if hasattr(dataset, "check_files"):  # a data set of one's own may have no files
        dataset.check_files()
    return dataset


def build(experiment, *, replicas=1, data_dir=None):
    """The trainer of an experiment, on the CPU.

    Args:
      experiment: an `Experiment`.
      replicas: which its batch must be cut for.
      data_dir: of the images, which are asked for; None: they aren't.

    Raises:
      ValueError: it can't be built: images that aren't there, a size that doesn't fit, a batch
        that replicas or microbatches don't divide, or a ham with more bases than dimensions.
    """
    dataset_of(experiment, data_dir)
    trainer = experiment.trainer(
        strategy=distribution.create_strategy("cpu", across_hosts=False),
        generator=experiment.generator,
        discriminator=experiment.discriminator,
    )
    share = distribution.per_replica_batch_size(trainer.batch_size, replicas)
    if share % trainer.microbatches:
        raise ValueError(
            f"microbatches ({trainer.microbatches}) must divide the batch of a replica ({share}: "
            f"batch_size {trainer.batch_size} on {replicas} replicas)."
        )
    for name in ("generator", "discriminator"):
        _check_ranks(name, getattr(trainer, name))
    return trainer


def _check_ranks(name, network):
    for bases in layers_of(network, RandomBases):
        _, dim, rank = bases.shape
        if rank > dim:
            raise ValueError(
                f"rank must not exceed d: the ham of the {name} would decompose {dim} dimensions "
                f"into {rank}, which leaves nothing out."
            )


def count(trainer, *, memory=True):
    """What a trainer's networks cost.

    Args:
      trainer: a `Trainer`, which is of no use after it.
      memory: measure the modules' memory too, in a process that was started with
        `measure.MEMORY_ENVIRONMENT`.

    Returns:
      {name: number}: 'parameters' (trained, of both networks) and 'macs' (multiply-adds of a
        forward pass of one image through both), 'module_parameters' and 'module_macs' of their
        context modules alone, 'memory_bytes' (the estimate of `preview` for a training step), and
        'module_memory_bytes' (peak of forward and backward passes of MODULE_BATCH images, the
        larger of the two modules').
    """
    networks = {"generator": trainer.generator, "discriminator": trainer.discriminator}
    estimate = preview.memory_estimate(trainer)["together"] * watching.GIB
    found = {
        "parameters": sum(map(num_parameters, networks.values())),
        "macs": sum(_macs(name, network) for name, network in networks.items()),
        "memory_bytes": int(estimate),
        "module_parameters": 0,
        "module_macs": 0,
        "module_memory_bytes": 0,
    }
    for name, network in networks.items():
        if network.context is None:
            continue
        found["module_parameters"] += num_parameters(network.context)
        found["module_macs"] += measure.count_macs(*_forward(_subject(name, network, 1)))
        if memory:
            call = _subject(name, network, MODULE_BATCH).call("training")
            peak = measure.peak_memory(call) or 0
            found["module_memory_bytes"] = max(found["module_memory_bytes"], peak)
    return found


def num_parameters(layer):
    """How many numbers of a layer are trained."""
    return int(sum(np.prod(variable.shape) for variable in layer.trainable_variables))


def _macs(name, network):
    labels, keys = tf.TensorSpec([1], tf.int32), tf.TensorSpec([1, 2], tf.int32)
    if name == "generator":
        inputs = tf.TensorSpec([1, network.latent_dim])
    else:
        inputs = tf.TensorSpec([1, network.image_size, network.image_size, 3])
    return measure.count_macs(
        lambda x, y, k: network(x, y, training=False, keys=k), inputs, labels, keys
    )


def _subject(name, network, batch):
    layer = network.context
    _, height, width, channels = layer.get_build_config()["input_shape"]
    shape = context_modules.Shape(
        name=name,
        batch=batch,
        height=height,
        width=width,
        channels=channels,
        rank=1,  # the layer has its own
        num_classes=network.num_classes if name == "generator" else None,
    )
    return context.Subject(_Case(shape=shape), jit=False, layer=layer)


def _forward(subject):
    function, arguments = subject.function("forward")
    return function, *arguments
