"""Explores a checkpoint: real images found again, or what a ham found in one image.

    python scripts/explore.py --model_dir=runs/digits --data_dir=data --what=inversion --count=4
    python scripts/explore.py --model_dir=runs/digits --what=inversion --image=three.png --class=3
    python scripts/explore.py --model_dir=runs/digits --what=ham --class=3 --seed=7 --pixels=4:5,8:8
    python scripts/explore.py --model_dir=runs/digits --what=ham --network=discriminator

inversion  noise and class embedding that give real images back, by loss of pixels and of the
           discriminator's features, Adam within Lookahead, from several starts: a strip over the
           iterations, the real image last, with the error (root of the mean square, in [-1, 1])
ham        the codes of an image's pixels as maps, the image without each base, by the number of
           updates K and by other initial bases; numbers beside it as JSON

Images are of the data set, its reference split, or one file of --image.

The generator is that of scripts/sample.py, its weights and moments of batch norm: `ham` looks at
the image that `--classes=CLASS --seeds=SEED` draws there, up to rounding.
"""

import contextlib
import io
import json
import os
import sys

import numpy as np
from absl import flags

from hamgan.cli import common, lazily, paths

with lazily.imports():
    from hamgan import pictures
    from hamgan.cli import configuration, sampled
    from hamgan.drawing import choice
    from hamgan.exploring import ham_view, inversion
    from hamgan.run import contents, records

FLAGS = flags.FLAGS


def parse_pixels(texts):
    """[(row, column)] of ['4:5']."""
    try:
        found = [tuple(int(part) for part in text.split(":")) for text in texts]
        if any(len(pixel) != 2 for pixel in found):
            raise ValueError
    except ValueError:
        raise ValueError(
            f"--pixels must be ROW:COLUMN, several with commas, got {','.join(texts)!r}."
        ) from None
    return found


def check_output(path):
    """ValueError where the picture would have the name of the numbers beside it, or none."""
    if path is not None and not os.path.basename(path).endswith(".png"):
        raise ValueError(f"--output must end in .png, got {path!r}.")


def class_of(text, names):
    """The label of a class by its name, or as #3 by its number; ValueError for several."""
    labels = choice.classes([text], names)
    if len(labels) > 1:
        raise ValueError(
            f"--class must be one class, got {text!r}, which are {len(labels)}: name one, or write "
            f"#0 to #{len(names) - 1}."
        )
    return labels[0]


def load(request, experiment):
    """(`sampled.Drawing` of a request, the discriminator of its checkpoint)."""
    drawing = sampled.Drawing(request, experiment)
    with drawing.strategy.scope():
        discriminator = experiment.discriminator()
    variables = contents.network_variables("discriminator", discriminator)
    contents.restore(drawing.checkpoint, variables, partial=True)
    return drawing, discriminator


@contextlib.contextmanager
def prepared(drawing):
    """A sampler of the generator, within its moments of batch norm, on one device."""
    import tensorflow as tf

    sampler = drawing.sampler(None, 1.0)
    device = drawing.strategy.extended.worker_devices[0]
    with drawing.applied(sampler), tf.device(device):
        yield sampler


def main():
    at = parse_pixels(FLAGS.pixels)
    check_output(FLAGS.output)
    experiment = configuration.load_experiment(**common.configuration_flags())
    names = "model_dir checkpoint weights batch_norm accelerator tpu".split()
    request = sampled.Request(**{name: FLAGS[name].value for name in names})
    drawing, discriminator = load(request, experiment)
    place = FLAGS.output or os.path.join(FLAGS.model_dir, "exploring", "")
    folder = os.path.dirname(place) or "."
    if not records.can_write(folder):
        raise ValueError(f"{folder} can't be written to: choose another --output.")
    name = os.path.basename(drawing.checkpoint)
    label = FLAGS["class"].value
    label = None if label is None else class_of(label, drawing.names)
    if FLAGS.what == "ham":
        label, network, seed = label or 0, FLAGS.network, FLAGS.seed
        found = look(drawing, discriminator, label, network=network, seed=seed)
        title = f"{network}, {drawing.names[label]}, seed {seed}, {name}"
        path = _file(place, f"ham-{network}-{label}-seed{seed}-{name}.png")
        draw_ham(found, path, at=at, title=title)
    else:
        images, labels = real_images(
            experiment, label, image=FLAGS.image, count=FLAGS.count, data_dir=FLAGS.data_dir
        )
        found = find(
            drawing,
            discriminator,
            images,
            labels,
            feature_weight=FLAGS.feature_weight,
            starts=FLAGS.starts,
            steps=FLAGS.steps,
            learning_rate=FLAGS.learning_rate,
            seed=FLAGS.seed,
        )
        path = _file(place, f"inversion-{name}.png")
        draw_inversion(found, images, labels, path, names=drawing.names)


def _file(place, name):
    """The path of a picture: `place`, or `name` in it where that is a folder."""
    return os.path.join(place, name) if place.endswith(os.sep) else place


def look(drawing, discriminator, label, *, network, seed):
    """The view of what a ham found in one sample."""
    with prepared(drawing) as sampler:
        z, _, keys = sampler.inputs(np.array([seed], np.int32))
        return ham_view.of_sample(
            drawing.generator, discriminator, z, label, keys=keys, network=network
        )


def draw_ham(found, output, *, at, title):
    """Writes the view as a picture and as numbers."""
    ham_view.draw(found, output, pixels=at, title=title)
    numbers = os.path.splitext(output)[0] + ".json"
    records.write_whole(numbers, json.dumps(ham_view.numbers(found, at), indent=1).encode())
    print(f"{title}: {output}, {numbers}")


def real_images(experiment, label, *, image, count, data_dir):
    """(images [N, S, S, 3], labels [N] or None) to be found again."""
    if image:
        dataset_size = experiment.generator().image_size
        return decode_file(image, dataset_size), None if label is None else np.array([label])
    dataset = experiment.dataset(data_dir=data_dir)
    batches = dataset.reference_batches(batch_size=256).as_numpy_iterator()
    images, labels = [], []
    for batch in batches:
        fits = np.ones(len(batch["label"]), bool) if label is None else batch["label"] == label
        images.append(batch["image"][fits])
        labels.append(batch["label"][fits])
        if sum(map(len, images)) >= count:
            break
    return np.concatenate(images)[:count], np.concatenate(labels)[:count]


def decode_file(path, size):
    """The central square of an image file, as training has it: [1, size, size, 3] in [-1, 1].

    Raises:
      ValueError: there is no such file, or it is no image that `hamgan-prepare folder` takes.
    """
    import tensorflow as tf

    from hamgan.data import photos, pixels

    try:
        with tf.io.gfile.GFile(path, "rb") as file:
            image = photos.shown(file.read())
    except (ValueError, OSError, tf.errors.OpError) as error:
        reason = getattr(error, "message", error)
        raise ValueError(f"--image={path} can't be read: {reason}.") from None
    return pixels.preprocess(tf.constant(image), size)[None].numpy()


def find(drawing, discriminator, images, labels, *, feature_weight, seed, **search):
    """The inversion of images."""
    with prepared(drawing) as sampler:
        _, _, keys = sampler.inputs(np.arange(seed, seed + len(images), dtype=np.int32))
        return inversion.invert(
            drawing.generator,
            images,
            keys=keys.numpy(),
            labels=labels,
            discriminator=discriminator if feature_weight else None,
            feature_weight=feature_weight,
            seed=seed,
            **search,
        )


def draw_inversion(found, images, labels, output, *, names):
    """Writes an inversion as a strip over the iterations and as arrays."""
    table = np.concatenate([found.strip, images[:, None]], axis=1)
    words = [
        f"{'' if labels is None else names[labels[i]] + ': '}error {error:.3f}"
        for i, error in enumerate(found.pixel_error)
    ]
    pictures.save_grid(
        output,
        table.reshape(-1, *images.shape[1:]),
        columns=table.shape[1],
        row_labels=words,
        title=f"steps {', '.join(map(str, found.steps))}; the real image",
    )
    arrays = os.path.splitext(output)[0] + ".npz"
    buffer = io.BytesIO()
    np.savez(buffer, **{k: v for k, v in found._asdict().items() if k != "strip"})
    records.write_whole(arrays, buffer.getvalue())
    print(
        f"{len(images)} images found again: pixels' error {found.pixel_error.mean():.3f} "
        f"(root of the mean square, of a range of 2), features' {found.feature_error.mean():.3f} "
        f"of their length; {output}, {arrays}"
    )


def define_flags():
    """Defines the flags of the command."""
    common.define_flags()
    common.define_checkpoint()
    common.define_generator()
    flags.DEFINE_enum("what", "ham", ["ham", "inversion"], "What to look at.")
    flags.DEFINE_string("class", None, "A class by its name, or #3 by its number.")
    flags.DEFINE_integer(
        "seed", 0, "ham: of the sample. inversion: of what it begins with.", 0, 2**31 - 1
    )
    flags.DEFINE_enum("network", "generator", ["generator", "discriminator"], "ham: whose.")
    flags.DEFINE_list("pixels", [], "ham: pixels of the map to show the codes of, ROW:COLUMN.")
    paths.define_path("image", None, "inversion: an image file; default: images of the data set.")
    flags.DEFINE_integer("count", 4, "inversion: images of the data set.", 1)
    flags.DEFINE_integer("starts", 4, "inversion: draws of noise to begin with.", 1)
    flags.DEFINE_integer("steps", 300, "inversion: of Adam.", 1)
    flags.DEFINE_float("learning_rate", 0.05, "inversion: of Adam.", 0)
    flags.DEFINE_float(
        "feature_weight", 1.0, "inversion: of the discriminator's features; 0: pixels alone.", 0
    )
    paths.define_path("output", None, "PNG file; default: in exploring/ of model_dir.")


def run():
    """The command."""
    define_flags()
    common.show_in_help(sys.modules[__name__], common)
    common.run(main)
