"""Checks of what a run needs of its machine: devices, folders, disk, memory, feature network, input
speed.

Each is a function that returns an `Outcome`, or raises a `ValueError` whose message says what to
do.
"""

import os
import shutil
import sys
import time

import numpy as np
import psutil
import tensorflow as tf
from tqdm import tqdm

from hamgan import distribution
from hamgan.checks.outcome import describe, fail, ok, skip, warn
from hamgan.run import checkpoints

# Beside the checkpoints: sample grids, TensorBoard, metrics.
_DISK_MARGIN = 500 * 2**20
# What `make demo` took at most: TensorFlow itself, mostly.
_MEMORY_MARGIN = int(1.2 * 2**30)
# A tensor of a number in a shuffle buffer, about.
_NUMBER_BYTES = 200

_PROBE = b"written by scripts/doctor.py to see whether it can; may be deleted\n"


def bar(description, *, unit, total=None, progress=True):
    """A progress bar that vanishes when it is full."""
    interval = 0.5 if sys.stderr.isatty() else 15
    return tqdm(
        None,
        description,
        total,
        leave=False,
        unit=unit,
        unit_scale=True,
        disable=not progress,
        mininterval=interval,
    )


def size_text(num_bytes):
    """A number of bytes for people: '3.2 GB'."""
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.3g} TB"


BATCH_REMEDY = (
    '--gin_param="trainer.Trainer.batch_size = N", or correct the gin file as the message says'
)
FEATURES_REMEDY = (
    "one of three: run where TF-Hub can be reached; point TFHUB_CACHE_DIR at a cache that holds "
    "the network; or name "
    "its folder: --gin_param=\"features.FeatureNetwork.handle = 'FOLDER'\". Training alone "
    "(--mode=train) needs none"
)


def devices(*, create):
    """Whether there is what to compute on. Value: the strategy, as `create()` gives it."""
    strategy = create()
    names = ", ".join(
        device.rpartition("device:")[2] for device in strategy.extended.worker_devices
    )
    return ok(f"{names} (replicas: {strategy.num_replicas_in_sync})", value=strategy)


def batch(experiment, strategy, *, replicas=None):
    """Whether networks and trainer can be built and the batch divided. Value: the trainer.

    Args:
      experiment: an `Experiment`.
      strategy: of this machine.
      replicas: of the machine the run is meant for; None: those of `strategy`.
    """
    trainer = experiment.trainer(
        strategy=strategy, generator=experiment.generator, discriminator=experiment.discriminator
    )
    replicas = replicas or strategy.num_replicas_in_sync
    try:
        share = distribution.per_replica_batch_size(trainer.batch_size, replicas)
    except ValueError as error:
        return fail(str(error), BATCH_REMEDY, value=trainer)
    microbatches = trainer.microbatches
    if share % microbatches:
        return fail(
            f"microbatches ({microbatches}) must divide the batch of a replica ({share})",
            BATCH_REMEDY,
            value=trainer,
        )
    counts = (network.count_params() for network in (trainer.generator, trainer.discriminator))
    return ok(
        "{} images a step, {} a replica (replicas: {}); parameters: G {:,}, D {:,}".format(
            trainer.batch_size, share, replicas, *counts
        ),
        value=trainer,
    )


def sizes(trainer, dataset):
    """Whether data set and networks agree on the size of images and the number of classes."""
    parts = {
        "data set": dataset,
        "generator": trainer.generator,
        "discriminator": trainer.discriminator,
    }
    differing = []
    for name in ("image_size", "num_classes"):
        values = {part: getattr(owner, name) for part, owner in parts.items()}
        if len(set(values.values())) > 1:
            differing.append(
                f"{name}: " + ", ".join(f"{value} of the {part}" for part, value in values.items())
            )
    if differing:
        return fail(
            "; ".join(differing),
            "set IMAGE_SIZE and NUM_CLASSES in the gin file, and none of these parameters alone",
        )
    return ok(
        f"{dataset.image_size}x{dataset.image_size} images, {dataset.num_classes} classes "
        "everywhere"
    )


def folder(*, path, create, unwritable=fail):
    """Whether a file can be written, read and deleted in a folder. Value: the path.

    Args:
      path: local or gs://.
      create: make the folder if it isn't there.
      unwritable: `fail` or `warn`: what it is when files can't be written there.
    """
    path = os.path.expanduser(path)
    probe = os.path.join(path, f".doctor-{os.getpid()}")
    action = "made" if create else "found"
    try:
        if create:
            tf.io.gfile.makedirs(path)
        elif not tf.io.gfile.isdir(path):
            return fail(
                f"{path} isn't a folder", "correct --data_dir, or prepare the data set there"
            )
        action = "written to"
        with tf.io.gfile.GFile(probe, "wb") as file:
            file.write(_PROBE)
        action = "read from"
        with tf.io.gfile.GFile(probe, "rb") as file:
            read = file.read()
        action = "deleted from"
        tf.io.gfile.remove(probe)
    except tf.errors.OpError as error:
        message = f"{path} can't be {action}: {type(error).__name__}: {describe(error)}"
        return unwritable(message, _folder_remedy(path))
    if read != _PROBE:
        return fail(
            f"{path} gives back {len(read)} bytes where {len(_PROBE)} were written",
            "choose another folder",
        )
    return ok(f"{path}: a file was written, read and deleted", value=path)


def _folder_remedy(path):
    if not path.startswith("gs://"):
        return f"choose another folder, or see who may write there: ls -ld {path}"
    bucket = path.removeprefix("gs://").split("/")[0]
    return (
        f"gcloud storage buckets add-iam-policy-binding gs://{bucket} "
        "--member=serviceAccount:ACCOUNT "
        "--role=roles/storage.objectAdmin with the account that runs this; a VM also needs the "
        "scope cloud-platform; "
        f"a bucket that isn't there: gcloud storage buckets create gs://{bucket} "
        "--location=REGION, the TPU's"
    )


def disk(experiment, trainer, path):
    """Whether the disk of model_dir, `path`, holds what the run will write there."""
    schedule = experiment.schedule
    each = sum(
        int(np.prod(variable.shape)) * variable.dtype.size
        for variable in trainer.variables().values()
    )
    if schedule.max_to_keep:
        stay = schedule.max_to_keep + schedule.keep_best
    else:
        stay = schedule.num_steps // schedule.save_every
    kept = stay + 1  # the oldest is deleted when the newest is complete
    if "://" in path:
        return ok(f"{kept} checkpoints of {size_text(each)} go to a bucket: its limit isn't known")
    missing = max(1, kept - len(checkpoints.available(path)))
    needed = missing * each + _DISK_MARGIN
    what = (
        f"{missing} checkpoints of {size_text(each)} and {size_text(_DISK_MARGIN)} "
        "for the rest are to be written"
    )
    free = shutil.disk_usage(path).free
    if free < needed:
        return fail(
            f"{what}, but only {size_text(free)} are free at {path}",
            "free space, choose another --model_dir, or keep fewer checkpoints: "
            '--gin_param="loop.Schedule.max_to_keep = 2"',
        )
    return ok(f"{what}, {size_text(free)} are free")


def memory(dataset, sizes):
    """Whether the host's memory holds the shuffle buffer and the data that is kept decoded.

    Args:
      dataset: a `hamgan.data.ImageDataset`.
      sizes: {path: bytes}, its files.
    """
    count = dataset.num_examples(dataset.train_split)
    parts = dataset.info.splits[dataset.train_split].file_instructions
    held = {os.fspath(part.filename): part.examples_in_shard for part in parts}
    held = {path: number for path, number in held.items() if path in sizes}
    if not held:
        return skip(f"no file of {dataset.train_split} is there")
    if dataset.reads_anywhere(dataset.train_split):
        kind, each = "numbers of records", _NUMBER_BYTES
    else:
        kind, each = "records", sum(sizes[path] for path in held) / sum(held.values())
    length = min(dataset.shuffle_buffer, count)
    decoded = min(dataset.cache_bytes, count * dataset.image_size**2 * 3 * 4)
    needed = length * each + decoded + _MEMORY_MARGIN
    available = psutil.virtual_memory().available
    what = (
        f"shuffle buffer {size_text(length * each)} ({length:,} {kind} of {size_text(each)}), "
        "decoded images up to "
        f"{size_text(decoded)}, {size_text(_MEMORY_MARGIN)} for the rest; available: "
        f"{size_text(available)}"
    )
    remedy = "take a host with more memory, or end other programs"
    fitting = max(1, int(0.4 * available / each))
    if fitting < length:
        remedy += f', or --gin_param="data.ImageDataset.shuffle_buffer = {fitting}"'
    if needed > available:
        return fail(what, remedy)
    if needed > 0.7 * available:
        return warn(what, remedy)
    return ok(what)


def features(experiment, *, data_dir, required):
    """Whether the evaluation's feature network can be had.

    Args:
      experiment: an `Experiment`.
      data_dir: the run's data folder.
      required: whether the run evaluates; else its absence is only a warning.
    """
    try:
        network = experiment.protocol.features(data_dir=data_dir)
    except (ValueError, OSError, tf.errors.OpError) as error:
        # A message of several lines ends with these three ways.
        return (fail if required else warn)(describe(error), FEATURES_REMEDY)
    return ok(f"{network.handle} loads, digest {network.digest}", value=network)


def speed(dataset, trainer, *, seconds, steps_per_second=None, progress=True):
    """How many images a second the input gives when nothing else runs.

    Args:
      dataset: a `hamgan.data.ImageDataset`.
      trainer: the `Trainer`.
      seconds: how long to measure after the first batch, which fills the shuffle buffer.
      steps_per_second: the device's, if known: less input than that is a warning.
      progress: draw a progress bar.
    """
    if seconds <= 0:
        return skip("not measured")
    start = time.monotonic()
    batches = iter(dataset.train_batches(batch_size=trainer.batch_size, seed=trainer.seed))
    next(batches)
    first = time.monotonic() - start
    count, start = 0, time.monotonic()
    with bar("input", unit="image", progress=progress) as shown:
        while (elapsed := time.monotonic() - start) < seconds:
            next(batches)
            count += trainer.batch_size
            shown.update(trainer.batch_size)
    rate = count / elapsed
    what = (
        f"{rate:,.0f} images/s over {elapsed:.1f} s, after {first:.1f} s "
        f"for the first batch of {trainer.batch_size}"
    )
    if steps_per_second:
        needed = steps_per_second * trainer.batch_size * trainer.discriminator_steps
        what += f"; {steps_per_second:g} steps/s take {needed:,.0f}"
        if rate < needed:
            return warn(
                what,
                "the device will wait for data: store the images as small squares, take a host "
                "with more cores, or "
                "share the input among more hosts",
            )
    return ok(what)
