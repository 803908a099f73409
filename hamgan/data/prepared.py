"""What is prepared: data sets on disk, their features, and how to prepare what isn't there."""

import json
import os
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

# Beside a packed data set: what is known of the images that it was made from.
IMAGES = "images.json"


class Enlarged(NamedTuple):
    """Images of a packed data set that were smaller than its squares.

    Attributes:
      number: how many.
      images: of how many in all.
      smallest: the name of the smallest; None where there is none.
      side: its shorter side in pixels.
    """

    number: int
    images: int
    smallest: str | None
    side: int | None


def images_of(folder: str) -> dict[str, Any]:
    """What a packed data set keeps of the images it was made from; nothing: of earlier versions."""
    try:
        with tf.io.gfile.GFile(os.path.join(folder, IMAGES), "rb") as file:
            found = json.loads(file.read())
    except (tf.errors.OpError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def enlarged(folder: str) -> Enlarged | None:
    """How many images of a packed data set were enlarged; None where that isn't known."""
    splits = images_of(folder).get("splits")
    if not splits:
        return None
    smallest = min(
        (split["smallest"] for split in splits.values() if split["smallest"]),
        key=lambda found: found[1],
        default=(None, None),
    )
    count, images = (sum(s[key] for s in splits.values()) for key in ("enlarged", "images"))
    return Enlarged(count, images, *smallest)


def open_builder(name: str, data_dir: str | None) -> tfds.core.DatasetBuilder:
    """The builder that reads the prepared data set `name`."""
    data_dir = data_dir and os.path.expanduser(data_dir)
    if "/" in name and _is_dataset(os.path.expanduser(name)):
        return tfds.builder_from_directory(os.path.expanduser(name))
    if data_dir and _is_dataset(data_dir):
        builder = tfds.builder_from_directory(data_dir)
        if builder.name != name.split("/")[0].split(":")[0]:
            raise ValueError(
                f"name ({name!r}) must be the data set's that data_dir holds: {data_dir} is "
                f"{builder.name!r}."
            )
        return builder
    try:
        # Not tfds.builder: that one answers with an unprepared data set where it knows the code.
        return tfds.core.read_only_builder.builder_from_files(name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError as error:
        folders = tfds.core.utils.file_utils.list_data_dirs(data_dir)
        looked_in = ", ".join(os.path.join(os.fspath(folder), name) for folder in folders)
        raise ValueError(
            f"Data set {name!r} isn't prepared: no <version>/dataset_info.json in {looked_in}. "
            f"Prepare it with\n    {_preparing_command(name, data_dir)}\n"
            "or set data_dir to the folder of TFDS data sets where it is."
        ) from error


def wrong_folder_level(class_names: list[str]) -> str | None:
    """What is wrong when classes are called what splits are called, else None.

    All of them, or one for training and one for something else: a class of trains alone is one.
    """
    names = {name.lower() for name in class_names}
    training = names & {"train", "training"}
    splits = training | names & {"val", "valid", "validation", "dev", "test", "testing"}
    if splits < names and not (training and splits > training):
        return None
    return (
        f"the classes are called {', '.join(class_names)}, as splits are, so the images were read "
        "from one folder too high up. Prepare the data set again from the folder of one split, "
        "which holds a folder per class."
    )


def _is_dataset(folder: str) -> bool:
    return tf.io.gfile.exists(os.path.join(folder, "dataset_info.json"))


def _preparing_command(name: str, data_dir: str | None) -> str:
    where = f" --data_dir={data_dir}" if data_dir else ""
    if name == "digits":
        return f"python data_prep/digits.py{where}"
    if name.split(":")[0] == "imagenet2012":
        tars = "<folder with ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar>"
        return f"python data_prep/imagenet.py{where} --manual_dir={tars}"
    if name.startswith("imagenet2012_"):
        return (
            f"python data_prep/pack.py{where} --dataset=imagenet2012 "
            f"--size={name.removeprefix('imagenet2012_')}"
        )
    return f"tfds build {name}{where}"


def packed_side(feature: tfds.features.FeatureConnector) -> int | None:
    """The side of squares that are stored as raw bytes; None: the feature isn't one of such
    squares.
    """
    if (
        not isinstance(feature, tfds.features.Tensor)
        or feature.np_dtype != np.uint8
        or len(feature.shape) != 3
    ):
        return None
    height, width, channels = feature.shape
    is_bytes = feature.to_json_content().encoding == tfds.features.Encoding.BYTES.value
    return height if is_bytes and height == width and channels == 3 else None


def find_features(info: tfds.core.DatasetInfo) -> tuple[str, str]:
    """Keys of the image and of the label feature."""

    def is_image(feature):
        is_file = (
            isinstance(feature, tfds.features.Image)
            and feature.np_dtype == np.uint8
            and len(feature.shape) == 3
        )
        return is_file or packed_side(feature) is not None

    def is_class(feature):
        return isinstance(feature, tfds.features.ClassLabel)

    def is_integer(feature):
        return feature.shape == () and np.issubdtype(feature.np_dtype, np.integer)

    def pick(key, wanted, accept, accept_named):
        features = info.features
        if key in features and accept_named(features[key]):
            return key
        keys = [other for other, feature in features.items() if accept(feature)]
        if len(keys) != 1:
            raise ValueError(
                f"{info.name} must have {wanted} named {key!r}, or just one under another name. "
                f"Its features are {dict(features.items())}."
            )
        return keys[0]

    image = pick("image", "an 8-bit image", is_image, is_image)
    label = pick("label", "a class label", is_class, is_integer)
    return image, label


def check_there(info: tfds.core.DatasetInfo, paths: list[str]) -> None:
    """Raises: ValueError: one of a data set's files isn't there; it is named."""
    # One listing a folder: asking for each file of a bucket takes minutes.
    folders = {os.path.dirname(path) for path in paths}
    there = {
        os.path.join(folder, name) for folder in folders for name in tf.io.gfile.listdir(folder)
    }
    missing = [path for path in paths if path not in there]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ValueError(
            f"{info.full_name} is incomplete: {missing[0]} is missing{more}. Copy it again, or "
            "prepare the data set again."
        )


def list_files(info: tfds.core.DatasetInfo, split: str) -> dict[str, np.ndarray]:
    """Columns over a split's files: path, records to skip and to take, number of the first."""
    try:
        parts = info.splits[split].file_instructions
    except (KeyError, ValueError, AssertionError) as error:
        raise ValueError(
            f"split ({split!r}) must be one of {info.name}'s splits {sorted(info.splits)}, or a "
            "part of one, written like 'train[:90%]': set the data set's splits."
        ) from error
    parts = [part for part in parts if part.take]
    if not parts:
        raise ValueError(f"split ({split!r}) of {info.name} must have examples; it has none.")
    take = np.array([part.take for part in parts], np.int64)
    return {
        "path": np.array([os.fspath(part.filename) for part in parts]),
        "skip": np.array([part.skip for part in parts], np.int64),
        "take": take,
        "first": np.cumsum(take) - take,
    }
