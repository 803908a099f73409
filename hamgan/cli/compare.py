"""Trains several configurations with several seeds, one after the other, and compares them in one
table and one figure: what `segment.py heads` does. (GANs are compared by scripts/sweep.py.)
"""

import json
import os
import subprocess
import sys

import numpy as np
import tensorflow as tf
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from tqdm import tqdm

from hamgan.evaluation.scores import HEADLINE
from hamgan.run import records
from hamgan.run.folder import Folder
from hamgan.run.history import History


def train_one(
    config, seed, *, output_dir, data_dir, params=(), command=("train.py",), of="trainer.Trainer"
):
    """Trains one configuration with one seed; returns the run's folder.

    Args:
      config: gin file.
      seed: of the run.
      output_dir: its folder lies there.
      data_dir: of the data sets.
      params: more gin bindings.
      command: the script, and words that follow its name.
      of: the trainer whose seed it is, as gin names it.

    Raises:
      ValueError: the training failed.
    """
    name = os.path.splitext(os.path.basename(config))[0]
    model_dir = os.path.join(output_dir, f"{name}-seed{seed}")
    command = [
        sys.executable,
        os.path.join(os.path.dirname(os.path.abspath(__file__)), command[0]),
        *command[1:],
        f"--model_dir={model_dir}",
        f"--data_dir={data_dir}",
        f"--gin_file={config}",
        f"--gin_param={of}.seed = {seed}",
        *(f"--gin_param={param}" for param in params),
    ]
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if result.returncode:
        raise ValueError(
            f"{' '.join(command)}\nended with status {result.returncode}:\n{result.stdout[-3000:]}"
        )
    return model_dir


def summarize(name, model_dirs, *, score=HEADLINE, details=None):
    """One row: a score over steps of all seeds, and what it cost.

    Args:
      name: of the row.
      model_dirs: a run for each seed.
      score: the `scores.Score`.
      details: {title: function evaluation record -> number}, means of which are in the row too.
    """
    curves, rates, others = [], [], {title: [] for title in details or {}}
    for model_dir in model_dirs:
        history = History(Folder(model_dir).metrics)
        curves.append(history.scores(score.name))
        rates.append(np.median([r["images_per_second"] for r in history.of_kind("train")]))
        for title, function in (details or {}).items():
            others[title].append(function(history.of_kind("evaluation")[-1]))
    steps = sorted(set.intersection(*map(set, curves)))
    values = np.array([[curve[step] for step in steps] for curve in curves])  # [seeds, steps]
    spread = float(values[:, -1].std(ddof=1)) if len(curves) > 1 else 0.0
    return {
        "name": name,
        "seeds": len(curves),
        "steps": steps,
        score.name: values.tolist(),
        f"{score.name}_mean": float(values[:, -1].mean()),
        f"{score.name}_std": spread,
        f"{score.name}_min": float(values[:, -1].min()),
        "images_per_second": float(np.median(rates)),
        **{title: float(np.mean(found)) for title, found in others.items()},
    }


def table(rows, *, score=HEADLINE, details=()):
    """The rows as a Markdown table, the best first."""
    title = score.title
    lines = [
        "| ".join([f"| configuration | {title} mean | std | min ", *(f"{d} " for d in details)])
        + "| seeds | step | images/s |",
        "|---" * (7 + len(details)) + "|",
    ]
    key = f"{score.name}_mean"
    digits = 2 if score.better == "lower" else 3
    for row in sorted(rows, key=lambda row: row[key], reverse=score.better == "higher"):
        parts = [row[f"{score.name}_{part}"] for part in ("mean", "std", "min")]
        parts += [row[detail] for detail in details]
        cells = " | ".join(f"{part:.{digits}f}" for part in parts)
        lines.append(
            f"| {row['name']} | {cells} | {row['seeds']} "
            f"| {row['steps'][-1]:,} | {row['images_per_second']:.0f} |"
        )
    return "\n".join(lines)


def draw(path, rows, *, score=HEADLINE):
    """A score over steps: a line for each configuration's mean, a band from its smallest to its
    largest value.
    """
    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for row in rows:
        values = np.array(row[score.name])
        (line,) = axes.plot(row["steps"], values.mean(axis=0), marker="o", label=row["name"])
        axes.fill_between(
            row["steps"],
            values.min(axis=0),
            values.max(axis=0),
            color=line.get_color(),
            alpha=0.15,
        )
    scale = "log" if score.better == "lower" else "linear"
    title = f"{score.title} (mean of seeds; band: smallest to largest)"
    axes.set(xlabel="step", ylabel=title, yscale=scale)
    axes.grid(alpha=0.3)
    axes.legend()
    with tf.io.gfile.GFile(path, "wb") as file:
        figure.savefig(file, format="png", dpi=120)


def compare(configs, *, seeds, output_dir, score=HEADLINE, details=None, **of_run):
    """Trains configurations with seeds 0, 1, ..., and writes table, numbers and figure.

    Args:
      configs: gin files.
      seeds: how many.
      output_dir: folder of the runs and of the comparison.
      score, details: as of `summarize`.
      **of_run: as of `train_one`.

    Raises:
      ValueError: a training failed.
    """
    jobs = [(config, seed) for seed in range(seeds) for config in configs]
    folders = {config: [] for config in configs}
    for config, seed in (bar := tqdm(jobs, unit="run")):
        bar.set_description(f"{os.path.basename(config)} seed {seed}")
        folders[config].append(train_one(config, seed, output_dir=output_dir, **of_run))
    rows = [
        summarize(
            os.path.splitext(os.path.basename(c))[0], folders[c], score=score, details=details
        )
        for c in configs
    ]
    text = table(rows, score=score, details=tuple(details or ()))
    output = {
        ending: os.path.join(output_dir, f"comparison.{ending}") for ending in ("md", "json", "png")
    }
    records.write_whole(output["md"], (text + "\n").encode())
    records.write_whole(output["json"], json.dumps(rows, indent=1).encode())
    draw(output["png"], rows, score=score)
    print(text)
    print("\n".join(output.values()))
