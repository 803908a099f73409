"""Where the images of a new data set come from: a folder tree, or a data set that TFDS has
prepared.
"""

import dataclasses
import functools
import io
import os
import re
import stat
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from PIL import Image, ImageCms, UnidentifiedImageError
from tensorflow_datasets.core import hashing

from hamgan import data
from hamgan.data import prepared

SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".pjpeg", ".pjp", ".png", ".webp", ".avif", ".bmp")
SUFFIXES += (".gif", ".tif", ".tiff")

# What is opened, whatever a file is called: a PostScript file would start Ghostscript.
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "AVIF", "BMP", "DIB", "GIF", "TIFF")
# Width times height; decoding takes some 10 bytes for each.
MAX_PIXELS = 150_000_000

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
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
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
        two levels, a class that train doesn't have.
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
        info = builder.info
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


def decode_as_stored(encoded: bytes, size: int) -> np.ndarray:
    """An image as `hamgan.data` shows it to the networks, uint8 [size, size, 3].

    JPEG, PNG, GIF (first picture) and BMP. No EXIF rotation: the published pipeline has none.
    """
    return _decode_function(size)(encoded).numpy()


def decode_photo(encoded: bytes, size: int) -> np.ndarray:
    """`photo_pixels` as a square, uint8 [size, size, 3]."""
    return _square_function(size)(photo_pixels(encoded)).numpy()


def photo_pixels(encoded: bytes) -> np.ndarray:
    """Any image as a viewer shows it, uint8 [h, w, 1 or 3], turned as its EXIF orientation says.

    Transparent pixels are put on white. 16 bits are scaled to 8. Colours are converted to sRGB by
    the image's own profile where it has one. Of an animation the first picture is taken.

    Raises:
      ValueError: the bytes are of no format in FORMATS; more than MAX_PIXELS; samples without a
        fixed white (32 bits, floating point, signed).
    """
    try:
        opened = Image.open(io.BytesIO(encoded), formats=[f for f in FORMATS if f in _known()])
    except UnidentifiedImageError as error:
        raise ValueError(f"it is none of {', '.join(FORMATS)}, by its content") from error
    except Image.DecompressionBombError as error:
        raise ValueError(f"it has more than {MAX_PIXELS:,} pixels ({error})") from error
    with opened as image:
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise ValueError(f"it has {width} x {height} pixels, more than {MAX_PIXELS:,}")
        orientation = _orientation(image)
        if image.mode == "F" or (image.mode == "I" and image.format != "PNG"):
            kind = "floating-point" if image.mode == "F" else "integer"
            raise ValueError(f"32-bit {kind} samples: convert it to 8 or 16 bits")
        if image.mode.startswith("I"):
            image = _of_16_bits(image)
        else:
            image = _in_srgb(image, encoded)
        if orientation in _TURNS:
            image = image.transpose(_TURNS[orientation])
        pixels = np.asarray(image)
        return pixels if pixels.ndim == 3 else pixels[..., np.newaxis]


def _known():
    Image.init()
    return Image.OPEN


def _orientation(image):
    """Of the EXIF data; an entry that can't be read counts as none, and no other entry matters."""
    try:
        return image.getexif().get(0x112)
    except Exception:  # whatever Pillow's parser stumbles over
        return None


def _of_16_bits(image):
    """A grey image of 16 bits in 8: `L`."""
    grey = np.asarray(image).astype(np.float64)
    transparent = image.info.get("transparency")
    white_is_zero = image.format == "TIFF" and image.tag_v2.get(262) == 0
    values = np.clip(np.rint((65535 - grey if white_is_zero else grey) / 257), 0, 255)
    if isinstance(transparent, int):
        values = np.where(grey == transparent, 255, values)
    return Image.fromarray(values.astype(np.uint8))


def _in_srgb(image, encoded):
    """An image of 8 bits or less as `RGB`, transparent pixels on white."""
    transparent = image.info.get("transparency")
    if image.format == "PNG" and image.mode in ("1", "L") and isinstance(transparent, int):
        # Pillow stretches samples of 1, 2 and 4 bits to 8, and leaves this value as it is stored.
        image = image.convert("L")
        image.info["transparency"] = transparent * 255 // (2 ** min(encoded[24], 8) - 1)
    profile = image.info.get("icc_profile")
    alpha = None
    if "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        alpha = image.getchannel("A")
        image = image.convert("RGB")
    image = _by_profile(image, profile) if profile else image
    image = image.convert("RGB")
    if alpha is None:
        return image
    return Image.composite(image, Image.new("RGB", image.size, "white"), alpha)


def _by_profile(image, profile):
    """An image in sRGB; as it is where its profile can't be used."""
    if image.mode not in ("RGB", "L", "CMYK"):
        image = image.convert("RGB")
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if "srgb" in ImageCms.getProfileDescription(source).lower():
            return image
        target = ImageCms.createProfile("sRGB")
        return ImageCms.profileToProfile(image, source, target, outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, TypeError, ValueError):
        return image


def _check_file(path: str) -> None:
    """ValueError for a local path that has no end, or that opening would wait for."""
    if "://" not in path and os.path.exists(path) and not stat.S_ISREG(os.stat(path).st_mode):
        raise ValueError("it is no file but a pipe, socket or device")


def _to_square(pixels: tf.Tensor, size: int) -> tf.Tensor:
    return tf.cast(tf.round((data.preprocess(pixels, size) + 1) * 127.5), tf.uint8)


@functools.cache
def _square_function(size: int):
    return tf.function(
        lambda pixels: _to_square(pixels, size),
        input_signature=[tf.TensorSpec([None, None, None], tf.uint8)],
    )


@functools.cache
def _decode_function(size: int):
    @tf.function(input_signature=[tf.TensorSpec([], tf.string)])
    def decode(encoded):
        return _to_square(tf.io.decode_image(encoded, channels=3, expand_animations=False), size)

    return decode


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"
