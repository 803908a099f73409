"""Trains several configurations with several seeds, one after the other, and compares them in one
table and one figure.

    python scripts/compare.py --data_dir=data --output_dir=runs/compare

Each run is a run of scripts/train.py in a folder of its own, OUTPUT_DIR/NAME-seedS; what is
finished isn't run again, and what was interrupted goes on where it was. Ends with
OUTPUT_DIR/comparison.md, .json and .png.
"""

import json
import os
import subprocess
import sys

import numpy as np
import tensorflow as tf
from absl import app, flags
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from tqdm import tqdm

from hamgan.cli import common, paths
from hamgan.run import records
from hamgan.run.folder import Folder
from hamgan.run.history import History

FLAGS = flags.FLAGS
DEFAULT = ("digits_sngan", "digits_sagan", "digits_ylg", "digits", "digits_strong")


def train_one(config, seed, *, output_dir, data_dir, params=()):
    """Trains one configuration with one seed; returns the run's folder. ValueError: the training
    failed.
    """
    name = os.path.splitext(os.path.basename(config))[0]
    model_dir = os.path.join(output_dir, f"{name}-seed{seed}")
    command = [
        sys.executable,
        os.path.join(os.path.dirname(os.path.abspath(__file__)), "train.py"),
        f"--model_dir={model_dir}",
        f"--data_dir={data_dir}",
        f"--gin_file={config}",
        f"--gin_param=trainer.Trainer.seed = {seed}",
        *(f"--gin_param={param}" for param in params),
    ]
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if result.returncode:
        raise ValueError(
            f"{' '.join(command)}\nended with status {result.returncode}:\n{result.stdout[-3000:]}"
        )
    return model_dir


def summarize(name, model_dirs):
    """One row: FID over steps of all seeds, and what it cost."""
    curves, rates = [], []
    for model_dir in model_dirs:
        history = History(Folder(model_dir).metrics)
        curves.append(history.scores("fid"))
        rates.append(np.median([r["images_per_second"] for r in history.of_kind("train")]))
    steps = sorted(set.intersection(*map(set, curves)))
    fids = np.array([[curve[step] for step in steps] for curve in curves])  # [seeds, steps]
    spread = float(fids[:, -1].std(ddof=1)) if len(curves) > 1 else 0.0
    return {
        "name": name,
        "seeds": len(curves),
        "steps": steps,
        "fid": fids.tolist(),
        "fid_mean": float(fids[:, -1].mean()),
        "fid_std": spread,
        "fid_min": float(fids[:, -1].min()),
        "images_per_second": float(np.median(rates)),
    }


def table(rows):
    """The rows as a Markdown table, the best first."""
    lines = [
        "| configuration | FID mean | std | min | seeds | step | images/s |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda row: row["fid_mean"]):
        lines.append(
            f"| {row['name']} | {row['fid_mean']:.2f} | {row['fid_std']:.2f} | "
            f"{row['fid_min']:.2f} | {row['seeds']} "
            f"| {row['steps'][-1]:,} | {row['images_per_second']:.0f} |"
        )
    return "\n".join(lines)


def draw(path, rows):
    """FID over steps: a line for each configuration's mean, a band from its smallest to its largest
    value.
    """
    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for row in rows:
        fids = np.array(row["fid"])
        (line,) = axes.plot(row["steps"], fids.mean(axis=0), marker="o", label=row["name"])
        axes.fill_between(
            row["steps"], fids.min(axis=0), fids.max(axis=0), color=line.get_color(), alpha=0.15
        )
    axes.set(xlabel="step", ylabel="FID (mean of seeds; band: smallest to largest)", yscale="log")
    axes.grid(alpha=0.3)
    axes.legend()
    with tf.io.gfile.GFile(path, "wb") as file:
        figure.savefig(file, format="png", dpi=120)


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Arguments without a flag name: {argv[1:]}. Write --name=value.")
    configs = [c if c.endswith(".gin") else f"configs/{c}.gin" for c in FLAGS.configs]
    jobs = [(config, seed) for seed in range(FLAGS.seeds) for config in configs]
    folders = {config: [] for config in configs}
    try:
        for config, seed in (bar := tqdm(jobs, unit="run")):
            bar.set_description(f"{os.path.basename(config)} seed {seed}")
            folder = train_one(
                config,
                seed,
                output_dir=FLAGS.output_dir,
                data_dir=FLAGS.data_dir,
                params=FLAGS.gin_param,
            )
            folders[config].append(folder)
    except ValueError as error:
        sys.exit(f"\nERROR: {error}")
    rows = [summarize(os.path.splitext(os.path.basename(c))[0], folders[c]) for c in configs]
    text = table(rows)
    output = {
        ending: os.path.join(FLAGS.output_dir, f"comparison.{ending}")
        for ending in ("md", "json", "png")
    }
    records.write_whole(output["md"], (text + "\n").encode())
    records.write_whole(output["json"], json.dumps(rows, indent=1).encode())
    draw(output["png"], rows)
    print(text)
    print("\n".join(output.values()))


def define_flags():
    """Defines the flags of the command."""
    flags.DEFINE_list("configs", list(DEFAULT), "Gin files, or names of files in configs/.")
    flags.DEFINE_integer(
        "seeds", 3, "Runs of each configuration, with the seeds 0, 1, ...", lower_bound=1
    )
    paths.define_path("output_dir", "runs/compare", "Folder of the runs and of the comparison.")
    paths.define_path("data_dir", "data", "Folder of the prepared TFDS data sets.")
    flags.DEFINE_multi_string(
        "gin_param", [], "One more gin binding for all runs. May be repeated."
    )


def run():
    """The command."""
    define_flags()
    common.show_in_help(sys.modules[__name__])
    app.run(main)
