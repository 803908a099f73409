"""What feeding costs: images per second and memory of the input pipeline, beside the plain
arrangement with TFDS.

Measured on made photographs and on squares that are packed from them; how many images a TPU slice
takes is estimated.
"""

import dataclasses
import io
import itertools
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable

import matplotlib
import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from matplotlib import figure as mpl_figure
from tqdm import tqdm

from hamgan import data
from hamgan.benchmarks import measure
from hamgan.benchmarks.context_report import aligned
from hamgan.run import records

HEIGHT, WIDTH = 375, 500
IMAGE_SIZE = 128
SHUFFLE_BUFFER = 10_000
_CLASSES = 10
_SHARDS = 8

HOW_MADE = (
    "Photographs: crops at random places of one scene of 2048x2048, with sensor noise of 2.5 grey "
    "levels of their own. "
    "The scene is 1/f noise for brightness and, weaker, for colour, and 300 ellipses of other "
    "noise and brightness in "
    "front of it, which gives edges. JPEG of quality 95, 4:2:0."
)


# Made photographs


def photographs(count, seed=0):
    """Yields `count` made photographs, uint8 [375, 500, 3], as HOW_MADE says."""
    rng = np.random.default_rng(seed)
    side = 2048
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side))
    frequency[0, 0] = np.inf
    noise = rng.standard_normal([4, side, side], np.float32)
    fields = np.fft.irfft2(np.fft.rfft2(noise) / frequency, axes=(1, 2)).astype(np.float32)
    fields /= fields.std(axis=(1, 2), keepdims=True)
    brightness = 110 + 30 * fields[0]
    for _ in range(300):
        top, left = rng.integers(0, side, 2)
        height, width = rng.integers(30, 300, 2)
        part = brightness[top : top + height, left : left + width]
        y, x = np.ogrid[-1 : 1 : part.shape[0] * 1j, -1 : 1 : part.shape[1] * 1j]
        other = rng.uniform(40, 200) + 18 * fields[0, : part.shape[0], : part.shape[1]]
        part[...] = np.where(x**2 + y**2 < 1, other, part)
    scene = brightness[..., None] + 6 * np.moveaxis(fields[1:], 0, -1)
    for _ in range(count):
        tops, lefts = rng.integers(0, side - HEIGHT, 2), rng.integers(0, side - WIDTH, 2)
        image = scene[tops[0] : tops[0] + HEIGHT, lefts[0] : lefts[0] + WIDTH].copy()
        for channel in range(3):
            image[..., channel] += (
                2.5 * noise[channel, tops[1] : tops[1] + HEIGHT, lefts[1] : lefts[1] + WIDTH]
            )
        yield np.clip(np.rint(image), 0, 255).astype(np.uint8)


def make_photographs(folder, *, count, progress=True):
    """Writes a TFDS dataset of made photographs, and one of the squares packed from them.

    Args:
      folder: local.
      count: photographs, shared out to ten classes.
      progress: draw a bar.

    Returns:
      {'jpeg': folder of one dataset, 'packed': of the other, 'bytes': mean of a JPEG}.
    """
    tfds.disable_progress_bar()  # one is enough
    bar = tqdm(
        total=2 * count, desc="making images", unit=" images", disable=not progress, mininterval=1
    )
    size = 0

    def encoded():
        nonlocal size
        for index, image in enumerate(photographs(count)):
            file = tf.io.encode_jpeg(image, quality=95).numpy()
            size += len(file)
            bar.update()
            yield index, {"image": file, "label": index % _CLASSES}

    with bar:
        jpeg = _write(folder, "photographs", tfds.features.Image(encoding_format="jpeg"), encoded())
        squares = tfds.features.Tensor(
            shape=(IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8, encoding=tfds.features.Encoding.BYTES
        )
        packed = _write(folder, "squares", squares, _packed(_image_dataset(jpeg), bar))
    return {"jpeg": jpeg, "packed": packed, "bytes": size / count}


def _packed(dataset, bar):
    numbers = itertools.count()
    for batch in dataset.reference_batches(batch_size=100):
        images = np.rint((batch["image"].numpy() + 1) * 127.5).astype(np.uint8)
        for image, label in zip(images, batch["label"].numpy(), strict=True):
            bar.update()
            yield next(numbers), {"image": image, "label": int(label)}


class _Builder(tfds.dataset_builders.AdhocBuilder, skip_registration=True):
    url_infos = None  # nothing is downloaded; TFDS would look for checksums in a package


def _write(folder, name, feature, examples):
    builder = _Builder(
        name=name,
        version="1.0.0",
        features=tfds.features.FeaturesDict(
            {"image": feature, "label": tfds.features.ClassLabel(num_classes=_CLASSES)}
        ),
        split_datasets={"train": examples},
        data_dir=folder,
    )
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(num_shards=_SHARDS, try_download_gcs=False)
    )
    return os.fspath(builder.data_path)


# Arrangements


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arrangement:
    """A way to feed.

    Attributes:
      title: for people.
      source: 'jpeg' or 'packed', the dataset it reads.
      batches: function of the dataset's folder and of a batch size, an endless dataset of batches.
      rate_goal: at least this many times the plain arrangement's images per second; None: no goal.
      memory_goal: at most this part of its memory; None: no goal.
    """

    title: str
    source: str
    batches: Callable
    rate_goal: float | None = None
    memory_goal: float | None = None


def _plain(folder, batch_size):
    def prepare(example):
        height, width = tf.shape(example["image"])[0], tf.shape(example["image"])[1]
        side = tf.minimum(height, width)
        top, left = (height - side + 1) // 2, (width - side + 1) // 2
        first = tf.cast([top, left], tf.float32)
        last = tf.cast([top + side - 1, left + side - 1], tf.float32)
        box = tf.concat([first, last], axis=0) / tf.cast([height - 1, width - 1] * 2, tf.float32)
        image = tf.image.crop_and_resize(
            example["image"][tf.newaxis], box[tf.newaxis], [0], [IMAGE_SIZE, IMAGE_SIZE]
        )
        return {"image": image[0] * (2 / 255) - 1, "label": tf.cast(example["label"], tf.int32)}

    name, version = folder.rstrip("/").split("/")[-2:]
    dataset = tfds.load(
        f"{name}:{version}",
        split="train",
        data_dir=os.path.dirname(os.path.dirname(folder.rstrip("/"))),
        shuffle_files=True,
        # A set as large as ImageNet wouldn't be held in memory.
        read_config=tfds.ReadConfig(try_autocache=False),
    )
    dataset = dataset.map(prepare, num_parallel_calls=tf.data.AUTOTUNE)
    # Repeated first, so that a set that is smaller than the buffer fills it, as ImageNet does.
    dataset = dataset.repeat().shuffle(SHUFFLE_BUFFER)
    return dataset.batch(batch_size, drop_remainder=True).prefetch(tf.data.AUTOTUNE)


def _image_dataset(folder, **options):
    return data.ImageDataset(
        name=folder,
        image_size=IMAGE_SIZE,
        num_classes=_CLASSES,
        reference_split="train",
        shuffle_buffer=SHUFFLE_BUFFER,
        cache_bytes=0,
        **options,
    )


def _ours(*, num_shards=1, **options):
    return lambda folder, batch_size: _image_dataset(folder, **options).train_batches(
        batch_size=batch_size, seed=0, num_shards=num_shards
    )


ARRANGEMENTS = {
    "plain": Arrangement(title="plain: load, map, shuffle, batch", source="jpeg", batches=_plain),
    "jpeg": Arrangement(
        title="full-size JPEG", source="jpeg", batches=_ours(), rate_goal=1, memory_goal=0.1
    ),
    "jpeg_files": Arrangement(
        title="full-size JPEG, whole files in turn",
        source="jpeg",
        batches=_ours(random_access=False),
    ),
    "jpeg_inexact": Arrangement(
        title="full-size JPEG, inexact decode", source="jpeg", batches=_ours(inexact_decode=True)
    ),
    "packed": Arrangement(
        title="packed squares", source="packed", batches=_ours(), rate_goal=25, memory_goal=0.1
    ),
    "packed_flip": Arrangement(
        title="packed squares, flipped", source="packed", batches=_ours(flip=True)
    ),
    "packed_files": Arrangement(
        title="packed squares, whole files in turn",
        source="packed",
        batches=_ours(random_access=False),
    ),
    "packed_host": Arrangement(
        title="packed squares, 1 of 8 hosts", source="packed", batches=_ours(num_shards=8)
    ),
    "packed_files_host": Arrangement(
        title="packed squares, 1 of 8 hosts, whole files",
        source="packed",
        batches=_ours(num_shards=8, random_access=False),
    ),
}


def feed_job(*, arrangement, folder, batch_size, seconds, repeats):
    """Feeds from one of ARRANGEMENTS, and drops what it gives. To be run in a process of its own.

    Args:
      seconds: how long one measurement takes at least.
      repeats: measurements, after the first batch is there.

    Yields:
      {'first': seconds to the first batch, 'rates': images per second of each measurement,
        'core_rate': images per
      second of processor time, 'memory': bytes resident at most, at the measurements' ends, beyond
        TensorFlow's own;
      None on systems without /proc}.
    """
    # TensorFlow's own: what it sets up when a pipeline runs for the first time.
    list(
        tf.data.Dataset.range(8).map(lambda i: i + 1, num_parallel_calls=tf.data.AUTOTUNE).batch(4)
    )
    before = measure.resident_memory()
    start = time.perf_counter()
    batches = iter(ARRANGEMENTS[arrangement].batches(folder, batch_size))
    next(batches)
    first = time.perf_counter() - start
    rates, resident = [], []
    processor = time.process_time()
    total = 0
    for _ in range(repeats):
        start, images = time.perf_counter(), 0
        while (elapsed := time.perf_counter() - start) < seconds or not images:
            next(batches)
            images += batch_size
        rates.append(images / elapsed)
        total += images
        resident.append(measure.resident_memory())
    core_rate = total / (time.process_time() - processor)
    yield {
        "first": first,
        "rates": rates,
        "core_rate": core_rate,
        "memory": before and max(resident) - before,
    }


def measure_arrangements(
    *, count, batch_size, repeats, seconds=3.0, names=None, run=measure.in_child, progress=True
):
    """Makes images, and feeds from them in every arrangement.

    Args:
      count: made photographs.
      batch_size: images a batch.
      repeats: measurements of each arrangement, of which the median counts.
      seconds: of a measurement.
      names: of ARRANGEMENTS; None: all.
      run: how jobs are run.
      progress: draw bars.

    Returns:
      {'bytes': mean of a JPEG, 'rows': a dictionary per arrangement: 'name', 'title', 'rate'
        (images per second),
      'rates', 'core_rate', 'memory', 'first', and 'rate_ratio', 'core_rate_ratio', 'memory_ratio'
      to the plain one; or 'error'}.
    """
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        made = make_photographs(folder, count=count, progress=progress)
        bar = tqdm(
            names or list(ARRANGEMENTS),
            desc="feeding",
            unit="",
            disable=not progress,
            mininterval=0.5 if sys.stderr.isatty() else 15,
        )
        for name in bar:
            arrangement = ARRANGEMENTS[name]
            arguments = dict(
                arrangement=name,
                folder=made[arrangement.source],
                batch_size=batch_size,
                seconds=seconds,
                repeats=repeats,
            )
            row = {"name": name, "title": arrangement.title}
            try:
                (measured,) = run(feed_job, arguments)
                rows.append({**row, **measured, "rate": statistics.median(measured["rates"])})
            except (measure.ChildError, tf.errors.OpError, MemoryError) as error:
                rows.append({**row, "error": measure.first_line(error)})
    plain = next((row for row in rows if row["name"] == "plain"), {})
    for row in rows:
        for what in ("rate", "core_rate", "memory"):
            if row.get(what) and plain.get(what):
                row[f"{what}_ratio"] = row[what] / plain[what]
    return {"bytes": made["bytes"], "rows": rows}


# What a TPU slice takes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Slice:
    """A TPU slice by its published specifications.

    Attributes:
      chips: chips.
      teraflops: bfloat16, of a chip at its peak.
      gigabytes: a second, of a chip's memory at its peak.
      cores: virtual CPUs of the hosts.
    """

    chips: int
    teraflops: float
    gigabytes: float
    cores: int


# https://docs.cloud.google.com/tpu/docs/v3, v4, v5e
SLICES = {
    "v3-8": Slice(chips=4, teraflops=123, gigabytes=900, cores=96),
    "v4-8": Slice(chips=4, teraflops=275, gigabytes=1228, cores=240),
    "v5e-8": Slice(chips=8, teraflops=197, gigabytes=819, cores=224),
}
# One step of D and one of G at width 64 and 128x128, compiled for one v5e core at batch 16 with
# bfloat16 compute, as the compiler counts it: 2253 GFLOP and 28.3 GB.
GIGAFLOP_PER_IMAGE = 2253 / 16
GIGABYTES_PER_IMAGE = 28.3 / 16
BATCH_SIZES = (256, 1024)


def demand(tpu):
    """Estimated images per second that a slice takes: {'memory': as its memory allows,
    'arithmetic': its arithmetic}.

    By arithmetic is more than it can ever take; real steps do other things too, and reach neither
    peak.
    """
    return {
        "memory": tpu.chips * tpu.gigabytes / GIGABYTES_PER_IMAGE,
        "arithmetic": tpu.chips * tpu.teraflops * 1e3 / GIGAFLOP_PER_IMAGE,
    }


# Report


def _goal(ratio, goal, reached):
    if goal is None or ratio is None:
        return ""
    return f" (goal {goal:g}x: {'reached' if reached(ratio, goal) else 'missed'})"


def feed_table(rows):
    """The measured rows as text."""
    header = [
        "",
        "images/s",
        "of plain",
        "lowest-highest",
        "a core-second",
        "of plain",
        "memory",
        "of plain",
    ]
    header += ["first batch"]
    lines = []
    for row in rows:
        if "error" in row:
            lines.append([row["title"], "not measured: " + row["error"], *[""] * (len(header) - 2)])
            continue
        arrangement = ARRANGEMENTS[row["name"]]
        rate_ratio, memory_ratio = row.get("rate_ratio"), row.get("memory_ratio")
        rate_goal = _goal(rate_ratio, arrangement.rate_goal, lambda ratio, goal: ratio >= goal)
        memory_goal = _goal(
            memory_ratio, arrangement.memory_goal, lambda ratio, goal: ratio <= goal
        )
        lines.append(
            [
                row["title"],
                f"{row['rate']:,.0f}",
                "-" if rate_ratio is None else f"{rate_ratio:.2f}x{rate_goal}",
                f"{min(row['rates']):,.0f}-{max(row['rates']):,.0f}",
                f"{row['core_rate']:,.0f}",
                f"{row['core_rate_ratio']:.2f}x" if "core_rate_ratio" in row else "-",
                "-" if row["memory"] is None else f"{row['memory'] / 1e6:,.0f} MB",
                "-" if memory_ratio is None else f"{memory_ratio:.3f}x{memory_goal}",
                f"{row['first']:.1f} s",
            ]
        )
    return "\n".join(
        [
            aligned(header, lines),
            "a core-second: images per second of processor time, whatever else runs",
        ]
    )


def demand_table(rows):
    """What slices take and how many cores that keeps busy, as text; an estimate, with its formula.

    Args:
      rows: of `measure_arrangements`; those of full-size JPEGs and of packed squares count.
    """
    rates = {
        row["name"]: row["core_rate"]
        for row in rows
        if row["name"] in ("jpeg", "packed") and "rate" in row
    }
    header = ["", "images/s", *(f"steps/s at {size}" for size in BATCH_SIZES), "at most images/s"]
    header += [f"cores, {ARRANGEMENTS[name].title}" for name in rates] + ["cores it has"]
    lines = []
    for name, tpu in SLICES.items():
        images = demand(tpu)
        line = [
            name,
            f"{images['memory']:,.0f}",
            *(f"{images['memory'] / size:.1f}" for size in BATCH_SIZES),
        ]
        line += [f"{images['arithmetic']:,.0f}"]
        line += [
            f"{images['memory'] / rate:.1f}-{images['arithmetic'] / rate:.1f}"
            for rate in rates.values()
        ]
        lines.append([*line, str(tpu.cores)])
    return "\n".join(
        [
            aligned(header, lines),
            "An estimate, nothing was run: images/s = chips x GB/s of a chip / "
            f"{GIGABYTES_PER_IMAGE:.2f} GB an image; at most = chips x GFLOP/s of a chip / "
            f"{GIGAFLOP_PER_IMAGE:.0f} "
            "GFLOP an image;",
            "both at the published peaks (bfloat16) and at one D step a G step, the same at every "
            "batch size. Cores: "
            "images/s / images a core-second here.",
        ]
    )


def draw(result, path):
    """Draws measured rows into a PNG file, local or remote."""
    rows = [row for row in result["rows"] if "rate" in row][::-1]
    if not rows:
        raise ValueError("draw: result has no measured rows.")
    with matplotlib.rc_context(
        {"axes.spines.top": False, "axes.spines.right": False, "font.size": 9}
    ):
        figure = mpl_figure.Figure(
            figsize=(12, 0.32 * len(rows) + 1.4), layout="constrained", dpi=110
        )
        for axes, what, unit, label in zip(
            figure.subplots(1, 2, sharey=True),
            ("rate", "memory"),
            (1, 1e6),
            ("images per second", "resident memory beyond TensorFlow's own, in MB"),
            strict=True,
        ):
            for y, row in enumerate(rows):
                value = max(row[what] or 0, 0) / unit
                axes.barh(y, value, color="#b2182b" if row["name"] == "plain" else "#08519c")
                axes.annotate(
                    f"{value:,.0f}",
                    (value, y),
                    (3, 0),
                    textcoords="offset points",
                    va="center",
                    fontsize=7,
                )
            axes.set_xscale("symlog", linthresh=1)
            axes.margins(x=0.12)
            axes.set_title(label, loc="left", fontsize=9)
        axes.set_yticks(range(len(rows)), [row["title"] for row in rows])
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
    records.write_whole(path, buffer.getvalue())
