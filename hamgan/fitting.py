"""What a prepared data set decides of a run: its settings, as a configuration names them.

| training images | width | batch | steps | samples per evaluation |
|---|---|---|---|---|
| fewer than 1,000 | 16 | 32 | 20,000 | 2,000 |
| fewer than 10,000 | 32 | 64 | 50,000 | 5,000 |
| more | 64 | 128 | 100,000 | 10,000 |

The published networks, of 1,281,167 images, have width 64 too. A narrow network on few images
costs little, and is slower to learn them by heart.
"""

import os
from typing import Any, NamedTuple

import tensorflow as tf

from hamgan import networks
from hamgan.data.summary import Summary, summarise
from hamgan.evaluation import own_features

__all__ = ["SIZES", "Size", "Summary", "feature_network", "image_size", "in_words"]
__all__ += ["reference_split", "settings", "summarise"]

# Where data_prep/inception.py puts TF-GAN's Inception, in the data folder.
INCEPTION, INCEPTION_SIZE = "tfgan_inception", 299

# A split that is held out is compared with from so many images on: an FID against fewer depends on
# their number.
REFERENCE_IMAGES = 1000


class Size(NamedTuple):
    """A row of the table."""

    below: float
    width: int
    batch_size: int
    num_steps: int
    num_samples: int


SIZES = (
    Size(1_000, 16, 32, 20_000, 2_000),
    Size(10_000, 32, 64, 50_000, 5_000),
    Size(float("inf"), 64, 128, 100_000, 10_000),
)
_EVALUATIONS = 10  # over a run


def reference_split(found: Summary) -> str:
    """The split of real images to compare with: one that is held out, if it is large enough."""
    for split in ("validation", "test"):
        if found.splits.get(split, 0) >= REFERENCE_IMAGES:
            return split
    return "train"


def image_size(found: Summary) -> int | None:
    """The largest size that networks have and the data set's squares fill; None: its images aren't
    squares of one size.

    Raises:
      ValueError: packed squares are smaller than any.
    """
    fitting = [size for size in networks.IMAGE_SIZES if size <= (found.side or 0)]
    if found.packed and not fitting:
        raise ValueError(
            f"The squares of {found.name} have {found.side} pixels a side, and networks are made "
            f"for {', '.join(map(str, networks.IMAGE_SIZES))}: prepare the images again with "
            f"--size={networks.IMAGE_SIZES[0]} or more."
        )
    return max(fitting, default=None)


def feature_network(found: Summary, data_dir: str) -> tuple[str, int]:
    """(handle, side of its input): TF-GAN's Inception if it lies in the data folder, else the
    network of the data set's own, whether it is there or not.
    """
    if tf.io.gfile.exists(os.path.join(data_dir, INCEPTION, "saved_model.pb")):
        return f"{{data_dir}}/{INCEPTION}", INCEPTION_SIZE
    folder = own_features.folder_of("{data_dir}", found.name)
    return folder, own_features.size_for(found)


def settings(found: Summary, data_dir: str) -> dict[str, Any]:
    """{setting or macro of a configuration: value} that a data set decides; macros that end with
    _OF_DATA are the configuration's to use.

    Raises:
      ValueError: no split for training; as `image_size`.
    """
    if not found.splits.get("train"):
        raise ValueError(
            f"{found.name} must have images in a split 'train'; its splits are "
            f"{sorted(found.splits)}."
        )
    size = next(size for size in SIZES if found.splits["train"] < size.below)
    handle, side = feature_network(found, data_dir)
    pixels = image_size(found)
    return {
        "data.ImageDataset.name": found.name,
        "data.ImageDataset.reference_split": reference_split(found),
        "NUM_CLASSES": found.num_classes,
        **({"IMAGE_SIZE": pixels} if pixels else {}),
        "WIDTH_OF_DATA": size.width,
        "BATCH_OF_DATA": size.batch_size,
        "STEPS_OF_DATA": size.num_steps,
        "PERIOD_OF_DATA": size.num_steps // _EVALUATIONS,
        "SAMPLES_OF_DATA": size.num_samples,
        "FEATURES_OF_DATA": handle,
        "FEATURES_SIZE_OF_DATA": side,
    }


def in_words(found: Summary, chosen: dict[str, Any]) -> str:
    """What was taken from a data set, and what was chosen for it, in two lines.

    Args:
      found: the data set.
      chosen: of `settings`, those that are in force.
    """
    splits = ", ".join(f"{name} {count:,}" for name, count in found.splits.items())
    names = {
        "IMAGE_SIZE": "image size",
        "data.ImageDataset.reference_split": "compared with split",
        "WIDTH_OF_DATA": "width",
        "BATCH_OF_DATA": "batch",
        "STEPS_OF_DATA": "steps",
        "SAMPLES_OF_DATA": "samples per evaluation",
        "FEATURES_OF_DATA": "features",
    }
    taken = [f"{words} {chosen[name]}" for name, words in names.items() if name in chosen]
    return (
        f"Data set {found.name}: {found.num_classes} "
        f"{'class' if found.num_classes == 1 else 'classes'}, images: {splits}.\n"
        f"Taken for it, unless you set it: {', '.join(taken)}."
    )
