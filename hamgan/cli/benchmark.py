"""Measures what parts of the project cost on this machine.

    python scripts/benchmark.py context
    python scripts/benchmark.py context --shape=paper --modules=self_attention,v1_nmf --sweeps=none
    python scripts/benchmark.py context --shape=4x64x64x128 --repeats=20 --output=runs/benchmark
    python scripts/benchmark.py context --shape=none --sweeps=steps
    python scripts/benchmark.py step --sizes=full,digits --precisions=float32,mixed_bfloat16
    python scripts/benchmark.py step --sizes=digits --networks=none,hamburger,self_attention --trace
    python scripts/benchmark.py step --sizes=digits --batch_sizes=16,64 --microbatches=1,4
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
a process that builds, compiles and trains. --trace: the operations of the first one that take
longest, by self time.

scaling: the same, one number varied at a time: logical CPUs that share the batch (each number in a
process of its own, one after the other, so that they take no turns), images a step, microbatches.

start: from the command to the first and the second step, in a process of its own each time; and
how long --help of the commands takes.

sample: images a second of the generator, and how long the 50,000 of a FID take.

overhead: how long a checkpoint takes (written aside, read back, named) and a grid of samples, and
their share of the time at the steps between them in the shipped configurations.

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

import json
import os
import re
import sys

from absl import app, flags, logging

from hamgan import arguments, distribution
from hamgan.benchmarks import (
    context,
    context_modules,
    context_report,
    fid,
    input_report,
    measure,
    step,
)
from hamgan.benchmarks import input as feeding
from hamgan.cli import benchmark_segmentation, benchmark_steps, common, paths
from hamgan.run import records

FLAGS = flags.FLAGS
SWEEPS = ("scaling", "steps")


def parse_shapes(names):
    """The `context_modules.Shape`s of names: 'all',
    names of `context_modules.SHAPES`, or sizes like
    4x64x64x128.
    """
    shapes = []
    for name in names:
        sizes = re.fullmatch(r"(?:(\d+)x)?(\d+)x(\d+)x(\d+)", name)
        if name == "all":
            shapes += context_modules.SHAPES.values()
        elif name in context_modules.SHAPES:
            shapes.append(context_modules.SHAPES[name])
        elif sizes:
            batch, height, width, channels = (int(size or 1) for size in sizes.groups())
            rank = max(1, channels // 8)
            shapes.append(
                context_modules.Shape(
                    name=name, batch=batch, height=height, width=width, channels=channels, rank=rank
                )
            )
        elif name != "none":
            raise ValueError(
                f"--shape must be all, none, some of {', '.join(context_modules.SHAPES)}, or sizes "
                "like "
                "4x64x64x128 (batch, "
                f"height, width, channels); got {name!r}."
            )
    return shapes


def benchmark_context(
    *, shapes, modules, sweeps, repeats, accelerator, jit, output, run=measure.in_child
):
    """Measures, prints, and writes context.json and context.png into the folder `output`, anew
    after every part.
    """
    context_modules.check_modules(modules)
    (device,) = run(context.device_job, {"accelerator": accelerator, "jit": jit})
    how = (
        f"{device['device']}, {device['cores']} cores, load {device['load']}, "
        f"{'XLA' if device['jit'] else 'no XLA'}"
    )
    print(f"{how}, TensorFlow {device['tensorflow']}", flush=True)
    parts = {"shapes": [], "scaling": [], "steps": []}
    result = {"kind": "context", **device, "repeats": repeats, **parts}
    path = os.path.join(output, "context")

    def measured(cases, **modes):
        return context.measure_cases(
            cases, repeats=repeats, accelerator=accelerator, jit=jit, run=run, **modes
        )

    def publish(title, table):
        print(f"\n{title}\n{table}\n", flush=True)
        records.write_whole(path + ".json", json.dumps(result, indent=1).encode())
        context_report.draw(result, path + ".png")

    for shape in shapes:
        cases = [context_modules.Case(module=module, shape=shape) for module in modules]
        rows = measured(cases, title=shape.name)
        title = f"{shape.name.capitalize()}: {shape}, K=6"
        result["shapes"].append({"name": shape.name, "title": title, "rows": rows})
        is_paper = shape == context_modules.SHAPES["paper"]
        publish(title, context_report.cost_table(rows, published=is_paper))
    scaled = [module for module in context.SCALING_MODULES if module in modules]
    if "scaling" in sweeps and scaled:
        training = dict(memory_modes=("training",), time_modes=("training",))
        result["scaling"] = rows = measured(
            context.scaling_cases(scaled), title="scaling", **training
        )
        result["exponents"] = context_report.exponents(rows)
        publish(
            "Growth with n = H W; exponents p fitted to the largest n",
            context_report.scaling_table(rows),
        )
    if "steps" in sweeps:
        parts = dict(memory_modes=("training",), time_modes=("forward", "backward"))
        result["steps"] = rows = measured(context.steps_cases(), title="steps", **parts)
        publish(
            f"Growth with K: {rows[0]['title']}, {context.STEPS_SHAPE}",
            context_report.steps_table(rows),
        )
    print(f"Written: {path}.json, {path}.png")


def context_command(*, shape, modules, sweeps, repeats, accelerator, jit, output):
    unknown = set(sweeps) - {*SWEEPS, "none"}
    if unknown:
        raise ValueError(
            f"--sweeps must be none or some of {', '.join(SWEEPS)}; got "
            f"{', '.join(sorted(unknown))!r}."
        )
    shapes = parse_shapes(shape)
    if not shapes and "none" in sweeps:
        raise ValueError("There is nothing to measure: --shape=none and --sweeps=none.")
    benchmark_context(
        shapes=shapes,
        modules=modules or list(context_modules.MODULES),
        sweeps=sweeps,
        repeats=repeats,
        accelerator=accelerator,
        jit=jit,
        output=output,
    )


def fid_command(*, width, repeats, output):
    result = fid.measure_fid(width=width, repeats=repeats)
    path = os.path.join(output, "fid.json")
    records.write_whole(path, json.dumps(result, indent=1).encode())
    how = (
        f"{result['cores']} cores, load {result['load']} before, TensorFlow {result['tensorflow']}"
    )
    print(
        f"{how}\n\nFID from moments of {result['width']} "
        f"features\n{fid.fid_table(result)}\n\nWritten: {path}"
    )


def benchmark_input(*, images, batch_size, repeats, output, seconds=3.0, run=measure.in_child):
    """Measures, prints, and writes input.json and input.png into the folder `output`."""
    device = benchmark_steps.show_device("cpu", run)
    del device["jit"]
    measured = feeding.measure_arrangements(
        count=images, batch_size=batch_size, repeats=repeats, seconds=seconds, run=run
    )
    print(
        f"\n{images:,} JPEGs of {feeding.WIDTH}x{feeding.HEIGHT}, {measured['bytes'] / 1e3:.0f} KB "
        "each, to "
        f"{feeding.IMAGE_SIZE}x{feeding.IMAGE_SIZE}; batch {batch_size}\n{feeding.HOW_MADE}"
    )
    print(f"\n{input_report.feed_table(measured['rows'])}")
    print(f"\nWhat TPU slices take\n{input_report.demand_table(measured['rows'])}\n")
    demand = {name: input_report.demand(tpu) for name, tpu in input_report.SLICES.items()}
    settings = {"kind": "input", "images": images, "batch_size": batch_size, "repeats": repeats}
    result = {**settings, **device, **measured, "demand": demand}
    path = os.path.join(output, "input")
    records.write_whole(path + ".json", json.dumps(result, indent=1).encode())
    input_report.draw(result, path + ".png")
    print(f"Written: {path}.json, {path}.png")


# What can be measured: a function and the flags that it takes.
COMMANDS = {
    "context": (
        context_command,
        ("shape", "modules", "sweeps", "repeats", "accelerator", "jit", "output"),
    ),
    **benchmark_steps.COMMANDS,
    "fid": (fid_command, ("width", "repeats", "output")),
    "input": (benchmark_input, ("images", "batch_size", "repeats", "output")),
    "segmentation": (
        benchmark_segmentation.command,
        ("models", "size", "step_images", "repeats", "accelerator", "measured", "output"),
    ),
}


def main(argv):
    if len(argv) != 2 or argv[1] not in COMMANDS:
        raise app.UsageError(f"Say what to measure, one of: {', '.join(COMMANDS)}; got {argv[1:]}.")
    logging.set_verbosity(logging.WARNING)
    try:
        command, names = COMMANDS[argv[1]]
        command(**{name: FLAGS[name].value for name in names})
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
        "modules", None, f"context: some of {', '.join(context_modules.MODULES)}; default: all."
    )
    flags.DEFINE_list(
        "sweeps", list(SWEEPS), f"context: growth to measure, some of {', '.join(SWEEPS)}; or none."
    )
    flags.DEFINE_list("sizes", list(step.SIZES), f"step and around it: of {', '.join(step.SIZES)}.")
    flags.DEFINE_list(
        "networks",
        ["hamburger"],
        f"step and around it: by their context module, some of {', '.join(step.MODULES)}.",
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
        "accelerator", "auto", distribution.ACCELERATORS, "What to compute on; scaling: the CPU."
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
