"""`benchmark.py step` and `scaling`, and of what is around a step `start`, `sample`, `overhead`."""

import dataclasses
import functools
import itertools
import json
import os
import re

from hamgan.benchmarks import around, context, measure, step, step_report
from hamgan.run import records

FLAGS = ("sizes", "networks", "precisions", "batch_sizes", "repeats", "accelerator", "output")


def whole_numbers(name, texts):
    """The numbers of a flag's list, each at least 1."""
    for text in texts or ():
        if not re.fullmatch(r"[1-9]\d*", text):
            raise ValueError(f"--{name} must be whole numbers from 1 on, got {text!r}.")
    return [int(text) for text in texts or ()]


def cases_of(*, sizes, networks, precisions, batch_sizes, microbatches=None):
    """The `step.Case`s of flags, every combination."""
    return [
        step.Case(
            size=size,
            module=module,
            precision=precision,
            batch_size=batch_size,
            microbatches=parts,
        )
        for size, module, precision, batch_size, parts in itertools.product(
            sizes,
            networks,
            precisions,
            whole_numbers("batch_sizes", batch_sizes) or [None],
            whole_numbers("microbatches", microbatches) or [1],
        )
    ]


def scaling_cases(*, sizes, networks, precisions, batch_sizes, microbatches, devices):
    """The `step.Case`s of flags, one number varied at a time; defaults: half and double the size's
    batch, 2 and 4 microbatches.
    """
    found = []
    for case in cases_of(sizes=sizes, networks=networks, precisions=precisions, batch_sizes=None):
        images = case.images
        first = dataclasses.replace(case, batch_size=images, devices=1)
        varied = {
            "batch_size": whole_numbers("batch_sizes", batch_sizes) or [images // 2, 2 * images],
            "microbatches": whole_numbers("microbatches", microbatches) or [2, 4],
            "devices": whole_numbers("devices", devices),
        }
        found.append(first)
        for name, numbers in varied.items():
            found += [dataclasses.replace(first, **{name: number}) for number in numbers]
    return list(dict.fromkeys(found))  # each once


def show_device(accelerator, run=measure.in_child):
    """Prints where is measured; returns it as a dictionary."""
    (device,) = run(context.device_job, {"accelerator": accelerator, "jit": False})
    print(
        "{device}, {cores} cores, load {load}, TensorFlow {tensorflow}".format(**device), flush=True
    )
    return device


def benchmark_step(*, repeats, accelerator, trace, output, run=measure.in_child, **chosen):
    """Measures, prints, and writes step.json and step.png into the folder `output`."""
    cases = cases_of(**chosen)
    how = {"repeats": repeats, "accelerator": accelerator, "output": output, "run": run}
    _steps("step", cases, trace=trace, **how)


def benchmark_scaling(*, repeats, output, run=measure.in_child, **chosen):
    """As `benchmark_step`, of `scaling_cases`; scaling.json and scaling.png."""
    cases = scaling_cases(**chosen)
    _steps("scaling", cases, repeats=repeats, accelerator="cpu", output=output, run=run)


def _steps(kind, cases, *, repeats, accelerator, output, run, trace=False):
    device = show_device(accelerator, run)
    rates, rows = step.measure_steps(cases, repeats=repeats, accelerator=accelerator, run=run)
    result = {"kind": kind, **device, "repeats": repeats, "rates": rates, "rows": rows}
    best = ", ".join(f"{name} {rate / 1e9:.0f} GMACs/s" for name, rate in rates.items())
    print(f"\nThe machine's rate, the best of product and convolution: {best}")
    print(f"\n{step_report.step_table(rows)}\n")
    if trace:
        traced = {"case": dataclasses.asdict(cases[0]), "accelerator": accelerator}
        (result["trace"],) = run(step.trace_job, traced)
        print(f"{cases[0]}\n{step_report.trace_table(result['trace'])}\n")
    path = os.path.join(output, kind)
    records.write_whole(path + ".json", json.dumps(result, indent=1).encode())
    step_report.draw(rows, path + ".png")
    print(f"Written: {path}.json, {path}.png")


def _command(kind, *, repeats, accelerator, output, run=measure.in_child, **chosen):
    cases = cases_of(**chosen)
    device = show_device(accelerator, run)
    how = {"repeats": repeats, "accelerator": accelerator, "run": run}
    if kind == "start":
        helps, rows = around.measure_start(cases, **how)
        table, more = around.start_table(helps, rows), {"help": helps}
    elif kind == "sample":
        rows, more = around.measure_samples(cases, **how), {}
        table = around.sample_table(rows)
    else:
        rows, more = around.measure_overhead(cases, **how), {}
        table = around.overhead_table(cases, rows)
    path = os.path.join(output, f"{kind}.json")
    result = {"kind": kind, **device, "repeats": repeats, **more, "rows": rows}
    records.write_whole(path, json.dumps(result, indent=1).encode())
    print(f"\n{table}\n\nWritten: {path}")


COMMANDS = {
    "step": (benchmark_step, (*FLAGS, "microbatches", "trace")),
    "scaling": (
        benchmark_scaling,
        (*(name for name in FLAGS if name != "accelerator"), "microbatches", "devices"),
    ),
    **{
        kind: (functools.partial(_command, kind), FLAGS) for kind in ("start", "sample", "overhead")
    },
}
