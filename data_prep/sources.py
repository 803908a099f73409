"""Where the images of a new data set come from: a folder tree, or a data set that TFDS has
prepared.
"""

import dataclasses
import functools
import os
import re
import stat
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from tensorflow_datasets.core import hashing

from hamgan.data import content, photos, pixels, prepared

SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".pjpeg", ".pjp", ".png", ".webp", ".avif", ".bmp")
SUFFIXES += (".gif", ".tif", ".tiff")
# What often lies beside images, in large numbers, and is none.
_BESIDE = (".txt", ".json", ".xml", ".csv", ".md", ".npy", ".npz", ".pkl", ".db", ".ini")

_SPLITS = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}


class Stored(NamedTuple):
    """An encoded image in a file: all of the file, or `size` bytes from `offset` on."""

    path: str
    name: str
    label: int
    offset: int = 0
    size: int = -1

    def read(self) -> bytes:
        _check_file(self.path)
        with tf.io.gfile.GFile(self.path, "rb") as file:
            file.seek(self.offset)
            return file.read(self.size)


class Loaded(NamedTuple):
    """An encoded image in memory."""

    name: str
    label: int
    encoded: bytes

    def read(self) -> bytes:
        return self.encoded


def shuffled(images: list[Stored], salt: str) -> list[Stored]:
    """Images in the order in which TFDS writes them: that of a hash of their names, salted with the
    split's.

    Raises:
      ValueError: when a name comes twice.
    """
    hasher = hashing.Hasher(salt)
    ordered = sorted((hasher.hash_key(image.name), image) for image in images)
    for (one, image), (other, _) in zip(ordered[:-1], ordered[1:], strict=True):
        if one == other:
            raise ValueError(f"Image names must differ; {image.name} comes twice.")
    return [image for _, image in ordered]


class Tree:
    """Image files in folders.

    `<folder>/<class>/<image>`, or `<folder>/<image>` (one class, named `all`), or either of them
    below `train` and, if there are any, `val` (`valid`, `validation`) and `test`, which become
    splits. Classes are numbered in alphabetical order. A file is an image by its suffix; names that
    begin with a dot are passed over.

    Args:
      folder: local or gs://. It is listed on first use of `class_names`, `num_examples` or
        `examples`.

    Attributes:
      identity: the folder.
      name: the last part of it, as far as TFDS allows it as a name.
      class_names: one per label.
      num_examples: {split: number of images}.
      ignored: files that aren't images by their suffix.

    Raises:
      ValueError: when it is listed: no such folder, no images, a class without images, images at
        two levels, a class that train doesn't have, a class whose name a data set can't keep.
    """

    def __init__(self, folder: str):
        folder = os.path.expanduser(folder).rstrip("/")
        self.identity = folder if "://" in folder else os.path.abspath(folder)
        self.name = re.sub(r"[^a-z0-9]+", "_", os.path.basename(self.identity).lower()).strip("_")
        self.ignored: set[str] = set()

    @property
    def class_names(self) -> list[str]:
        return self._listing[0]

    @functools.cached_property
    def num_examples(self) -> dict[str, int]:
        return {split: len(images) for split, images in self._listing[1].items()}

    def examples(self, split: str, start: int, stop: int) -> list[Stored]:
        return self._listing[1][split][start:stop]

    @functools.cached_property
    def _listing(self) -> tuple[list[str], dict[str, list[Stored]]]:
        root = self.identity
        if not tf.io.gfile.isdir(root):
            raise ValueError(f"image_dir ({root}) must be a folder; it isn't there.")
        images, folders = self._list(root)
        below = {"train": root} if images else self._splits_of(root, folders)
        class_names, splits = None, {}
        for split, folder in below.items():
            found = self._list_classes(folder)
            if class_names is None:
                class_names = sorted(found)
            strange = sorted(set(found) - set(class_names))
            if strange:
                raise ValueError(
                    f"{folder} must have the classes of train only; it also has {_some(strange)}."
                )
            labels = {name: label for label, name in enumerate(class_names)}
            splits[split] = shuffled(
                [
                    Stored(path, path[len(root) + 1 :], labels[c])
                    for c, paths in found.items()
                    for path in paths
                ],
                salt=split,
            )
        return class_names, splits

    def _splits_of(self, root: str, folders: list[str]) -> dict[str, str]:
        """{split: folder}, train first, since the other splits have its classes."""
        splits = {name: _SPLITS[name.lower()] for name in folders if name.lower() in _SPLITS}
        if not splits:
            return {"train": root}
        if len(splits) < len(folders) or "train" not in splits.values():
            others = sorted(set(folders) - set(splits))
            raise ValueError(
                f"image_dir ({root}) must hold folders of splits, train among them, or of classes: "
                f"{_some(sorted(splits))} are called as splits are"
                + (f", {_some(others)} not. " if others else ", and none is train. ")
                + "Move what isn't a split away, or rename folders that are classes."
            )
        if len(set(splits.values())) < len(splits):
            raise ValueError(
                f"image_dir ({root}) must have one folder of each split (one validation folder); "
                f"it has {sorted(folders)}."
            )
        order = sorted(folders, key=lambda name: splits[name] != "train")
        return {splits[name]: os.path.join(root, name) for name in order}

    def _list_classes(self, folder: str) -> dict[str, list[str]]:
        """{class: paths of its images}."""
        images, folders = self._list(folder)
        if images and folders:
            raise ValueError(
                f"{folder} must hold images (one class) or a folder per class; it holds both: "
                f"{_some(images)} "
                f"and {_some(folders)}."
            )
        if images:
            return {"all": [os.path.join(folder, image) for image in images]}
        _check_names(folder, folders)
        classes, deeper = {}, []
        for name in folders:
            path = os.path.join(folder, name)
            images, below = self._list(path)
            deeper += [os.path.join(name, child) for child in below]
            classes[name] = [os.path.join(path, image) for image in images]
        if deeper:
            raise ValueError(
                f"Images must lie in {folder}/<class>/; there are folders one level deeper: "
                f"{_some(deeper)}. "
                "Is it the folder above the right one? Every image below it would get the same few "
                "labels."
            )
        empty = sorted(name for name, images in classes.items() if not images)
        if empty:
            passed = sorted(
                path[len(folder) + 1 :]
                for path in self.ignored
                if os.path.dirname(path) in {os.path.join(folder, name) for name in empty}
            )
            raise ValueError(
                f"Each class folder in {folder} must hold images; there are none in {_some(empty)}."
                + (
                    f" Passed over by their suffixes: {_some(passed)}; known are "
                    f"{', '.join(SUFFIXES)}. (HEIC photographs must be converted, to JPEG say.)"
                    if passed
                    else ""
                )
            )
        if not classes:
            raise ValueError(
                f"{folder} must hold images, or folders of images; known are {', '.join(SUFFIXES)}."
            )
        return classes

    def _list(self, folder: str) -> tuple[list[str], list[str]]:
        """Names of the images and of the folders in a folder, sorted."""
        images, folders = [], []
        try:
            names = sorted(tf.io.gfile.listdir(folder))
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{folder} holds a name that isn't UTF-8, {error.object!r}: rename it."
            ) from error
        for name in names:
            path = os.path.join(folder, name)
            if name.startswith("."):
                continue
            if name.endswith("/") or tf.io.gfile.isdir(path):  # buckets list folders with a slash
                folders.append(name.rstrip("/"))
            elif name.lower().endswith(SUFFIXES):
                images.append(name)
            else:
                self.ignored.add(path)
        return images, folders


# Files of one folder and suffix that are looked at: there may be a million in a bucket.
_LOOKED_AT = 20


def hidden_images(paths: Iterable[str]) -> list[str]:
    """Lines on files that are images by their first bytes, though not by their suffix: one for each
    folder and kind.
    """
    groups: dict[tuple[str, str], list[str]] = {}
    for path in sorted(paths):
        folder, name = os.path.split(path)
        suffix = os.path.splitext(name)[1].lower()
        if suffix not in _BESIDE:
            groups.setdefault((folder, suffix), []).append(path)
    found: dict[tuple[str, str], list[str]] = {}
    for (folder, _), of_group in groups.items():
        for path in of_group[:_LOOKED_AT]:
            if kind := _kind_of(path):
                found.setdefault((folder, kind), []).append(os.path.basename(path))
    return [
        f"{folder} has {len(names)} {kind} images{_at_least(names)} that are left out because of "
        f"their suffix: {_some(names)}. "
        + (
            f"Call them by a suffix that is known ({', '.join(SUFFIXES)})."
            if kind in photos.FORMATS
            else f"{kind} isn't read: convert them, to JPEG say (magick mogrify -format jpg)."
        )
        for (folder, kind), names in found.items()
    ]


def _kind_of(path):
    """What kind of image a file is; None: of none, or it can't be read."""
    try:
        _check_file(path)
        with tf.io.gfile.GFile(path, "rb") as file:
            return photos.kind_of(file.read(photos.HEAD_BYTES))
    except (ValueError, OSError, tf.errors.OpError):
        return None


def _at_least(names):
    return " or more" if len(names) >= _LOOKED_AT else ""


class Prepared:
    """A data set that TFDS has prepared, with an image and a label feature.

    Args:
      name: as for `hamgan.data.ImageDataset`.
      data_dir: folder of TFDS data sets, or the data set's own; None: TFDS's default.
      splits: which ones to take; none: all.

    Attributes:
      identity: name, configuration and version.
      name: name.
      class_names: one per label.
      num_examples: {split: number of images}.
      ignored: none, as a data set has nothing but images.

    Raises:
      ValueError: no such data set or split, or one without image or label.
    """

    def __init__(self, name: str, data_dir: str | None, splits: list[str] | tuple[str, ...] = ()):
        builder = prepared.open_builder(name, data_dir)
        self._info = info = builder.info
        self.identity = info.full_name
        self.name = info.name
        self.ignored: set[str] = set()
        self._folder = os.fspath(builder.data_dir)
        self._image_key, self._label_key = prepared.find_features(info)
        if not isinstance(info.features[self._image_key], tfds.features.Image):
            raise ValueError(f"{info.name} must hold encoded images; it is packed already.")
        unknown = sorted(set(splits) - set(info.splits))
        if unknown:
            raise ValueError(
                f"splits ({unknown}) must be among {info.name}'s, which are {sorted(info.splits)}."
            )
        self.num_examples = {
            split: info.splits[split].num_examples for split in splits or info.splits
        }
        if set(self.num_examples) != set(info.splits):
            self.identity += f"[{','.join(sorted(self.num_examples))}]"
        label = info.features[self._label_key]
        if not isinstance(label, tfds.features.ClassLabel):
            raise ValueError(
                f"{info.name}'s label must be a class label, so that the classes are known; it is "
                f"{label}."
            )
        self.class_names = label.names

    def content(self, split: str) -> str:
        """A digest of the images of a split (`hamgan.data.content`)."""
        return content.digest(prepared.list_files(self._info, split)["path"])

    def examples(self, split: str, start: int, stop: int) -> "_Range":
        return _Range(self._folder, split, start, stop, self._image_key, self._label_key)


@dataclasses.dataclass(frozen=True)
class _Range:
    """Examples [start, stop) of a split in stored order, as `Loaded`; read when iterated over."""

    folder: str
    split: str
    start: int
    stop: int
    image_key: str
    label_key: str

    def __iter__(self) -> Iterator[Loaded]:
        builder = tfds.builder_from_directory(self.folder)
        wanted = {self.image_key, self.label_key, "file_name"} & set(builder.info.features)
        dataset = builder.as_dataset(
            split=tfds.core.ReadInstruction(self.split, from_=self.start, to=self.stop, unit="abs"),
            decoders=tfds.decode.PartialDecoding(
                dict.fromkeys(wanted, True), decoders={self.image_key: tfds.decode.SkipDecoding()}
            ),
            read_config=tfds.ReadConfig(try_autocache=False, interleave_cycle_length=1),
        )
        count = 0
        for example in dataset.as_numpy_iterator():
            name = f"{self.split}[{self.start + count}]"
            if "file_name" in example:
                name += f" {example['file_name'].decode(errors='replace')}"
            yield Loaded(name, int(example[self.label_key]), example[self.image_key])
            count += 1
        if count != self.stop - self.start:
            raise ValueError(
                f"{self.folder} must hold examples {self.start} to {self.stop} of {self.split}; "
                f"{count} were read."
            )


def decode_photo(encoded: bytes, size: int, *, max_pixels: int = photos.MAX_PIXELS) -> np.ndarray:
    """An image as `hamgan.data` shows it to the networks, uint8 [size, size, 3].

    That is as a careful viewer shows it: `photos.shown`, as a square.

    Raises:
      ValueError: as `photos.shown`, or the file is damaged.
    """
    plain = photos.plain(encoded, max_pixels=max_pixels)
    try:
        return _square_function(size)(plain).numpy()
    except tf.errors.InvalidArgumentError as error:
        kind = photos.kind_of(encoded[: photos.HEAD_BYTES]) or "file"
        # What went wrong stands behind where it did in the graph.
        reason = error.message.partition("\n\t [[")[0].splitlines()[-1]
        raise ValueError(
            f"it is damaged, a {kind} of {len(encoded):,} bytes that can't be decoded: {reason}"
        ) from error


# Two names from when data sets and photographs were decoded differently.
decode_as_stored = decode_photo
photo_pixels = photos.shown


def _check_names(folder, names):
    """Refuses names that a data set, which keeps one a line, would give back as others."""
    lost = [name for name in names if name != name.strip() or "\n" in name or "\r" in name]
    if lost:
        raise ValueError(
            f"A class folder's name must be one line without blanks at its ends, and in {folder} "
            f"there are {_some([repr(name) for name in lost])}: rename them."
        )


def _check_file(path: str) -> None:
    """ValueError for a local path that has no end, or that opening would wait for."""
    if "://" not in path and os.path.exists(path) and not stat.S_ISREG(os.stat(path).st_mode):
        raise ValueError("it is no file but a pipe, socket or device")


@functools.cache
def _square_function(size: int):
    @tf.function(input_signature=[tf.TensorSpec([], tf.string)])
    def square(encoded):
        image = pixels.decode(encoded, size, inexact=False)
        return tf.cast(tf.round((image + 1) * 127.5), tf.uint8)

    return square


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"
