"""Draws samples from a checkpoint: a labelled grid, or an array of them.

    python scripts/sample.py --model_dir=runs/digits
    python scripts/sample.py --model_dir=runs/digits --classes=3,7 --per_class=8 --seed=1 \\
        --output=threes_and_sevens.png
    python scripts/sample.py --model_dir=runs/digits --per_class=100 --output=samples.npz

Sample i is a function of (seed, i): the same command gives the same images, on any device up to
rounding. Only with --batch_norm=batch does it depend on the others.
"""

import io
import sys

import numpy as np
import tensorflow as tf
from absl import flags

from hamgan import distribution, grids, pictures, sampling
from hamgan.cli import common, configuration, paths
from hamgan.run import checkpoints, class_names, records
from hamgan.run.folder import Folder

FLAGS = flags.FLAGS


def standing_statistics(sampler):
    """Standing statistics of batches that any number of replicas can share."""
    replicas = sampler.strategy.num_replicas_in_sync
    return sampling.StandingStatistics(sampler, batch_size=-(-256 // replicas) * replicas)


BATCH_NORMS = {
    "moving_averages": sampling.MovingAverages,
    "standing_statistics": standing_statistics,
    "batch": sampling.BatchStatistics,
}


def main():
    output = FLAGS.output or Folder(FLAGS.model_dir).samples
    if not output.endswith((".png", ".npz")):
        raise ValueError(f"--output must end in .png (a grid) or .npz (arrays), got {output!r}.")
    experiment = configuration.load_experiment(**common.configuration_flags())
    path = checkpoints.find(FLAGS.model_dir, FLAGS.checkpoint)
    strategy = distribution.create_strategy(FLAGS.accelerator, FLAGS.tpu, across_hosts=False)
    with strategy.scope():
        generator = experiment.generator()
    sampling.restore(generator, path, weights=FLAGS.weights)

    classes = FLAGS.classes or grids.grid_classes(generator.num_classes)
    classes = [int(c) for c in classes]
    labels = np.repeat(classes, FLAGS.per_class)
    batch_size = strategy.num_replicas_in_sync * max(
        1, min(64, len(labels)) // strategy.num_replicas_in_sync
    )
    sampler = sampling.Sampler(
        generator,
        strategy=strategy,
        batch_size=batch_size,
        seed=FLAGS.seed,
        truncation=FLAGS.truncation,
    )
    batch_norm = FLAGS.batch_norm or (
        "standing_statistics" if FLAGS.weights == "ema" else "moving_averages"
    )
    with BATCH_NORMS[batch_norm](sampler).applied(tf.constant(FLAGS.seed)):
        images, _ = sampler.sample(len(labels), labels)

    if output.endswith(".npz"):
        buffer = io.BytesIO()
        np.savez(buffer, images=pictures.to_uint8(images), labels=labels)
        records.write_whole(output, buffer.getvalue())
    else:
        names = class_names.read(FLAGS.model_dir, generator.num_classes)
        pictures.save_grid(
            output, images, columns=FLAGS.per_class, row_labels=[names[c] for c in classes]
        )
    print(f"{len(labels)} samples of {path}: {output}")


def define_flags():
    """Defines the flags of the command."""
    common.define_flags()
    paths.define_path(
        "checkpoint",
        None,
        "A checkpoint of the run: ckpt-1000, best, latest, or a path; default: the newest.",
    )
    flags.DEFINE_list(
        "classes", None, "Labels, one row of the grid each; default: up to ten, evenly spread."
    )
    flags.DEFINE_integer("per_class", 10, "Samples of each class.", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "Seed of the noise.")
    flags.DEFINE_enum(
        "weights", "raw", [*sampling.PREFIXES], "The weights themselves, or their moving average."
    )
    flags.DEFINE_enum(
        "batch_norm",
        None,
        [*BATCH_NORMS],
        "Moments of batch norm: of training, of some batches that these weights generate, or of "
        "each batch of samples. "
        "Default: standing_statistics with --weights=ema, since training's belong to the other "
        "weights.",
    )
    flags.DEFINE_float(
        "truncation", None, "Noise within plus or minus this; default: all of N(0, 1)."
    )
    paths.define_path(
        "output",
        None,
        "File to write, .png or .npz, local or gs://; default: samples.png in model_dir.",
    )


def run():
    """The command."""
    define_flags()
    common.show_in_help(sys.modules[__name__], common)
    common.run(main)
