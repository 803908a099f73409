"""What every network of segmentation's tables costs: the part of `benchmark.py segmentation` that
reads gin files.
"""

import dataclasses
import json
import os

from hamgan import distribution
from hamgan.benchmarks import measure
from hamgan.benchmarks import segmentation as costs
from hamgan.cli import benchmark_steps, segment_common
from hamgan.run import records


def load(name):
    """The experiment of configs/segmentation/NAME.gin."""
    return segment_common.load_files([f"configs/segmentation/{name}.gin"])


def job(*, name, size, step_images, repeats, accelerator):
    """Yields what one network costs, part by part: for a process of its own."""
    experiment = load(name)
    count = costs.count(experiment.network, size)
    published = costs.NETWORKS[name]
    at_size = size == 512
    yield {
        "name": name,
        **dataclasses.asdict(count),
        "giga": count.giga(published),
        "published_millions": published.millions,
        "published_giga": published.giga if at_size else None,
    }
    strategy = distribution.create_strategy(accelerator, across_hosts=False)
    yield from costs.cost(
        experiment, size=size, step_images=step_images, repeats=repeats, strategy=strategy
    )


def command(
    *, models, size, step_images, repeats, accelerator, measured, output, run=measure.in_child
):
    """Counts, measures, prints, and writes segmentation.json into the folder `output`, anew after
    every network.
    """
    names = models or list(costs.NETWORKS)
    if unknown := [name for name in names if name not in costs.NETWORKS]:
        raise ValueError(
            f"--models must be some of {', '.join(costs.NETWORKS)}; got {', '.join(unknown)}."
        )
    device = benchmark_steps.show_device(accelerator, run)
    del device["jit"]
    settings = dict(size=size, step_images=step_images, repeats=repeats)
    result = {"kind": "segmentation", **settings, **device, "rows": []}
    path = os.path.join(output, "segmentation.json")
    for name in names:
        row = {"name": name}
        result["rows"].append(row)
        environment = measure.MEMORY_ENVIRONMENT
        arguments = dict(name=name, accelerator=accelerator, **settings)
        try:
            for part in run(job, arguments, environment=environment):
                row.update(part)
                if not measured:
                    break
        except measure.ChildError as error:
            # What was counted stays beside what couldn't be measured.
            row["failed" if "parameters" in row else "error"] = str(error)
        print(costs.table([row]).splitlines()[-1], flush=True)
        records.write_whole(path, json.dumps(result, indent=1).encode())
    title = f"Inference on one image of {size}x{size}; a training step of {step_images}"
    print(f"\n{title}\n{costs.table(result['rows'])}\n\nWritten: {path}")


COMMANDS = {
    "segmentation": (
        command,
        ("models", "size", "step_images", "repeats", "accelerator", "measured", "output"),
    ),
}
