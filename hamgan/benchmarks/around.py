"""What is around the step: the start, drawing samples, checkpoints and grids.

The jobs are generator functions, as in `step`, for processes of their own (`measure.in_child`).
"""

import collections
import dataclasses
import os
import statistics
import subprocess
import sys
import tempfile
import time

from hamgan import distribution, grids, sampling
from hamgan.benchmarks import context_report, measure, step
from hamgan.run import checkpoints, contents

# Commands whose --help is timed, functions of `hamgan.cli.commands`.
COMMANDS = ("train", "evaluate", "sample", "doctor", "sweep", "export", "explore", "segment")
# Steps between checkpoints and between grids, as configs/imagenet128.gin and digits.gin say.
PERIODS = {
    "full": {"checkpoint": 5_000, "grid": 10_000},
    "digits": {"checkpoint": 300, "grid": 300},
}
_PROTOCOL = 50_000


def help_seconds(command):
    """Seconds from a command's start to the end of its --help.

    Raises:
      measure.ChildError: there is no such command, or it has no help.
    """
    program = f"from hamgan.cli import commands; commands.{command}()"
    outputs = []

    def call():
        outputs.append(
            subprocess.run(
                [sys.executable, "-c", program, "--help"],
                capture_output=True,
                text=True,
                env=measure.child_environment(),
                check=False,
            )
        )

    seconds = measure.seconds(call)
    if "--help" not in outputs[0].stdout:  # one with subcommands lists no flags
        raise measure.ChildError(f"{command} --help: {outputs[0].stderr[-500:]}")
    return seconds


def start_job(*, case, accelerator, launched):
    """Yields {"imported", "built", "first", "second"}: seconds since the process was launched, at
    `launched` (`time.time()`), when TensorFlow is there, the networks, the first step, the second.
    """
    found = {"imported": time.time() - launched}
    subject = step.Subject(step.Case(**case), strategy=distribution.create_strategy(accelerator))
    found["built"] = time.time() - launched
    for name in ("first", "second"):
        subject.run()
        found[name] = time.time() - launched
    yield found


def measure_start(cases, *, repeats=3, accelerator="auto", run=measure.in_child):
    """Measures how long commands and networks take to start, each `repeats` times.

    Returns:
      ({command: seconds of --help}, a dictionary per case: its 'title' and what `start_job`
      yields), medians.
    """
    helps = {
        command: statistics.median(help_seconds(command) for _ in range(repeats))
        for command in measure.progress_bar(COMMANDS, desc="--help", unit="command")
    }
    rows = []
    for case in cases:
        found = collections.defaultdict(list)
        for _ in measure.progress_bar(range(repeats), desc=f"start of {case}", unit="start"):
            on = {"accelerator": accelerator, "launched": time.time()}
            (record,) = run(start_job, {"case": dataclasses.asdict(case), **on})
            for name, seconds in record.items():
                found[name].append(seconds)
        medians = {name: statistics.median(seconds) for name, seconds in found.items()}
        rows.append({"title": str(case), **medians})
    return helps, rows


def start_table(helps, rows):
    """What `measure_start` found, as text."""
    lines = [
        [row["title"], *(f"{row[name]:.1f} s" for name in ("imported", "built", "first", "second"))]
        for row in rows
    ]
    header = ["since the start", "TensorFlow", "networks", "first step", "second step"]
    shown = [[f"{command} --help", f"{seconds:.2f} s"] for command, seconds in helps.items()]
    return (
        context_report.aligned(header, lines)
        + "\n\n"
        + context_report.aligned(["command", "seconds"], shown)
    )


def sample_job(*, cases, repeats, accelerator):
    """Yields, in rounds in which all cases take turns, {"case": index, "seconds": of a batch}, or
    {"case": index, "error": text}.
    """
    strategy = distribution.create_strategy(accelerator)
    calls = {}
    for index, given in enumerate(cases):
        case = step.Case(**given)
        with strategy.scope():
            generator = case.experiment().generator()
        sampler = sampling.Sampler(generator, strategy=strategy, batch_size=case.images)
        calls[index] = lambda s=sampler, n=case.images: measure.seconds(lambda: s.sample(n))
    for index, value in measure.interleaved_seconds(calls, repeats=repeats):
        if isinstance(value, Exception):
            yield {"case": index, "error": measure.first_line(value)}
        elif value is not None:
            yield {"case": index, "seconds": value}


def measure_samples(cases, *, repeats=5, accelerator="auto", run=measure.in_child):
    """Measures how fast generators draw.

    Returns:
      A dictionary per case: 'title', 'seconds' of a batch (the median), 'images_per_second',
      'protocol_seconds' of the 50,000 images of a FID; or 'title' and 'error'.
    """
    plain = [dataclasses.asdict(case) for case in cases]
    found, errors = collections.defaultdict(list), {}
    given = {"cases": plain, "repeats": repeats, "accelerator": accelerator}
    records = run(sample_job, given)
    for record in measure.progress_bar(records, total=len(cases) * repeats, desc="sample"):
        if "error" in record:
            errors[record["case"]] = record["error"]
        else:
            found[record["case"]].append(record["seconds"])
    rows = []
    for index, case in enumerate(cases):
        if index in errors:
            rows.append({"title": str(case), "error": errors[index]})
            continue
        seconds = statistics.median(found[index])
        rows.append(
            {
                "title": str(case),
                "seconds": seconds,
                "images_per_second": case.images / seconds,
                "protocol_seconds": _PROTOCOL * seconds / case.images,
            }
        )
    return rows


def sample_table(rows):
    """What `measure_samples` found, as text."""
    lines = [
        [row["title"], row["error"], ""]
        if "error" in row
        else [
            row["title"],
            f"{row['images_per_second']:.1f}",
            f"{row['protocol_seconds'] / 60:.1f} min",
        ]
        for row in rows
    ]
    return context_report.aligned(["", "images/s", f"{_PROTOCOL:,} images"], lines)


def overhead_job(*, case, repeats, accelerator):
    """Yields {"step", "checkpoint", "begin", "grid": seconds of each, medians; "bytes": of a
    checkpoint}.

    A checkpoint is what a run writes: networks and optimizers, copied ("begin"), and written aside,
    read back and named beside the steps. "checkpoint" is what the steps lose in all: all that this
    takes of the processor where steps are the processor's too, and "begin" where they aren't. A
    moving average of the weights, and standing statistics for a grid, would come on top.
    """
    settings = step.SIZES[case["size"]]
    subject = step.Subject(step.Case(**case), strategy=distribution.create_strategy(accelerator))
    trainer = subject.trainer
    grid = grids.SampleGrid(
        trainer.generator,
        strategy=trainer.strategy,
        class_names=[str(label) for label in range(settings["num_classes"])],
    )
    with tempfile.TemporaryDirectory() as folder:
        variables = trainer.variables()
        kept = checkpoints.Checkpoints(folder, variables, max_to_keep=1)

        def begin():
            contents.first_not_finite(variables)  # as a run asks before
            kept.begin()

        def draw():
            grid.save(os.path.join(folder, "grid.png"), grid.images())

        times = collections.defaultdict(list)
        for round_number in range(repeats + 1):
            step_seconds = measure.seconds(subject.run)
            begin_seconds = measure.seconds(begin)
            passed, steps = begin_seconds, 0
            while not kept.is_written:
                passed += measure.seconds(subject.run)
                steps += 1
            kept.finish()
            step_seconds = (step_seconds + measure.seconds(subject.run)) / 2
            grid_seconds = measure.seconds(draw)
            if round_number:  # the first one traces, and makes folders and threads
                times["step"].append(step_seconds)
                times["begin"].append(begin_seconds)
                times["checkpoint"].append(max(passed - steps * step_seconds, begin_seconds))
                times["grid"].append(grid_seconds)
        found = {name: statistics.median(all_times) for name, all_times in times.items()}
        found["bytes"] = sum(
            os.path.getsize(os.path.join(root, name))
            for root, _, names in os.walk(folder)
            for name in names
            if not name.endswith(".png")
        )
    yield found


def measure_overhead(cases, *, repeats=3, accelerator="auto", run=measure.in_child):
    """Measures what a run does beside its steps.

    Returns:
      A dictionary per case: 'title', what `overhead_job` yields, and 'shares' {'checkpoint',
      'grid': of the time, at `PERIODS`}.
    """
    rows = []
    for case in measure.progress_bar(cases, desc="overhead", unit="case"):
        given = {"case": dataclasses.asdict(case), "repeats": repeats, "accelerator": accelerator}
        (found,) = run(overhead_job, given)
        shares = {
            name: found[name] / (steps * found["step"])
            for name, steps in PERIODS[case.size].items()
        }
        rows.append({"title": str(case), **found, "shares": shares})
    return rows


def overhead_table(cases, rows):
    """What `measure_overhead` found, as text."""
    lines = []
    for case, row in zip(cases, rows, strict=True):
        for name, steps in PERIODS[case.size].items():
            about, begin = "", ""
            if name == "checkpoint":
                about = f", {row['bytes'] / 1e6:.0f} MB"
                begin = f", {row['begin']:.2f} s before the next step"
            lines.append(
                [
                    row["title"],
                    f"{name}{about}",
                    f"{row[name]:.2f} s{begin}",
                    f"{steps:,} steps of {row['step']:.2f} s",
                    f"{row['shares'][name]:.2%}",
                ]
            )
    return context_report.aligned(["", "what", "takes", "every", "share of the time"], lines)
