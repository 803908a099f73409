"""Commands of `benchmark`: context modules, FID, the input."""

import json
import os
import re

from hamgan.benchmarks import (
    context,
    context_modules,
    context_report,
    fid,
    input_report,
    measure,
    names,
)
from hamgan.benchmarks import input as feeding
from hamgan.cli import benchmark_steps
from hamgan.run import records


def parse_shapes(chosen):
    """The `context_modules.Shape`s of names: 'all',
    names of `context_modules.SHAPES`, or sizes like
    4x64x64x128.
    """
    shapes = []
    for name in chosen:
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
    unknown = set(sweeps) - {*names.SWEEPS, "none"}
    if unknown:
        raise ValueError(
            f"--sweeps must be none or some of {', '.join(names.SWEEPS)}; got "
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


COMMANDS = {
    "context": (
        context_command,
        ("shape", "modules", "sweeps", "repeats", "accelerator", "jit", "output"),
    ),
    "fid": (fid_command, ("width", "repeats", "output")),
    "input": (benchmark_input, ("images", "batch_size", "repeats", "output")),
}
