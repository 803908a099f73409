"""Imports published weights of HamNet, Light-Ham or one of their ImageNet backbones as a run's
folder.

    python scripts/segment.py import --weights=final.pth --model_dir=runs/hamnet
    python scripts/segment.py import --weights=ham_base_160k_ade20k.pth --model_dir=runs/light_ham
    python scripts/segment.py import --weights=recording.npz --model_dir=runs/made \\
        --verify=recording.npz

A PyTorch checkpoint needs PyTorch (`pip install hamgan[torch]`); an .npz file with keys w/<name>
does not. Names and shapes tell backbone, widths, version and classes. What they don't tell is a
flag, or what is published. Of an ImageNet backbone the checkpoint holds network/backbone/... alone.

--verify replays a recorded pass through the network of the checkpoint that was written, and takes
it away again if logits, features or the image's gradient differ by more than the tolerances, in
float32 and in float64 (where no ReLU falls to the other side by rounding). What
the recording tells of the network needs no flag; where nothing tells CD from VQ or their
temperature, it is what reproduces the recording.
"""

import functools

from absl import flags

from hamgan.cli import lazily, paths

with lazily.imports():
    from hamgan import distribution
    from hamgan.cli import configuration
    from hamgan.segmentation import importing, published, segmenter

FLAGS = flags.FLAGS
_OPTIONS = ("output_stride", "ham", "inverse_temperature", "beta", "rank", "sections", "hams")
_OPTIONS += ("steps", "eval_steps", "groups")


def options(given):
    """The `published.Options` of the flags' values, {name: value}."""
    hams = given.pop("hams")
    return published.Options(**given, hams=tuple(hams) if hams else None)


def main():
    importing.run(
        FLAGS.weights,
        options=options({name: FLAGS[name].value for name in _OPTIONS}),
        model_dir=FLAGS.model_dir,
        load_network=functools.partial(
            configuration.load_constructor, segmenter.Segmenter, gin_params=FLAGS.gin_param
        ),
        settle=configuration.settle_configuration,
        create_strategy=lambda: distribution.create_strategy(
            FLAGS.accelerator, FLAGS.tpu, across_hosts=False
        ),
        recording=FLAGS.verify,
        tolerance=FLAGS.tolerance,
        gradient_tolerance=FLAGS.gradient_tolerance,
    )


def define_flags():
    """Defines the flags of an import, beside those of a run."""
    paths.define_path(
        "weights", None, "PyTorch checkpoint, or .npz file with keys w/<name>.", required=True
    )
    paths.define_path("verify", None, "An .npz file with a recorded pass of the network.")
    flags.DEFINE_float(
        "tolerance", 1e-4, "With --verify: largest error of logits and features.", lower_bound=0
    )
    flags.DEFINE_float(
        "gradient_tolerance", 1e-4, "With --verify: largest error of gradients.", lower_bound=0
    )
    whole = functools.partial(flags.DEFINE_integer, default=None, lower_bound=1)
    whole("output_stride", help="Of the backbone; default: 8, of Light-Ham 32.")
    flags.DEFINE_enum(
        "ham", None, ("nmf", "cd", "vq"), "Decomposition, where the names don't say that it is NMF."
    )
    flags.DEFINE_float("inverse_temperature", None, "t of CD and VQ; default: 100.", lower_bound=0)
    flags.DEFINE_float("beta", None, "Ridge of CD; default: 0.1.", lower_bound=0)
    whole("rank", help="R; default: 64, of V2+ 512, of a light head of 256 channels 16.")
    whole("sections", help="S of HamNet's Hamburger; default: 1.")
    flags.DEFINE_list("hams", None, "Of HamNet's Hamburger: space, channels or both.")
    flags.DEFINE_integer("steps", None, "K in training; default: 6.", lower_bound=0)
    flags.DEFINE_integer("eval_steps", None, "K outside of training; default: 7.", lower_bound=0)
    whole("groups", help="Of MMSegmentation's group norm; default: 32.")
