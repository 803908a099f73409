"""The labels of a data set: those of the classes, and every class with images."""

import os

import numpy as np

from hamgan import data
from hamgan.checks.outcome import COPY, PREPARE, fail, ok, skip, warn

_NAMES_SHOWN = 12
_LEVEL = f"{PREPARE} from the folder that holds a folder per class"


def check(dataset, scans, *, training, quick=False):
    """Whether a split's labels are those of the classes, and every class is there.

    Args:
      dataset: a `hamgan.data.ImageDataset`.
      scans: what `records` found.
      training: the split is the one for training, else the one for reference.
      quick: whether the scans are only samples, which don't tell that a class is missing.
    """
    split = dataset.train_split if training else dataset.reference_split
    if not training and split == dataset.train_split:
        return skip(f"{split} too: see the training labels")
    found = _labels_of(dataset, split, scans)
    names, num_classes = dataset.class_names, dataset.num_classes
    if not len(found):
        return fail(f"none of {split} could be read", COPY)
    wrong_level = data.wrong_folder_level(names)
    if wrong_level:
        return fail(wrong_level, "name that folder to data_prep, or as the builder's manual_dir")
    outside = found[(found < 0) | (found >= num_classes)]
    if len(outside):
        return fail(
            f"{len(outside):,} of {len(found):,} labels are outside [0, {num_classes}), e.g. "
            f"{outside[0]}",
            "choose a split with labels (TFDS marks unlabelled images with -1), or correct "
            "NUM_CLASSES",
        )
    if num_classes == 1:
        return warn(
            f"one class only, {names[0]!r}, for all {len(found):,} images",
            f"right for images without classes; else the folder level is wrong: {_LEVEL}",
        )
    counts = np.bincount(found, minlength=num_classes)
    used = np.flatnonzero(counts)
    if len(used) == 1 and len(found) > 1:
        return fail(
            f"all {len(found):,} labels are {used[0]} ({names[used[0]]!r}), and there should be "
            f"{num_classes} classes",
            f"labels were lost in preparation, mostly by a wrong folder level: {_LEVEL}",
        )
    if quick:
        return ok(
            f"{len(used)} of {num_classes} classes in {len(found):,} records (--quick: a sample)"
        )
    if len(used) < num_classes:
        missing = [names[label] for label in np.flatnonzero(counts == 0)]
        return (fail if training else warn)(
            f"{len(missing)} of {num_classes} classes have no image in {split}: {_some(missing)}",
            "see whether their folders were empty or unreadable and "
            f"{PREPARE}, or do it without these classes",
        )
    return ok(f"{num_classes} classes: {_histogram(names, counts)}")


def _labels_of(dataset, split, scans):
    """The labels of a split as far as its files were scanned, int64 [n]."""
    instructions = dataset.info.splits[split].file_instructions  # a file may have several
    parts = [
        (scans[path].labels, part)
        for part in instructions
        if (path := os.fspath(part.filename)) in scans
    ]
    return np.concatenate(
        [np.zeros(0, np.int64), *(all_[part.skip :][: part.take] for all_, part in parts)]
    )


def _some(names):
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return ", ".join(names[:_NAMES_SHOWN]) + more


def _histogram(names, counts):
    if len(names) <= _NAMES_SHOWN:
        return ", ".join(f"{name} {number:,}" for name, number in zip(names, counts, strict=True))
    few, many = counts.argmin(), counts.argmax()
    return (
        f"{counts[few]:,} ({names[few]}) to {counts[many]:,} "
        f"({names[many]}), median {np.median(counts):,.0f}"
    )
