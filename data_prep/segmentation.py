"""Images with a label for every pixel as a TFDS data set: VOC 2012, PASCAL Context, ADE20K, yours.

    python data_prep/segmentation.py --dataset=voc2012 --source_dir=VOCdevkit/VOC2012 \\
        --sbd_dir=benchmark_RELEASE/dataset
    python data_prep/segmentation.py --dataset=pascal_context --source_dir=VOCdevkit/VOC2010
    python data_prep/segmentation.py --dataset=ade20k --source_dir=ADEChallengeData2016
    python data_prep/segmentation.py --dataset=folder --source_dir=mine

Each writes a data set into --data_dir with the features `image` (the file as it is), `label` (a
grey PNG of classes, 255 where a pixel doesn't count) and `id`.

voc2012: splits `train` (1,464), `extra` (9,118 of SBD: `train+extra` is trainaug), `validation`
(1,449; `train+validation` is trainval) and, where there are the list test.txt and its images,
`test` (1,456, no labels). SBD's labels are read from its .mat files below --sbd_dir, or, as
HamNet's own folders have it, from <source_dir>/SegmentationClassAug/<id>.png with the lists
train.txt, trainaug.txt and val.txt in --list_dir (published `datalist`).

pascal_context: JPEGImages, SegmentationClassContext and ImageSets/SegmentationContext/train.txt and
val.txt as MMSegmentation lays them out; 59 classes, background doesn't count. With --background 60.

ade20k: images and annotations below training and validation; 150 classes.

folder: mine/images/<name>.jpg (or .png, ...) and mine/masks/<name>.png, or both below `train`,
`val` and `test`, as in mine/images/train; the classes' names in mine/classes.txt, one a line, or
their number in --num_classes. A mask is a PNG with a palette, or grey. Its pixels are the classes'
numbers, from 0 on; 255 doesn't count (so masks of 0 and 255 have one class).

A killed job goes on where it was when it is run again, and does nothing when all is done.
"""

# isort: off
import data_prep.first  # noqa: F401 - first of all
# isort: on

import dataclasses
import functools
import io
import math
import os
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import scipy.io
import tensorflow as tf
import tensorflow_datasets as tfds
from absl import flags
from PIL import Image
from tensorflow_datasets.core import file_adapters

from data_prep import packing, sources
from hamgan import choices
from hamgan.segmentation import classes, metrics, palette

# Of a part, which is also what a killed job loses of its work.
SHARD_BYTES = choices.SEGMENTATION_SHARD_MB * 10**6

NUM_IMAGES = {
    "voc2012": {"train": 1464, "extra": 9118, "validation": 1449, "test": 1456},
    "pascal_context": {"train": 4998, "validation": 5105},
    "ade20k": {"train": 20_210, "validation": 2000},
}

_IGNORED = 255
_ORIENTATION = 0x0112  # the EXIF tag
_SPLIT_OF = {"train": "train", "val": "validation", "validation": "validation", "test": "test"}
_VOC_LISTS = "ImageSets/Segmentation"


class Pair(NamedTuple):
    """An image's file and its label's; no label: none of its pixels counts."""

    name: str
    image: str
    label: str | None


@dataclasses.dataclass(frozen=True)
class Source:
    """A data set's files and what its labels mean.

    Attributes:
      name: of the data set to write.
      identity: where it comes from.
      class_names: in the order of the written labels.
      splits: {split: its images}.
      first_is_none: stored labels are one larger than written ones, and 0 doesn't count.
      upright: turn images as their EXIF data says; published pipelines don't.
    """

    name: str
    identity: str
    class_names: Sequence[str]
    splits: Mapping[str, list[Pair]]
    first_is_none: bool = False
    upright: bool = False


# The published layouts.


def voc2012(
    source_dir: str,
    *,
    sbd_dir: str | None = None,
    list_dir: str | None = None,
    test_dir: str | None = None,
) -> Source:
    """VOC 2012 with SBD's labels; see the module's first lines.

    Raises:
      ValueError: a folder, list or file that isn't there.
    """
    root = _folder("source_dir", source_dir)
    list_dir = list_dir or os.path.join(root, _VOC_LISTS)
    augmented = os.path.join(root, "SegmentationClassAug")
    own = os.path.join(root, "SegmentationClass")
    own = own if tf.io.gfile.isdir(own) else augmented
    train, val = (_read_list(list_dir, name) for name in ("train.txt", "val.txt"))
    images = os.path.join(root, "JPEGImages")
    labels = {"train": (own, ".png", train), "validation": (own, ".png", val)}
    if sbd_dir:
        sbd_dir = _folder("sbd_dir", sbd_dir)
        sbd = [n for name in ("train.txt", "val.txt") for n in _read_list(sbd_dir, name)]
        labels["extra"] = (os.path.join(sbd_dir, "cls"), ".mat", sbd)
    elif tf.io.gfile.isdir(augmented):
        labels["extra"] = (augmented, ".png", _read_list(list_dir, "trainaug.txt"))
    else:
        raise ValueError(
            f"sbd_dir must be SBD's folder `dataset`, got {sbd_dir}, and there is no {augmented}: "
            "trainaug needs either."
        )
    folder, suffix, names = labels["extra"]
    labels["extra"] = (folder, suffix, sorted(set(names) - set(train) - set(val)))
    splits = {
        split: [Pair(n, _join(images, n, ".jpg"), _join(folder, n, suffix)) for n in names]
        for split, (folder, suffix, names) in labels.items()
    }
    if tf.io.gfile.exists(os.path.join(list_dir, "test.txt")):
        folder = _folder("test_dir", test_dir) if test_dir else images
        test = [Pair(n, _join(folder, n, ".jpg"), None) for n in _read_list(list_dir, "test.txt")]
        # The archive of training and validation has the list, but not these images.
        if test_dir or (test and tf.io.gfile.exists(test[0].image)):
            splits["test"] = test
    return Source("voc2012_segmentation", root, classes.VOC, splits)


def pascal_context(source_dir: str, *, background: bool = False) -> Source:
    """PASCAL Context in MMSegmentation's layout: 59 classes, or 60 with background as class 0.

    Raises:
      ValueError: a folder or list that isn't there.
    """
    root = _folder("source_dir", source_dir)
    splits = {
        split: [
            Pair(
                n,
                _join(os.path.join(root, "JPEGImages"), n, ".jpg"),
                _join(os.path.join(root, "SegmentationClassContext"), n, ".png"),
            )
            for n in _read_list(os.path.join(root, "ImageSets/SegmentationContext"), name)
        ]
        for split, name in (("train", "train.txt"), ("validation", "val.txt"))
    }
    names = ("background", *classes.CONTEXT) if background else classes.CONTEXT
    name = f"pascal_context_{len(names)}"
    return Source(name, root, names, splits, first_is_none=not background)


def ade20k(source_dir: str) -> Source:
    """ADE20K of the scene parsing challenge, 150 classes.

    Raises:
      ValueError: a folder that isn't there, or images without annotations.
    """
    root = _folder("source_dir", source_dir)
    splits = {
        split: _paired(
            os.path.join(root, "images", below), os.path.join(root, "annotations", below)
        )
        for split, below in (("train", "training"), ("validation", "validation"))
    }
    return Source("ade20k", root, classes.ADE20K, splits, first_is_none=True)


def own_folder(source_dir: str, num_classes: int | None = None) -> Source:
    """Anybody's images and masks; see the module's first lines.

    Raises:
      ValueError: a folder that isn't there, images without masks or masks without images, no
        number of classes, or two different ones.
    """
    root = _folder("source_dir", source_dir)
    path = os.path.join(root, "classes.txt")
    names = _read_list(root, "classes.txt", whole_lines=True) if tf.io.gfile.exists(path) else None
    if names is None and num_classes is None:
        raise ValueError(f"num_classes must be given where there is no {path}, got None.")
    if names and num_classes and len(names) != num_classes:
        raise ValueError(
            f"num_classes must be the number of names in {path}, {len(names)}, got {num_classes}."
        )
    names = names or [f"class {number}" for number in range(num_classes)]
    if not 1 <= len(names) < _IGNORED:
        raise ValueError(f"The number of classes must be in [1, 255), got {len(names)}.")
    images, masks = (_folder("source_dir", os.path.join(root, n)) for n in ("images", "masks"))
    below = sorted(name for name in _list(images) if tf.io.gfile.isdir(os.path.join(images, name)))
    strange = sorted(set(below) - set(_SPLIT_OF))
    if strange or (below and "train" not in below):
        raise ValueError(
            f"{images} must hold images, or the folders train and perhaps val and test, got "
            f"{below}."
        )
    splits = {
        _SPLIT_OF[name]: _paired(os.path.join(images, name), os.path.join(masks, name))
        for name in below
    }
    name = re.sub(r"[^a-z0-9]+", "_", os.path.basename(root).lower()).strip("_")
    return Source(name, root, names, splits or {"train": _paired(images, masks)}, upright=True)


def _folder(argument: str, path: str) -> str:
    path = os.path.expanduser(path).rstrip("/")
    path = path if "://" in path else os.path.abspath(path)
    if not tf.io.gfile.isdir(path):
        raise ValueError(f"{argument}: the folder {path} isn't there.")
    return path


def _join(folder: str, name: str, suffix: str) -> str:
    return os.path.join(folder, name + suffix)


def _list(folder: str) -> list[str]:
    names = [name.rstrip("/") for name in tf.io.gfile.listdir(folder)]
    return sorted(name for name in names if not name.startswith("."))


def _read_list(folder: str, name: str, *, whole_lines: bool = False) -> list[str]:
    """Names of images, one a line; a line may hold more, as VOC's lists of one class do."""
    path = os.path.join(folder, name)
    if not tf.io.gfile.exists(path):
        raise ValueError(f"The list {path} isn't there.")
    with tf.io.gfile.GFile(path, "r") as file:
        lines = [line.strip() for line in file.read().splitlines() if line.strip()]
    names = lines if whole_lines else [line.split()[0] for line in lines]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{path} must name everything once, got {twice!r} twice.")
    return names


def _paired(images: str, labels: str) -> list[Pair]:
    """The images of a folder with the labels of the same names, in the order of their names."""
    image_of, label_of = {}, {}
    for folder, found, suffixes in (
        (images, image_of, sources.SUFFIXES),
        (labels, label_of, (".png",)),
    ):
        for name in _list(_folder("source_dir", folder)):
            stem, suffix = os.path.splitext(name)
            if suffix.lower() not in suffixes:
                continue
            if stem in found:
                raise ValueError(f"{folder} must hold one file called {stem}, got {name} too.")
            found[stem] = os.path.join(folder, name)
    if not image_of:
        raise ValueError(f"{images} must hold images, got none ending in {sources.SUFFIXES}.")
    for some, others, what in ((image_of, label_of, labels), (label_of, image_of, images)):
        missing = sorted(set(some) - set(others))
        if missing:
            raise ValueError(
                f"Each image must have its label; in {what} there is none called "
                f"{', '.join(missing[:5])}"
                + (f" and {len(missing) - 5} more." * (len(missing) > 5))
            )
    return [Pair(stem, image_of[stem], label_of[stem]) for stem in sorted(image_of)]


# One example.


def read_label(path: str) -> np.ndarray:
    """The labels that a PNG or one of SBD's .mat files stores, uint8 [h, w].

    Raises:
      ValueError: not such a file, or a damaged one.
    """
    content = _read(path)
    if not path.endswith(".mat"):
        return palette.read_indices(content)
    try:
        truth = scipy.io.loadmat(io.BytesIO(content), squeeze_me=True, struct_as_record=False)
        return np.asarray(truth["GTcls"].Segmentation, np.uint8)
    except Exception as error:  # a damaged file makes SciPy raise all sorts of things
        raise ValueError(f"{path} must hold GTcls.Segmentation: {error}") from None


def _read(path: str) -> bytes:
    with tf.io.gfile.GFile(path, "rb") as file:
        return file.read()


def read_image(path: str, *, upright: bool) -> tuple[bytes, tuple[int, int]]:
    """An image to store, and its (height, width): the file, where training can read it as it is.

    Others, and with `upright` those that a viewer would turn, are stored as PNGs of their pixels.

    Raises:
      ValueError: no image, or a damaged one.
    """
    content = _read(path)
    try:
        with Image.open(io.BytesIO(content)) as image:
            image.load()
            as_it_is = (image.format, image.mode) in (
                ("JPEG", "RGB"),
                ("JPEG", "L"),
                ("PNG", "RGB"),
                ("PNG", "L"),
            ) and "transparency" not in image.info
            if as_it_is and not (upright and image.getexif().get(_ORIENTATION, 1) != 1):
                return content, (image.height, image.width)
    except (OSError, SyntaxError) as error:  # Pillow's kinds of damage
        raise ValueError(f"{path}: {error}") from None
    pixels = sources.photo_pixels(content)
    return tf.io.encode_png(pixels).numpy(), pixels.shape[:2]


def _encode(pair: Pair, *, source_options, num_classes: int, features) -> bytes:
    image, size = read_image(pair.image, upright=source_options["upright"])
    if pair.label is None:
        label = np.full(size, _IGNORED, np.uint8)
    else:
        label = read_label(pair.label)
        if label.shape != size:
            raise ValueError(f"image and label must have one size, got {size} and {label.shape}")
        if source_options["first_is_none"]:
            label = metrics.without_first_class(label)
        strange = np.unique(label[(label >= num_classes) & (label != _IGNORED)])
        if strange.size:
            raise ValueError(
                f"labels must be among {num_classes} classes or 255, got {strange[:5].tolist()}"
                + (" after taking 1" if source_options["first_is_none"] else "")
            )
    files = {"image": io.BytesIO(image), "label": io.BytesIO(palette.encode_png(label))}
    return features.serialize_example({**files, "id": pair.name})


# The data set.


def prepare(
    source: Source,
    *,
    data_dir: str,
    name: str | None = None,
    num_images: Mapping[str, int] | None = None,
    shard_bytes: int = SHARD_BYTES,
    num_workers: int | None = None,
    skip_bad: bool = False,
) -> tuple[str, bool]:
    """Writes a source as a data set.

    Args:
      source: of `voc2012`, `pascal_context`, `ade20k` or `own_folder`.
      data_dir: folder of TFDS data sets to put it into, local or gs://.
      name: the new data set's; None: the source's.
      num_images: how many images each split must have, where it is there; None: any.
      shard_bytes: about the most that a file holds.
      num_workers: processes; None: one per core.
      skip_bad: leave out images that can't be used, instead of stopping after all were looked at.

    Returns:
      The data set's folder, and whether this call wrote it.

    Raises:
      ValueError: an argument out of range, another number of images, bad images, not enough space.
    """
    name = name or source.name
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise ValueError(
            f"name must be small letters, digits and underscores, a letter first, got {name!r}: "
            "give --name."
        )
    for argument, value in (("shard_bytes", shard_bytes), ("num_workers", num_workers)):
        if value is not None and value < 1:
            raise ValueError(f"{argument} must be at least 1, got {value}.")
    folder = os.path.join(os.path.expanduser(data_dir), name, packing.VERSION)
    options = {"first_is_none": source.first_is_none, "upright": source.upright}
    settings = {"source": source.identity, "classes": list(source.class_names), **options}
    if packing.is_done(folder, settings):
        return folder, False
    for split, count in (num_images or {}).items():
        if split in source.splits and len(source.splits[split]) != count:
            raise ValueError(
                f"{source.identity}: split {split} must have {count:,} images, got "
                f"{len(source.splits[split]):,}. Is it complete? (Parts of it: --dataset=folder.)"
            )
    info = _describe(name, source)
    packing.write(
        _cut(source, shard_bytes),
        folder=folder,
        info=info,
        encode=functools.partial(
            _encode,
            source_options=options,
            num_classes=len(source.class_names),
            features=info.features,
        ),
        settings=settings,
        num_workers=num_workers or os.cpu_count(),
        skip_bad=skip_bad,
    )
    return folder, True


def _describe(name: str, source: Source) -> tfds.core.DatasetInfo:
    info = tfds.core.DatasetInfo(
        builder=tfds.core.dataset_info.DatasetIdentity(
            name=name, version=tfds.core.Version(packing.VERSION), data_dir="", module_name=""
        ),
        description=f"{source.identity}: images, and the class of every pixel, 255 for none.",
        features=tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(shape=(None, None, 3)),
                "label": tfds.features.LabeledImage(
                    shape=(None, None, 1), labels=list(source.class_names)
                ),
                "id": tfds.features.Text(),
            }
        ),
        supervised_keys=("image", "label"),
    )
    info.set_file_format(file_adapters.FileFormat.TFRECORD)
    return info


def _cut(source: Source, shard_bytes: int) -> list[packing.Part]:
    parts = []
    for split, pairs in source.splits.items():
        size = _mean_bytes(pairs)
        num_parts = max(1, math.ceil(len(pairs) * size / shard_bytes))
        for start, stop in packing.cut(len(pairs), min(num_parts, len(pairs))):
            parts.append(
                packing.Part(split, pairs[start:stop], stop - start, (stop - start) * size)
            )
    return parts


def _mean_bytes(pairs: list[Pair]) -> int:
    """Of a record, about: the mean of some images' files, and labels, which take less."""
    some = pairs[:: max(1, len(pairs) // 20)]
    lengths = [tf.io.gfile.stat(p.image).length for p in some if tf.io.gfile.exists(p.image)]
    return int(1.2 * sum(lengths) / max(len(lengths), 1)) + 1000


def main():
    flag = flags.FLAGS
    if flag.dataset == "voc2012":
        source = voc2012(
            flag.source_dir,
            sbd_dir=flag.sbd_dir,
            list_dir=flag.list_dir,
            test_dir=flag.test_dir,
        )
    elif flag.dataset == "pascal_context":
        source = pascal_context(flag.source_dir, background=flag.background)
    elif flag.dataset == "ade20k":
        source = ade20k(flag.source_dir)
    else:
        source = own_folder(flag.source_dir, flag.num_classes)
    folder, written = prepare(
        source,
        data_dir=flag.data_dir,
        name=flag.name,
        num_images=NUM_IMAGES.get(flag.dataset),
        shard_bytes=flag.shard_mb * 10**6,
        num_workers=flag.num_workers,
        skip_bad=flag.skip_bad,
    )
    print(packing.describe(folder, written))


if __name__ == "__main__":
    packing.run(main)
