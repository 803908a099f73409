"""Checks of a prepared data set: is all of it there, is it what it says, can it be read.

Each is a function that returns an `Outcome`, or raises a `ValueError` whose message says what to
do.
"""

import concurrent.futures
import copy
import dataclasses
import os
import re

import numpy as np
import tensorflow as tf
from tensorflow_datasets.core import file_adapters

from hamgan import grids, pictures
from hamgan.checks.machine import bar, size_text
from hamgan.checks.outcome import COPY, PREPARE, describe, fail, ok, skip, warn
from hamgan.data import prepared
from hamgan.run.folder import Folder

# ILSVRC 2012.
_IMAGENET = {"train": 1_281_167, "validation": 50_000}
# Length, its checksum and the data's checksum: what a TFRecord file adds to each record.
_TFRECORD_FRAME = 16
# Files read at once. It is the network or the disk that is waited for.
_READERS = 8
# Files that a sample is taken from at most: each costs a round trip to a bucket.
_SAMPLED_FILES = 32
# Read with --quick.
_QUICK_RECORDS = 4096
_COLUMNS = 8


@dataclasses.dataclass(frozen=True)
class Scan:
    """What reading one file gave: its labels in stored order, and the error that ended it, or
    None.
    """

    labels: np.ndarray
    error: str | None


def present(experiment, *, data_dir):
    """Whether the data set is there and fits the configuration. Value: the data set."""
    dataset = experiment.dataset(data_dir=data_dir)
    splits = ", ".join(f"{split} {dataset.num_examples(split):,}" for split in _splits(dataset))
    return ok(
        f"{dataset.name} {dataset.version}: {dataset.num_classes} classes, {splits}", value=dataset
    )


def imagenet(dataset):
    """Whether ImageNet has as many images as it should; of other data sets the number isn't
    known.
    """
    stored = dataset.info.splits
    like_imagenet = dataset.num_classes == 1000 and all(
        re.fullmatch(r"n\d{8}", n) for n in dataset.class_names
    )
    if not like_imagenet:
        return skip(
            f"{dataset.name} isn't: how many images it should have is known from its "
            "dataset_info.json alone"
        )
    wrong = [
        f"{split} has {stored[split].num_examples:,} images instead of {count:,}"
        if split in stored
        else f"there is no split {split!r} with {count:,} images"
        for split, count in _IMAGENET.items()
        if split not in stored or stored[split].num_examples != count
    ]
    if not wrong:
        return ok(
            "ImageNet: " + ", ".join(f"{split} {count:,}" for split, count in _IMAGENET.items())
        )
    found = "ImageNet's classes, but " + "; ".join(wrong)
    # TFDS's own, and packed as squares of some size.
    if re.fullmatch(r"imagenet2012(_\d+)?", dataset.info.name):
        return fail(found, PREPARE + " from complete archives")
    return warn(found, "right for a part of ImageNet; else " + PREPARE)


def files(dataset):
    """Whether the files are there, with as many bytes as were written. Value: {path: bytes} of
    those that are.
    """

    def size_of(path):
        try:
            return tf.io.gfile.stat(path).length
        except tf.errors.OpError as error:
            return error

    sizes, wrong = {}, []
    paths = _parts(dataset, *_splits(dataset))
    with concurrent.futures.ThreadPoolExecutor(_READERS) as pool:
        for path, size in zip(paths, pool.map(size_of, paths), strict=True):
            if isinstance(size, tf.errors.NotFoundError):
                wrong.append(f"{path} isn't there")
            elif isinstance(size, tf.errors.OpError):
                wrong.append(f"{path}: {describe(size)}")
            elif size == 0:
                wrong.append(f"{path} is empty")
            else:
                sizes[path] = size
    if wrong:
        return fail(_listed(wrong), COPY, value=sizes or None)
    for split in _splits(dataset):
        # A whole split's bytes are known, but not those of one file of several.
        whole = dataset.info.splits.get(split)
        if (
            whole
            and whole.num_bytes
            and dataset.info.file_format == file_adapters.FileFormat.TFRECORD
        ):
            found = sum(sizes[path] for path in _parts(dataset, split))
            expected = whole.num_bytes + _TFRECORD_FRAME * whole.num_examples
            if found != expected:
                return fail(
                    f"the files of {split} have {found:,} bytes, but {expected:,} were written",
                    COPY,
                    sizes,
                )
    return ok(f"{len(sizes):,}, together {size_text(sum(sizes.values()))}", value=sizes)


def records(dataset, sizes, *, quick=False, progress=True):
    """Whether the files hold as many records as dataset_info.json says. Value: {path: `Scan`}.

    No image is decoded.

    Args:
      dataset: a `hamgan.data.ImageDataset`.
      sizes: {path: bytes}, the files that are there.
      quick: read the beginning of some files instead of everything.
      progress: draw a progress bar.
    """
    held = {
        path: part.examples_in_shard
        for path, part in _parts(dataset, *_splits(dataset)).items()
        if path in sizes
    }
    paths = _spread(held) if quick else list(held)
    limit = -(-_QUICK_RECORDS // len(paths)) if quick else -1

    def read(path):
        # One by one, if many at once failed: all up to the bad one.
        for batch_size in (256, 1):
            labels, error = [np.zeros(0, np.int64)], None
            try:
                for batch in dataset.records(path).take(limit).batch(batch_size):
                    labels.append(dataset.parse_labels(batch).numpy())
                break
            except tf.errors.OpError as op_error:
                error = describe(op_error)
        return Scan(np.concatenate(labels), error)

    scans = {}
    total = None if quick else sum(held.values())
    with (
        concurrent.futures.ThreadPoolExecutor(_READERS) as pool,
        bar("records", unit="record", total=total, progress=progress) as shown,
    ):
        for path, found in zip(paths, pool.map(read, paths), strict=True):
            scans[path] = found
            shown.update(len(found.labels))
    wrong = []
    for path, found in scans.items():
        if found.error:
            wrong.append(f"{path} can't be read to its end: {found.error}")
        elif not quick and len(found.labels) != held[path]:
            wrong.append(f"{path} has {len(found.labels):,} records instead of {held[path]:,}")
    if wrong:
        return fail(_listed(wrong), COPY, value=scans)
    read = sum(len(found.labels) for found in scans.values())
    if quick:
        return ok(
            f"{read:,} records at the beginning of {len(scans)} of {len(held)} files; not counted "
            "(--quick)",
            scans,
        )
    return ok(f"all {read:,} read (files: {len(held):,})", value=scans)


def sample(dataset, sizes, *, number, progress=True):
    """Whether images from all over the training split can be decoded and have the values they
    should.

    Args:
      dataset: a `hamgan.data.ImageDataset`.
      sizes: {path: bytes}, the files that are there.
      number: of images, about.
      progress: draw a progress bar.
    """
    parts = {
        path: part for path, part in _parts(dataset, dataset.train_split).items() if path in sizes
    }
    paths = _spread(parts)
    if not paths:
        return fail(f"none of {dataset.train_split} is there", COPY)
    each = -(-number // len(paths))
    places = [
        (path, parts[path].skip + i) for path in paths for i in range(min(each, parts[path].take))
    ]
    found, broken = [], []
    with bar("images", unit="image", total=len(places), progress=progress) as shown:
        for place, image in _read(dataset, places):
            shown.update()
            if isinstance(image, Exception):
                broken.append(f"record {place[1]} of {place[0]}: {describe(image)}")
            else:
                found.append((image.min(), image.max()))
            if len(broken) == 3:
                break
    if broken:
        return fail(
            f"{len(broken)} of the first {len(found) + len(broken)} images can't be read: "
            f"{_listed(broken)}",
            PREPARE,
        )
    return _judge_values(*np.transpose(found))


def _judge_values(low, high):
    """What the smallest and largest values of each image say, float [n]."""
    seen = len(low)
    constant = np.count_nonzero(low == high)
    low, high = low.min(), high.max()
    # NaN fails this comparison too; a little is left to float32's rounding.
    if not (low >= -1.00001 and high <= 1.00001):
        return fail(
            f"values of {seen} images go from {low:.4g} to {high:.4g}, not within [-1, 1]", PREPARE
        )
    what = f"{seen} decoded, values from {low:.3g} to {high:.3g}"
    if constant == seen:
        return fail(
            f"{what}: every image is of one colour",
            f"look at the pictures that were prepared and {PREPARE}",
        )
    if high - low < 0.1:
        return fail(
            f"{what}: next to no contrast",
            f"were values scaled twice? Look at the pictures and {PREPARE}",
        )
    if constant:
        return warn(
            f"{what}; {constant} of them are of one colour",
            "look for empty pictures among those prepared",
        )
    return ok(what)


def small(dataset, sizes, *, number):
    """Whether images were, or will be, enlarged to the squares that are trained on.

    Args:
      dataset: a `hamgan.data.ImageDataset`.
      sizes: {path: bytes}, the files that are there.
      number: of images to look at, about, where it isn't known from preparation.
    """
    paths = [path for path in _parts(dataset, dataset.train_split) if path in sizes]
    if not paths:
        return fail(f"none of {dataset.train_split} is there", COPY)
    side = dataset.packed_side or dataset.image_size
    if dataset.packed_side:
        found = prepared.enlarged(os.path.dirname(paths[0]))
        if found is None:
            return skip("its packing didn't count them; packed again, it would")
        count, smallest = found.number, f"{found.smallest} (shorter side: {found.side})"
        what = f"{count:,} of {found.images:,} images were smaller than {side} x {side}"
    else:
        height, width = dataset.stored_shape
        if height and width:
            return ok(f"every image has {height} x {width} pixels, the networks' {side} x {side}")
        paths = _spread(paths)
        sides = [s for path in paths for s in dataset.sides(path, limit=-(-number // len(paths)))]
        few = [found for found in sides if found < side]
        count, smallest = len(few), f"one with a shorter side of {min(few, default=side)}"
        what = f"{count:,} of {len(sides):,} images looked at are smaller than {side} x {side}"
    if not count:
        return ok(what)
    return warn(
        f"{what}, the smallest {smallest}: they are enlarged, and blurred so",
        f"leave them out in preparation (data_prep's --min_side={side}), or take a smaller "
        "IMAGE_SIZE",
    )


def picture_in(dataset, scans, folder):
    """`picture` in a folder."""
    return picture(dataset, scans, path=Folder(folder).doctor)


def picture(dataset, scans, *, path):
    """Draws training images as the networks get them, a class per row.

    Args:
      dataset: a `hamgan.data.ImageDataset`.
      scans: what `records` found.
      path: of the PNG file, local or gs://.
    """
    rows = {int(label): [] for label in grids.grid_classes(dataset.num_classes)}
    for file, part in _parts(dataset, dataset.train_split).items():
        stored = scans[file].labels[: part.skip + part.take] if file in scans else []
        for index in range(part.skip, len(stored)):
            if stored[index] in rows:
                rows[int(stored[index])].append((file, index))
    # The earlier in its file, the less is read.
    rows = {
        label: sorted(places, key=lambda place: place[::-1])[:_COLUMNS]
        for label, places in rows.items()
    }
    read = _read(dataset, [place for places in rows.values() for place in places])
    images = {place: image for place, image in read if not isinstance(image, Exception)}
    if not images:
        return fail(f"no image of {dataset.train_split} could be drawn", COPY)
    blank = np.ones([dataset.image_size, dataset.image_size, 3], np.float32)
    grid = []
    for places in rows.values():
        row = [images[place] for place in places if place in images]
        grid += row + [blank] * (_COLUMNS - len(row))
    pictures.save_grid(
        path,
        np.stack(grid),
        columns=_COLUMNS,
        row_labels=[dataset.class_names[label] for label in rows],
        title=f"{dataset.name} {dataset.version}, {dataset.train_split}, as the networks get it",
    )
    return ok(f"{path}: see whether images and names belong together")


def _read(dataset, places):
    """Yields every place, (path, index of a record), with its image, float32 [S, S, 3], or the
    error in its stead.
    """
    # Not all at once into memory: then an error would have no place.
    dataset = copy.copy(dataset)
    dataset.cache_bytes = 0
    while places:
        done = 0
        try:
            for batch in dataset.reference_batches(split=_slices(dataset, places), batch_size=1):
                yield places[done], batch["image"][0].numpy()
                done += 1
        except (ValueError, tf.errors.OpError) as error:
            yield places[done], error
            places = places[done + 1 :]
        else:
            return


def _slices(dataset, places):
    """TFDS's expression for single records, 'train[3:4]+train[70:72]'."""
    firsts = {}
    for name, split in dataset.info.splits.items():
        first = 0
        for part in split.file_instructions:
            firsts[os.fspath(part.filename)] = name, first
            first += part.examples_in_shard
    slices = []
    for path, index in places:
        name, first = firsts[path]
        if slices and slices[-1][0] == name and slices[-1][2] == first + index:
            slices[-1][2] += 1
        else:
            slices.append([name, first + index, first + index + 1])
    return "+".join(f"{name}[{start}:{stop}]" for name, start, stop in slices)


def _parts(dataset, *splits):
    """{path: how its records belong to the splits (TFDS's FileInstruction)} of the files that have
    any.
    """
    parts = (part for split in splits for part in dataset.info.splits[split].file_instructions)
    return {os.fspath(part.filename): part for part in parts if part.take}


def _splits(dataset):
    return list(dict.fromkeys([dataset.train_split, dataset.reference_split]))


def _spread(paths):
    """Some of the paths, evenly spread."""
    paths = list(paths)
    return [
        paths[i]
        for i in np.linspace(0, len(paths) - 1, min(_SAMPLED_FILES, len(paths))).round().astype(int)
    ]


def _listed(sentences):
    more = f" and {len(sentences) - 3} more" if len(sentences) > 3 else ""
    return "; ".join(sentences[:3]) + more
