"""Checks of what an evaluation compares with: enough real images, and a network that knows them.

Each is a function that returns an `Outcome`, or raises a `ValueError` whose message says what to
do.
"""

import re

import tensorflow as tf

from hamgan.checks.outcome import ok, skip, warn
from hamgan.evaluation import reference as references
from hamgan.evaluation import scoring

COUNTS_REMEDY = (
    "take a split with more images (data.ImageDataset.reference_split), fewer in the protocol, or "
    "--mode=train"
)
READ_ONLY = (
    "nothing, if that is meant: the features of real images are kept in model_dir then, and each "
    "run computes its own"
)


def read_only(message, remedy):
    """The outcome of a data folder that can only be read."""
    del remedy
    return warn(message, READ_ONLY)


def counts(experiment, dataset, *, required):
    """Whether there are as many real images as the protocol wants. Value: how many are compared
    with.

    Args:
      experiment: an `Experiment`.
      dataset: a `hamgan.data.ImageDataset`.
      required: whether the run evaluates; else too few are only a warning.

    Raises:
      ValueError: `required`, and there are too few.
    """
    try:
        split, count = references.check_counts(dataset, experiment.protocol)
    except ValueError as error:
        if required:
            raise
        return warn(str(error), COUNTS_REMEDY)
    return ok(
        f"{count:,} images of {split} against {experiment.protocol.num_samples:,} samples",
        value=count,
    )


def rank(experiment, network, count):
    """Whether samples and real images are more than a network's features."""
    images = tf.zeros([1, network.size, network.size, 3])
    width = int(network(images)["pool_3"].shape[1])
    words = scoring.too_few(width, experiment.protocol.num_samples, count)
    if words:
        return warn(
            words,
            "take more images and protocol.Protocol.num_samples, or a network with fewer features",
        )
    return ok(f"{width:,} features, fewer than images and samples")


def trained_on(dataset, network):
    """Whether a feature network was trained on the data that is scored."""
    name = network.trained_on
    if name is None:
        return skip(f"{network.handle} doesn't say on what it was trained")
    # Packed as squares of some size, it is the same data.
    if re.fullmatch(rf"{re.escape(name)}(_\d+)?", dataset.info.name):
        return ok(f"trained on {name}")
    return warn(
        f"{network.handle} was trained on {name}, and {dataset.info.name} is scored: its features "
        "tell little of these images, and the FID can't be compared with others",
        "take TF-GAN's Inception (features.FeatureNetwork without a handle), or a network of your "
        "own that was trained on such images",
    )
