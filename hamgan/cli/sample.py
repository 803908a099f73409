"""Draws samples from a checkpoint: a labelled grid, arrays, files, a data set, or films.

    python scripts/sample.py --model_dir=runs/digits
    python scripts/sample.py --model_dir=runs/digits --classes=3,7 --per_class=8 --seed=1 \\
        --output=threes_and_sevens.png
    python scripts/sample.py --model_dir=runs/digits --classes=all --seeds=0-35,100 --output=files/
    python scripts/sample.py --model_dir=runs/digits --per_class=100 --output=samples.npz
    python scripts/sample.py --model_dir=runs/digits --count=50000 --output=for_fid/
    python scripts/sample.py --model_dir=runs/digits --psi=0.3,0.6,1 --output=sweep.png
    python scripts/sample.py --model_dir=runs/digits --interpolate=classes --seeds=5 \\
        --output=classes.gif

An image is a function of checkpoint, class and seed (and of --seed, which is 0 where nothing else
is said): the same in whatever company it is drawn, to the last bit with the same --batch_size on
one device, and up to rounding otherwise. Only with --batch_norm=batch does it depend on the others.

Classes are written by name, or as #3 by number. What takes long shows how far it is, and goes on
where it was when the same command is run again.
"""

import sys

from absl import flags

from hamgan import choices
from hamgan.cli import common, lazily, paths

with lazily.imports():
    from hamgan.cli import configuration, sampled

FLAGS = flags.FLAGS
# What `main` hands over, beside the configuration.
_NAMES = (
    "model_dir data_dir checkpoint classes per_class seeds count seed weights batch_norm "
    "truncation psi batch_size output format interpolate steps frames_per_second nearest "
    "accelerator tpu"
).split()


def main():
    request = sampled.Request(**{name: FLAGS[name].value for name in _NAMES})
    request.check()
    experiment = configuration.load_experiment(**common.configuration_flags())
    changed = configuration.changed_settings(FLAGS.model_dir)
    sampled.run(request, experiment, changed=changed)


def define_choice_flags():
    """Defines the flags that say which images."""
    common.define_checkpoint()
    flags.DEFINE_list(
        "classes",
        None,
        "Names of classes, numbers written #3, or all; one row of the grid each; default: up to "
        "ten, evenly spread.",
    )
    flags.DEFINE_integer(
        "per_class", None, "Samples of each class, with seeds one after the other; default: 10.", 1
    )
    flags.DEFINE_list(
        "seeds", None, "Seeds of the images, of each class the same: numbers and ranges, 0-35,100."
    )
    flags.DEFINE_integer(
        "count", None, "Samples in all, each of a class that is drawn by its seed, as for FID.", 1
    )
    flags.DEFINE_integer("seed", 0, "Seed of the noise: another one gives other seeds' images.")
    flags.DEFINE_enum(
        "weights",
        None,
        [*choices.WEIGHTS],
        "The weights themselves, or their moving average; default: what the run is scored by.",
    )
    flags.DEFINE_enum(
        "batch_norm",
        None,
        choices.BATCH_NORMS,
        "Moments of batch norm: of training, of some batches that these weights generate, or of "
        "each batch of samples. "
        "Default: standing_statistics with --weights=ema, since training's belong to the other "
        "weights.",
    )
    flags.DEFINE_list(
        "truncation",
        None,
        "Noise within plus or minus this; default: all of N(0, 1). Several: one sheet of them.",
    )
    flags.DEFINE_list(
        "psi", None, "Noise is multiplied by this; default: 1. Several: one sheet of them."
    )


def define_output_flags():
    """Defines the flags that say what becomes of the images."""
    flags.DEFINE_integer("batch_size", 16, "Images that a device makes at a time.", 1)
    flags.DEFINE_enum(
        "interpolate",
        None,
        ["seeds", "classes"],
        "Images on the way from each seed, or each class, to the next one.",
    )
    flags.DEFINE_integer("steps", 8, "With --interpolate: images from one to the next.", 1)
    flags.DEFINE_integer("frames_per_second", 16, "Of films.", 1)
    flags.DEFINE_integer(
        "nearest",
        None,
        "Show beside each sample this many of the nearest training images, in the features of the "
        "run's protocol.",
        1,
    )
    flags.DEFINE_enum(
        "format",
        None,
        ["png", "npz", "folder", "tfds"],
        "What to write; default: as --output ends. tfds: --output is DATA_DIR/NAME.",
    )
    paths.define_path(
        "output",
        None,
        "What to write, local or gs://: .png (a grid), .npz (arrays), / (a folder of PNG files), "
        ".gif or .mp4 (with --interpolate); default: samples.png in model_dir.",
    )


def define_flags():
    """Defines the flags of the command."""
    common.define_flags()
    define_choice_flags()
    define_output_flags()


def run():
    """The command."""
    define_flags()
    common.show_in_help(sys.modules[__name__], common)
    common.run(main)
