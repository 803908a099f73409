"""Exports a checkpoint for programs that don't know this one.

    python scripts/export.py --model_dir=runs/digits
    python scripts/export.py --model_dir=runs/digits --checkpoint=best --weights=ema \\
        --formats=saved_model,keras,onnx,card --license=cc-by-4.0 --output=exported

saved_model  TensorFlow SavedModel: seed or noise, label or class's name, psi and truncation to
             images in 8 bits or floats, of any batch; it needs none of hamgan
keras        generator.keras and discriminator.keras, for keras.models.load_model
onnx         generator.onnx, noise and label to pixels (pip install 'hamgan[onnx]')
card         README.md, a model card with protocol, scores, data and samples

Batch-norm moments and the keys of the initial bases are in the files. Each file is loaded again,
the SavedModel by a process that can't import hamgan, and its pixels are compared with the run's.
"""

import json
import os
import sys

from absl import flags

from hamgan import choices
from hamgan.cli import common, lazily, paths

with lazily.imports():
    from hamgan import distribution, sampling
    from hamgan.cli import configuration
    from hamgan.drawing import choice
    from hamgan.evaluation import settings
    from hamgan.export import bundle
    from hamgan.run import checkpoints, class_names, contents, records

FLAGS = flags.FLAGS


def facts_of(path, generator, *, weights, moments):
    """{name: text} of what is exported, for the card and the SavedModel."""
    return {
        "checkpoint": f"{os.path.basename(path)}, step {contents.step_in(path)}, "
        f"digest {contents.digest(path)}",
        "weights": weights,
        "batch norm": moments.replace("_", " "),
        "image size": str(generator.image_size),
        "classes": str(generator.num_classes),
        "noise": f"{generator.latent_dim} numbers of N(0, 1)",
        "context module": type(generator.context).__name__,
        "parameters of the generator": f"{generator.count_params():,}",
        "generator's settings": settings.digest_of(generator),
    }


def description_of_data(experiment, data_dir):
    """TFDS's description of the run's images; None where they aren't here."""
    import tensorflow as tf

    try:
        return experiment.dataset(data_dir=data_dir).info
    # An export needs no images: a data set of one's own may have no description either.
    except (ValueError, OSError, AttributeError, tf.errors.OpError) as error:
        reason = str(error).splitlines()[0]
        print(f"The card can't say whose the images are, licence and citation: {reason}")
        return None


def main():
    path = checkpoints.find(FLAGS.model_dir, FLAGS.checkpoint)
    experiment = configuration.load_experiment(**common.configuration_flags())
    weights = FLAGS.weights or experiment.protocol.weights
    name = os.path.basename(path) + ("-ema" if weights == "ema" else "")
    output = FLAGS.output or os.path.join(FLAGS.model_dir, "export", name)
    bundle.check_formats(FLAGS.formats, output)
    if not records.can_write(output):
        raise ValueError(f"{output} can't be written to: choose another --output.")
    strategy = distribution.create_strategy(FLAGS.accelerator, FLAGS.tpu, across_hosts=False)
    with strategy.scope():
        generator, discriminator = experiment.generator(), None
        if "keras" in FLAGS.formats:
            discriminator = experiment.discriminator()
            contents.restore(
                path, contents.network_variables("discriminator", discriminator), partial=True
            )
    sampling.restore(generator, path, weights=weights)
    sampler = sampling.Sampler(
        generator,
        strategy=strategy,
        batch_size=16 * strategy.num_replicas_in_sync,
        seed=FLAGS.seed,
    )
    moments = FLAGS.batch_norm or choices.BATCH_NORM_OF[weights]
    facts = facts_of(path, generator, weights=weights, moments=moments)
    with records.writing_folder(output) as folder:
        exported = bundle.Bundle(
            output,
            folder=folder,
            generator=generator,
            discriminator=discriminator,
            sampler=sampler,
            batch_norm=choice.batch_norm_named(moments, sampler),
            seed=FLAGS.seed,
            class_names=class_names.read(FLAGS.model_dir, generator.num_classes),
        )
        exported.write(FLAGS.formats, about=json.dumps(facts))
        if "card" in FLAGS.formats:
            exported.write_card(
                FLAGS.model_dir,
                path,
                weights=weights,
                facts=facts,
                licence=FLAGS.license,
                info=description_of_data(experiment, FLAGS.data_dir),
            )


def define_flags():
    """Defines the flags of the command."""
    common.define_flags()
    common.define_checkpoint()
    common.define_generator()
    flags.DEFINE_list(
        "formats", ["saved_model", "keras", "card"], "Of saved_model, keras, onnx, card."
    )
    flags.DEFINE_integer("seed", 0, "Seed of the noise, as in sample.py.")
    flags.DEFINE_string("license", None, "SPDX identifier of the weights' licence, for the card.")
    paths.define_path(
        "output",
        None,
        "A new or empty folder; default: export/ckpt-N (of ema ckpt-N-ema) in model_dir.",
    )


def run():
    """The command."""
    define_flags()
    common.show_in_help(sys.modules[__name__], common)
    common.run(main)
