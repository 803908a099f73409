"""Shows what the Hamburger of a checkpoint does to its features: spectra, errors and feature maps,
before and after.

    python scripts/inspect_ham.py --model_dir=runs/digits
    python scripts/inspect_ham.py --model_dir=runs/digits --checkpoint=ckpt-300 \\
        --network=discriminator
    python scripts/inspect_ham.py --model_dir=runs/digits --data_dir=data \\
        --network=discriminator --images=real
    python scripts/inspect_ham.py --model_dir=runs/segment_digits --data_dir=data \\
        --network=segmentation

Writes into --output
    curves.png        accumulative ratio of squared singular values, and the decomposition's error
                      after each update
    feature_maps.png  feature maps before and after the Hamburger, and before and after the
                      decomposition in it
    inspection.json   the numbers
"""

import json
import os
import sys

import numpy as np
from absl import flags

from hamgan import choices
from hamgan.cli import common, lazily, paths

with lazily.imports():
    from hamgan import distribution, inspection, sampling, stateless
    from hamgan.cli import configuration, segment_common
    from hamgan.run import checkpoints, contents, records
    from hamgan.segmentation import overlays

FLAGS = flags.FLAGS


def inspected(experiment, path, *, network, images, weights, batch_size, num_steps, seed, data_dir):
    """(images, labels, `inspection.Inspection`, name of the module) of one of the networks."""
    generator = experiment.generator()
    key = stateless.key(seed, stateless.EVALUATION)
    z, labels, keys = stateless.generator_inputs(
        key,
        np.arange(batch_size),
        latent_dim=generator.latent_dim,
        num_classes=generator.num_classes,
    )
    if network == "generator":
        inspection.hamburger_of(generator)
        sampling.restore(generator, path, weights=weights)
        images, found = inspection.inspect(generator, z, labels, keys=keys, num_steps=num_steps)
        return images.numpy(), labels.numpy(), found, generator.context

    discriminator = experiment.discriminator()
    inspection.hamburger_of(discriminator)
    contents.restore(path, contents.network_variables("discriminator", discriminator), partial=True)
    if images == "real":
        dataset = experiment.dataset(data_dir=data_dir)
        batch = next(iter(dataset.reference_batches(batch_size=batch_size)))
        images, labels = batch["image"], batch["label"]
    else:
        sampling.restore(generator, path, weights=weights)
        images = generator(z, labels, training=False, keys=keys)
    keys = stateless.example_keys(
        stateless.fold(key, stateless.DISCRIMINATOR_BASES), np.arange(len(images))
    )
    _, found = inspection.inspect(discriminator, images, labels, keys=keys, num_steps=num_steps)
    return images.numpy(), labels.numpy(), found, discriminator.context


def of_segmentation(parts, path, *, batch_size, num_steps, seed, data_dir):
    """(crops uint8, the index of the largest class of each, `inspection.Inspection`, the
    Hamburger) of a segmentation network, which sees the first training crops.
    """
    import tensorflow as tf

    network = parts.network()
    layer = network.head.hamburger
    if not hasattr(layer, "decomposition"):
        raise ValueError("This network's head has no Hamburger: there is nothing to look at.")
    contents.restore(path, contents.network_variables("network", network), partial=True)
    batches = parts.dataset(data_dir=data_dir).train_batches(batch_size=batch_size, seed=seed)
    batch = next(iter(batches))
    keys = stateless.example_keys(stateless.key(seed, stateless.EVALUATION), tf.range(batch_size))
    found = network(batch["image"], training=False, keys=keys)
    maps = found.features["squeeze"], found.features["hamburger"]
    initial = layer.initial(keys, size=maps[0].shape[1] * maps[0].shape[2])
    seen = inspection.look(layer, maps, found.hams, initial, num_steps=num_steps)
    labels = batch["label"].numpy().reshape(batch_size, -1)
    counted = [np.bincount(of[of < 255], minlength=1).argmax() for of in labels]
    return overlays.pixels_of(batch["image"]), np.array(counted), seen, layer


def main():
    import tensorflow as tf

    if FLAGS.images == "real" and FLAGS.network == "generator":
        raise ValueError(
            "--images=real is for --network=discriminator: a generator sees no images."
        )
    of_segments = FLAGS.network == "segmentation"
    experiment = (
        segment_common.load()
        if of_segments
        else configuration.load_experiment(**common.configuration_flags())
    )
    path = checkpoints.find(FLAGS.model_dir, FLAGS.checkpoint)
    strategy = distribution.create_strategy(FLAGS.accelerator, FLAGS.tpu, across_hosts=False)
    names = ("batch_size", "num_steps", "seed", "data_dir")
    if not of_segments:
        names += ("network", "images", "weights")
    inspect = of_segmentation if of_segments else inspected
    with tf.device(strategy.extended.worker_devices[0]):
        of = inspect(experiment, path, **{name: FLAGS[name].value for name in names})
    images, labels, found, layer = of
    name = f"{FLAGS.network}-{os.path.basename(path)}"
    numbers = {
        "network": FLAGS.network,
        "checkpoint": path,
        "step": contents.step_in(path),
        "images": {"generator": "generated", "segmentation": "training"}.get(
            FLAGS.network, FLAGS.images
        ),
        "weights": FLAGS.weights,
        "seed": FLAGS.seed,
        **measured(labels, found, layer),
    }
    output = FLAGS.output or os.path.join(FLAGS.model_dir, "inspection", name)
    write(output, images, found, numbers, examples=FLAGS.examples)


def measured(labels, found, layer):
    """What inspection.json says of the Hamburger."""
    decomposition = layer.decomposition
    while hasattr(decomposition, "func"):
        decomposition = decomposition.func
    return {
        "module": type(layer).__name__,
        "decomposition": decomposition.__name__,
        "labels": labels.tolist(),
        "shape": list(found.before.shape),
        **inspection.summary(found),
    }


def write(output, images, found, numbers, *, examples):
    """Writes numbers and pictures, and prints the gist."""
    title = (
        f"{numbers['module']} with {numbers['decomposition'].upper()} in the "
        f"{numbers['network']}, {os.path.basename(numbers['checkpoint'])}, "
        f"{len(images)} {numbers['images']} images, gate {found.gate:.3g}"
    )
    records.write_whole(
        os.path.join(output, "inspection.json"), json.dumps(numbers, indent=1).encode()
    )
    inspection.draw_curves(numbers, os.path.join(output, "curves.png"), title=title)
    inspection.draw_maps(
        found,
        images,
        os.path.join(output, "feature_maps.png"),
        examples=examples,
        title=title,
    )
    show(numbers, title, output)


def show(numbers, title, output):
    """Prints the gist of an inspection."""
    print(title)
    for name, ratio in numbers["accumulative_ratio"].items():
        print(
            f"  {name}: {ratio['values_for_90']} of {len(ratio['mean'])} singular values hold 90 "
            "%, "
            f"{ratio['values_for_99']} hold 99 % of the sum of squares"
        )
    for name, error in numbers["reconstruction_error"].items():
        means = error["mean"]
        print(
            f"  ham over {name}: error {means[0]:.3f} without updates, {means[-1]:.3f} after "
            f"{len(means) - 1}"
        )
    print(f"Written: {output}/curves.png, feature_maps.png, inspection.json")


def define_flags():
    """Defines the flags of the command."""
    common.define_flags()
    common.define_checkpoint()
    flags.DEFINE_enum(
        "network",
        "generator",
        ["generator", "discriminator", "segmentation"],
        "Whose Hamburger.",
    )
    flags.DEFINE_enum(
        "weights",
        "raw",
        [*choices.WEIGHTS],
        "The generator's weights, or their moving average (batch norm as in training).",
    )
    flags.DEFINE_enum(
        "images",
        "generated",
        ["generated", "real"],
        "What the discriminator sees; real: of --data_dir.",
    )
    flags.DEFINE_integer("batch_size", 64, "Examples.", lower_bound=1)
    flags.DEFINE_integer("examples", 3, "Examples whose feature maps are drawn.", lower_bound=1)
    flags.DEFINE_integer(
        "num_steps", None, "Updates whose errors are shown; default: K.", lower_bound=0
    )
    flags.DEFINE_integer("seed", 0, "Seed of the noise, as in sample.py.")
    paths.define_path(
        "output", None, "Folder to write to, local or gs://; default: inspection/ in model_dir."
    )


def run():
    """The command."""
    define_flags()
    common.show_in_help(sys.modules[__name__], common)
    common.run(main)
