"""Segments photographs: a PNG of class indices for each, and the classes over the image.

    python scripts/segment.py predict --model_dir=runs/hamnet --images=photos --output=predicted
    python scripts/segment.py predict --model_dir=runs/hamnet --images=VOCtest/JPEGImages \\
        --list=test.txt --multi_scale --submission=voc.tar

Writes OUTPUT/<name>.png, 8 bits with VOC's palette, whose pixels are the classes' numbers, and
OUTPUT/overlays/<name>.png. --submission also writes what VOC's test server takes: a tar of these
PNGs as results/VOC2012/Segmentation/comp6_test_cls/<name>.png.
"""

import io
import os

from absl import flags
from PIL import Image
from tqdm import tqdm

from hamgan.cli import lazily, paths, segment_common, segment_evaluate
from hamgan.run.folder import Folder

with lazily.imports():
    from hamgan import distribution
    from hamgan.run import log, records
    from hamgan.segmentation import evaluation, palette

FLAGS = flags.FLAGS
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")


def find_images(places, names=None):
    """{name: path} of images: files, and folders of them.

    Args:
      places: paths of files and folders.
      names: of the images that are wanted, without endings; None: all.

    Raises:
      ValueError: a place or a name that isn't there, two images of one name, or none at all.
    """
    import tensorflow as tf

    found = {}
    for place in places:
        if not tf.io.gfile.exists(place):
            raise ValueError(f"There is no --images={place}.")
        files = [place]
        if tf.io.gfile.isdir(place):
            files = [os.path.join(place, name) for name in sorted(tf.io.gfile.listdir(place))]
            files = [path for path in files if path.lower().endswith(SUFFIXES)]
        for path in files:
            name = os.path.splitext(os.path.basename(path))[0]
            if name in found:
                raise ValueError(f"Two images are called {name}: {found[name]} and {path}.")
            found[name] = path
    if names is not None:
        missing = [name for name in names if name not in found]
        if missing:
            raise ValueError(
                f"--list names {len(missing)} images that aren't in --images, the first of them "
                f"{missing[0]}."
            )
        found = {name: found[name] for name in names}
    if not places:
        raise ValueError("--images must name an image or a folder of them, got none.")
    if not found:
        raise ValueError(f"--images has none that ends in {', '.join(SUFFIXES)}: {places}.")
    return found


def read(path):
    """An image's pixels as a viewer shows them (turned by EXIF data, in sRGB), uint8 [h, w, 3].

    Raises:
      ValueError: it can't be read as an image; names the file.
    """
    import tensorflow as tf

    from hamgan.data import photos

    try:
        with tf.io.gfile.GFile(path, "rb") as file:
            pixels = photos.shown(file.read())
    except (ValueError, OSError, SyntaxError, tf.errors.OpError) as error:
        reason = getattr(error, "message", error)
        raise ValueError(f"{path} can't be read as an image: {reason}") from None
    return pixels.repeat(3, axis=-1) if pixels.shape[-1] == 1 else pixels


def check_output(images, output):
    """Asks whether predictions would replace the images that they are made from.

    Args:
      images: {name: path}.
      output: folder of the predictions.

    Raises:
      ValueError: one would; it is named.
    """
    for name, place in images.items():
        for folder in (output, os.path.join(output, "overlays")):
            target = os.path.join(folder, f"{name}.png")
            if os.path.realpath(target) == os.path.realpath(place):
                raise ValueError(
                    f"--output must be another folder than the images', got {output}: {place} "
                    "would be replaced by its prediction."
                )


def main():
    import tensorflow as tf

    parts = segment_common.load()
    names = None
    if FLAGS.list:
        with tf.io.gfile.GFile(FLAGS.list) as file:
            names = file.read().split()
    images = find_images(FLAGS.images, names)
    strategy = distribution.create_strategy(FLAGS.accelerator, FLAGS.tpu, across_hosts=False)
    network, path = segment_evaluate.restored(
        parts, strategy, model_dir=FLAGS.model_dir, checkpoint=FLAGS.checkpoint
    )
    if FLAGS.submission and network.num_classes > palette.VOC_CLASSES:
        raise ValueError(
            f"--submission: VOC's test server knows {palette.VOC_CLASSES} classes, the background "
            f"among them; this network has {network.num_classes}."
        )
    output = FLAGS.output or os.path.join(
        Folder(FLAGS.model_dir).predictions, os.path.basename(path)
    )
    check_output(images, output)
    predict = evaluation.Predictor(network, parts.test, multi_scale=FLAGS.multi_scale)

    made = predictions(predict, images, output, opacity=FLAGS.opacity if FLAGS.overlays else None)
    if FLAGS.submission:
        count = palette.write_voc_submission(FLAGS.submission, made)
        print(f"Submission: {FLAGS.submission}")
    else:
        count = sum(1 for _ in made)
    print(f"{count} predictions of {path}: {output}")


def predictions(predict, images, output, *, opacity):
    """Writes the prediction of each image, and gives (name, indices) as they come.

    Args:
      predict: function of (uint8 [h, w, 3], number of the image), an `evaluation.Predictor`.
      images: {name: path}.
      output: folder of the predictions.
      opacity: of the overlays; None: none are written.

    Raises:
      ValueError: at the end, when all others are written: images that can't be read.
    """
    damaged = []
    for number, (name, place) in enumerate(tqdm(images.items(), unit="image", file=log.SCREEN)):
        try:
            image = read(place)
        except ValueError as error:
            damaged.append(str(error))
            continue
        indices = predict(image, number)
        palette.write_png(os.path.join(output, f"{name}.png"), indices, palette.voc_palette())
        if opacity is not None:
            buffer = io.BytesIO()
            over = palette.overlay(image, indices, opacity=opacity)
            Image.fromarray(over).save(buffer, format="PNG")
            place = os.path.join(output, "overlays", f"{name}.png")
            records.write_whole(place, buffer.getvalue())
        yield name, indices
    if damaged:
        raise ValueError(
            f"{len(damaged)} of {len(images)} images can't be read, the others are predicted in "
            f"{output}:\n  " + "\n  ".join(damaged)
        )


def define_flags():
    """Defines the flags of a prediction, beside those of a run."""
    segment_evaluate.define_checkpoint()
    paths.define_paths("images", "An image, or a folder of them. May be repeated.")
    paths.define_path("list", None, "A file with the images' names, without endings: these alone.")
    paths.define_path("output", None, "Folder to write to; default: predictions/ in model_dir.")
    paths.define_path("submission", None, "A tar file for VOC's test server.")
    flags.DEFINE_bool("overlays", True, "Write the classes over the images too.")
    flags.DEFINE_float("opacity", 0.5, "Of the overlays.", lower_bound=0, upper_bound=1)
