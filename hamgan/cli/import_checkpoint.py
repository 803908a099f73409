"""Imports a checkpoint of the published TF1 code (HamGAN, SAGAN, YLG or no module) as a run's
folder.

    python scripts/import_checkpoint.py --checkpoint=published/model.ckpt-1000000 \\
        --model_dir=runs/published
    python scripts/import_checkpoint.py --checkpoint=published/model.ckpt-30 \\
        --model_dir=runs/published \\
        --ham=cd --rank=8,4 --sections=2 --verify=published/golden.npz

Names and shapes tell widths, classes, modules and d. What they don't tell is a flag: one value for
both networks, or the generator's and the discriminator's with a comma between. All other settings
are those of --gin_file, by default configs/imagenet128.gin. Training goes on with the settings of
the import only, so data set, batch size and learning rates are given here, with --gin_param.

--verify replays recorded arrays through the networks of the checkpoint that was written, and takes
it away again if images, logits or their gradients differ by more than the tolerances.
"""

import os
import sys
import tempfile

from absl import flags

from hamgan import choices
from hamgan.cli import common, lazily, paths

with lazily.imports():
    from hamgan import distribution, importing
    from hamgan.cli import configuration
    from hamgan.run import lock

FLAGS = flags.FLAGS
_TOLD = ("ham", "rank", "sections", "steps", "attention", "verify")


def load_experiment(text, *, gin_params, model_dir):
    """The experiment of a gin file's text and of --gin_param."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "import.gin")
        with open(path, "w") as file:
            file.write(text)
        return configuration.load_experiment(
            gin_files=[path], gin_params=gin_params, model_dir=model_dir
        )


def main():
    with lock.writing(FLAGS.model_dir, take_over=FLAGS.take_over):
        importing.run(
            FLAGS.checkpoint,
            told=importing.Told(
                gin_files=FLAGS.gin_file, **{name: FLAGS[name].value for name in _TOLD}
            ),
            model_dir=FLAGS.model_dir,
            data_dir=FLAGS.data_dir,
            load_experiment=lambda text: load_experiment(
                text, gin_params=FLAGS.gin_param, model_dir=FLAGS.model_dir
            ),
            settle=configuration.settle_configuration,
            create_strategy=lambda: distribution.create_strategy(
                FLAGS.accelerator, FLAGS.tpu, across_hosts=False
            ),
            tolerance=FLAGS.tolerance,
            gradient_tolerance=FLAGS.gradient_tolerance,
        )


def define_flags():
    """Defines the flags of an import, beside those of a run."""
    paths.define_path(
        "checkpoint", None, "Prefix of the TF1 checkpoint, e.g. model.ckpt-1000000.", required=True
    )
    flags.DEFINE_list(
        "ham",
        ["nmf"],
        f"Decomposition of a Hamburger: {' or '.join(choices.PUBLISHED_HAMS)}. One value or a "
        "pair.",
    )
    flags.DEFINE_list("rank", ["32", "16"], "r of a Hamburger. One value or a pair.")
    flags.DEFINE_list("sections", ["1"], "Sections of a Hamburger. One value or a pair.")
    flags.DEFINE_list("steps", ["6"], "K of a Hamburger. One value or a pair.")
    flags.DEFINE_list(
        "attention",
        None,
        "Kind of attention, where the channels allow both: "
        f"{' or '.join(choices.PUBLISHED_ATTENTIONS)}. One value or a pair. "
        "Default: what reproduces the record of --verify; without it sagan.",
    )
    paths.define_path(
        "verify", None, "An .npz file with recorded inputs, initial bases, outputs and gradients."
    )
    flags.DEFINE_bool(
        "take_over", False, "Write to model_dir even if another process holds it, which is dead."
    )
    flags.DEFINE_float(
        "tolerance", 1e-4, "With --verify: largest error of images and logits.", lower_bound=0
    )
    flags.DEFINE_float(
        "gradient_tolerance", 2e-2, "With --verify: largest error of gradients.", lower_bound=0
    )


def run():
    """The command."""
    common.define_flags()
    define_flags()
    common.show_in_help(sys.modules[__name__], common)
    common.run(main)
