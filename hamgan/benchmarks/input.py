"""What feeding costs: images per second and memory of the input pipeline, beside the plain
arrangement with TFDS.

Measured on made photographs and on squares that are packed from them; how many images a TPU slice
takes is estimated.
"""

import dataclasses
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Callable

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from tqdm import tqdm

from hamgan import data
from hamgan.benchmarks import measure

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
    """Writes a TFDS data set of made photographs, and one of the squares packed from them.

    Args:
      folder: local.
      count: photographs, shared out to ten classes.
      progress: draw a bar.

    Returns:
      {'jpeg': folder of one data set, 'packed': of the other, 'bytes': mean of a JPEG}.
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
      source: 'jpeg' or 'packed', the data set it reads.
      batches: function of the data set's folder and of a batch size, endless batches.
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
        bar = measure.progress_bar(
            names or list(ARRANGEMENTS), desc="feeding", unit="", disable=not progress
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
