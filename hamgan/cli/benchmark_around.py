"""`benchmark.py start`, `sample` and `overhead`."""

import functools
import itertools
import json
import os

from hamgan.benchmarks import around, context, measure, step
from hamgan.cli import common
from hamgan.run import records

FLAGS = ("sizes", "networks", "precisions", "batch_sizes", "repeats", "accelerator", "output")


def cases_of(*, sizes, networks, precisions, batch_sizes, microbatches=("1",)):
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
            common.whole_numbers("batch_sizes", batch_sizes) or [None],
            common.whole_numbers("microbatches", microbatches),
        )
    ]


def show_device(accelerator, run=measure.in_child):
    """Prints where is measured; returns it as a dictionary."""
    (device,) = run(context.device_job, {"accelerator": accelerator, "jit": False})
    print(
        "{device}, {cores} cores, load {load}, TensorFlow {tensorflow}".format(**device), flush=True
    )
    return device


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
    kind: (functools.partial(_command, kind), FLAGS) for kind in ("start", "sample", "overhead")
}
