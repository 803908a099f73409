"""Measures what parts of the project cost on this machine.

    python scripts/benchmark.py context
    python scripts/benchmark.py context --shape=paper --modules=self_attention,v1_nmf --sweeps=none
    python scripts/benchmark.py context --shape=4x64x64x128 --repeats=20 --output=runs/benchmark
    python scripts/benchmark.py context --shape=none --sweeps=steps
    python scripts/benchmark.py step --sizes=full,digits --precisions=float32,mixed_bfloat16
    python scripts/benchmark.py step --sizes=digits --networks=none,hamburger,self_attention --trace
    python scripts/benchmark.py step --sizes=digits --batch_sizes=16,64 --microbatches=1,4
    python scripts/benchmark.py step --sizes=full --networks=published,hamburger
    python scripts/benchmark.py scaling --sizes=digits --devices=1,2,4
    python scripts/benchmark.py start --sizes=digits,full
    python scripts/benchmark.py sample --sizes=full --batch_sizes=16,64
    python scripts/benchmark.py overhead --sizes=digits
    python scripts/benchmark.py fid
    python scripts/benchmark.py input

context: the modules that mix the whole image. Parameters; multiply-adds, counted in the program
that XLA compiles, beside those by formula; peak memory beyond weights and input, each in a process
of its own; forward and forward + backward time, the median of rounds in which all modules take
turns. Then growth with n = H W ("scaling") and with K ("steps").

step: whole training steps side by side, one of the discriminator and one of the generator, on made
images, several a host call as in training: the median of rounds in which all take turns;
multiply-adds that the chosen forms need, counted in the program that XLA compiles, and their rate
against the best of a product of matrices and a plain convolution in the same rounds; peak memory of
a process that builds, compiles and trains. The network "published" is the published graph,
operation by operation, of size full in float32. --trace: the operations of the first one that take
longest, by self time.

scaling: the same, one number varied at a time: logical CPUs that share the batch (each number in a
process of its own, one after the other, so that they take no turns), images a step, microbatches.

start: from the command to the first and the second step, in a process of its own each time; and
how long --help of the commands takes.

sample: images a second of the generator, and how long the 50,000 of a FID take.

overhead: what a checkpoint takes of the time of steps (copied before the next one; written, read
back and named beside it) and a grid of samples, and their share of the time at the steps between
them in the shipped configurations.

fid: FID of 2048 features from moments, on the CPU. Ours, ours with the reference's factor cached,
and TF-GAN's own (half a minute) of the same moments: time, value, relative difference.

input: images per second and resident memory of the input pipeline, on made full-size JPEGs and on
squares packed from them, beside the plain
`tfds.load(...).map(decode, crop_and_resize).shuffle(10000).batch()`; and an estimate of what TPU
slices take. Took 11 minutes on two busy cores, and half a GB of temporary files.

segmentation: every network of segmentation's published tables. Parameters and multiply-adds at
512x512 as the tables count them, beside the published ones; time and memory of inference on one
image and of a training step of --step_images, each network in a process of its own. (Without
--measured it only counts, 5 seconds a network.)

    python scripts/benchmark.py segmentation --models=light_ham_tiny,light_ham_base --repeats=3

Tables go to the terminal, everything to a JSON file of the command's name, with a picture of
context, step, scaling and input, in --output.
"""

import sys

from absl import app, flags, logging

from hamgan import arguments, choices
from hamgan.benchmarks import names
from hamgan.cli import common, lazily, paths, streams

with lazily.imports():
    from hamgan.benchmarks import measure
    from hamgan.cli import benchmark_parts, benchmark_segmentation, benchmark_steps

FLAGS = flags.FLAGS
# What can be measured.
COMMANDS = (
    *("context", "step", "scaling", "start", "sample", "overhead", "fid", "input"),
    "segmentation",
)


def commands():
    """{what can be measured: (function, the flags that it takes)}."""
    return {
        **benchmark_parts.COMMANDS,
        **benchmark_steps.COMMANDS,
        **benchmark_segmentation.COMMANDS,
    }


def main(argv):
    if len(argv) != 2 or argv[1] not in COMMANDS:
        raise app.UsageError(f"Say what to measure, one of: {', '.join(COMMANDS)}; got {argv[1:]}.")
    streams.import_tensorflow()
    lazily.load()
    logging.set_verbosity(logging.WARNING)
    command, taken = commands()[argv[1]]
    try:
        command(**{name: FLAGS[name].value for name in taken})
    except (ValueError, measure.ChildError) as error:
        sys.exit(f"\nERROR: {error}")


def define_flags():
    """Defines the flags of the command."""
    flags.DEFINE_list(
        "shape",
        ["all"],
        "context: paper, generator, discriminator, all, none, or sizes like 4x64x64x128.",
    )
    flags.DEFINE_list(
        "modules", None, f"context: some of {', '.join(names.MODULES)}; default: all."
    )
    flags.DEFINE_list(
        "sweeps",
        list(names.SWEEPS),
        f"context: growth to measure, some of {', '.join(names.SWEEPS)}; or none.",
    )
    flags.DEFINE_list(
        "sizes", list(names.STEP_SIZES), f"step and around it: of {', '.join(names.STEP_SIZES)}."
    )
    flags.DEFINE_list(
        "networks",
        ["hamburger"],
        f"step and around it: by their context module, some of {', '.join(names.STEP_NETWORKS)}.",
    )
    flags.DEFINE_list(
        "precisions", ["float32"], f"step and around it: some of {', '.join(arguments.PRECISIONS)}."
    )
    flags.DEFINE_list(
        "batch_sizes",
        None,
        "step and around it: images a step; default: the size's own, for scaling its half and "
        "double.",
    )
    flags.DEFINE_list(
        "microbatches",
        None,
        "Parts that a batch is computed in; default: 1 for step, 2,4 for scaling.",
    )
    flags.DEFINE_list("devices", ["1", "2", "4"], "scaling: logical CPUs that share a batch.")
    flags.DEFINE_bool("trace", False, "step: where the first one's time goes.")
    flags.DEFINE_integer("width", 2048, "fid: number of features.", lower_bound=2)
    flags.DEFINE_enum(
        "accelerator", "auto", choices.ACCELERATORS, "What to compute on; scaling: the CPU."
    )
    flags.DEFINE_bool("jit", None, "context: compile with XLA; default: on TPUs.")
    flags.DEFINE_integer("images", 2_000, "input: how many photographs to make.", lower_bound=1)
    flags.DEFINE_integer("batch_size", 128, "input: images a batch.", lower_bound=1)
    flags.DEFINE_list("models", None, "segmentation: names of gin files; default: all.")
    flags.DEFINE_integer("size", 512, "segmentation: side of the image.", lower_bound=32)
    flags.DEFINE_integer("step_images", 2, "segmentation: images of a step.", lower_bound=1)
    flags.DEFINE_bool("measured", True, "segmentation: measure time and memory too.")
    flags.DEFINE_integer("repeats", 5, "Rounds of timing.", lower_bound=1)
    paths.define_path("output", "runs/benchmark", "Folder for JSON and pictures, local or gs://.")


def run():
    """The command."""
    define_flags()
    common.show_in_help(sys.modules[__name__])
    app.run(main)
