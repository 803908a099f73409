"""What a prepared data set says of itself: classes, size, splits."""

import os
from typing import NamedTuple

import tensorflow as tf

from hamgan.data import prepared


class Summary(NamedTuple):
    """A prepared data set.

    Attributes:
      name: as it was asked for.
      num_classes: of its label.
      side: of its images, where all are squares of one size; None: they differ.
      packed: whether images are packed squares, which aren't enlarged.
      splits: {name: number of images}.
    """

    name: str
    num_classes: int
    side: int | None
    packed: bool
    splits: dict[str, int]


def names_in(data_dir: str) -> list[str]:
    """The prepared data sets in a folder: 'name', or 'name/config'."""
    found = []
    for depth in ("*/*", "*/*/*"):
        for path in tf.io.gfile.glob(os.path.join(data_dir, depth, "dataset_info.json")):
            folder = os.path.dirname(os.path.dirname(path))
            found.append(folder[len(data_dir.rstrip("/")) + 1 :])
    return sorted(set(found))


def summarise(name: str, data_dir: str) -> Summary:
    """What a prepared data set says of itself.

    Raises:
      ValueError: it isn't there, those that are are listed; it has no image and label, or doesn't
        know its number of classes.
    """
    data_dir = os.path.expanduser(data_dir)
    try:
        info = prepared.open_builder(name, data_dir).info
    except ValueError as error:
        there = ", ".join(names_in(data_dir)) or "none"
        raise ValueError(f"{error}\nPrepared in {data_dir} are: {there}.") from error
    image_key, label_key = prepared.find_features(info)
    num_classes = getattr(info.features[label_key], "num_classes", None)
    if num_classes is None:
        raise ValueError(
            f"The label of {name} must be a class label, so that the number of classes is known; "
            f"it is {info.features[label_key]}."
        )
    height, width, _ = info.features[image_key].shape
    return Summary(
        name=name,
        num_classes=num_classes,
        side=height if height == width else None,
        packed=prepared.packed_side(info.features[image_key]) is not None,
        splits={split: of.num_examples for split, of in info.splits.items()},
    )
