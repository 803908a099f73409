"""What FID from moments costs: ours beside TF-GAN's own, of the same moments in the same run."""

import os
import statistics
import time

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from hamgan import tfgan
from hamgan.benchmarks import context_report
from hamgan.evaluation import metrics


def made_moments(*, width, num_samples, seed):
    """Moments of made features [num_samples, width]: correlated and never negative, as an Inception
    network's are.
    """
    rng = np.random.default_rng(seed)
    # Variances that fall as Inception's do; the same directions for every seed.
    spectrum = np.geomspace(1, 1e-3, width)[:, None]
    mixing = np.random.default_rng(0).normal(size=(width, width)) * spectrum / np.sqrt(width)
    stretch = rng.uniform(0.8, 1.2, size=width)
    features = rng.normal(size=(num_samples, width)) @ mixing * stretch
    return metrics.Moments.from_features(np.maximum(features + 0.05, 0))


def tf_gan_distance(first, second):
    """FID of two `Moments` as TF-GAN computes it, on the CPU."""
    with tf.device("CPU"):
        root_trace = tfgan.trace_sqrt_product(
            tf.constant(first.covariance), tf.constant(second.covariance)
        ).numpy()
    difference = first.mean - second.mean
    return float(
        difference @ difference + np.trace(first.covariance + second.covariance) - 2 * root_trace
    )


def _timed(way, count, bar):
    seconds, cpu_seconds = [], []
    for _ in range(count):
        start, cpu_start = time.perf_counter(), time.process_time()
        value = way()
        seconds.append(time.perf_counter() - start)
        cpu_seconds.append(time.process_time() - cpu_start)
        bar.update()
    return {
        "fid": value,
        "seconds": statistics.median(seconds),
        "cpu_seconds": statistics.median(cpu_seconds),
        "all_seconds": seconds,
    }


def measure_fid(*, width=2048, num_samples=10_000, repeats=5, progress=True):
    """Times three ways to the same distance.

    Args:
      width: number of features, D.
      num_samples: vectors that each side's moments are made of.
      repeats: runs of ours, of which the median is taken. TF-GAN's own, which takes half a minute
        at 2048 features, runs once, after a small one that sets TensorFlow up.
      progress: draw a progress bar.

    Returns:
      A dictionary with a form in JSON: "rows" has the three ways, "load" is the machine's before
        they ran. Processor
      time ("cpu_seconds", of all cores together) suffers less from other load than "seconds".

    Raises:
      ValueError: a size below 2 or no repeats.
    """
    for name, value, least in (
        ("width", width, 2),
        ("num_samples", num_samples, 2),
        ("repeats", repeats, 1),
    ):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}.")
    load = round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None
    real, fake = (made_moments(width=width, num_samples=num_samples, seed=seed) for seed in (0, 1))
    small = made_moments(width=16, num_samples=32, seed=0)
    tf_gan_distance(small, small)
    factor = metrics.frechet_factor(real)
    ways = {
        "ours": (lambda: metrics.frechet_distance(metrics.frechet_factor(real), fake), repeats),
        "ours, cached reference factor": (lambda: metrics.frechet_distance(factor, fake), repeats),
        "TF-GAN's own": (lambda: tf_gan_distance(real, fake), 1),
    }
    rows = []
    with tqdm(total=2 * repeats + 1, unit="run", disable=not progress) as bar:
        for title, (way, count) in ways.items():
            bar.set_description(title)
            rows.append({"title": title, **_timed(way, count, bar)})
    oracle = rows[-1]
    for row in rows:
        row["relative_difference"] = abs(row["fid"] - oracle["fid"]) / abs(oracle["fid"])
        row["times_faster"] = oracle["seconds"] / row["seconds"]
    return {
        "kind": "fid",
        "width": width,
        "num_samples": num_samples,
        "cores": os.cpu_count(),
        "load": load,
        "tensorflow": tf.__version__,
        "numpy": np.__version__,
        "rows": rows,
    }


def fid_table(result):
    """The result of `measure_fid` as text."""
    header = [
        "",
        "runs",
        "median",
        "fastest",
        "CPU time",
        "faster than TF-GAN",
        "FID",
        "relative difference",
    ]
    lines = [
        [
            row["title"],
            str(len(row["all_seconds"])),
            f"{row['seconds']:.2f} s",
            f"{min(row['all_seconds']):.2f} s",
            f"{row['cpu_seconds']:.2f} s",
            f"{row['times_faster']:.1f}x",
            f"{row['fid']:.12g}",
            f"{row['relative_difference']:.1e}",
        ]
        for row in result["rows"]
    ]
    return context_report.aligned(header, lines)
