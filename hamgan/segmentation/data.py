"""Batches of images and labels from a prepared TFDS segmentation data set.

As in `hamgan.data`, the order of the training stream is a function of (seed, position) alone, and a
stream can be entered at any batch. An epoch is a permutation of all of its records: these data sets
are small, local files, of which each record is read from its place when it is due. What an example
is cut, mirrored and coloured by is keyed by (seed, position) too.
"""

import hashlib
from collections.abc import Callable

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from google.protobuf import message
from tensorflow_datasets.core import file_adapters

from hamgan import stateless
from hamgan.data import content, order, places, prepared
from hamgan.data.dataset import with_options
from hamgan.segmentation import augmentation as augmentations

# Named, because the default may differ between devices and the order must not.
_ALGORITHM = "philox"

# The stream of keys for pixels, beside those of `stateless`.
_PIXELS = 100

# Bytes 24 and 25 of a PNG: bits per sample, and the colour type, of which 0 is grey.
_GREY_PNG = b"\x08\x00"

_LABEL_NAMES = ("label", "segmentation_mask", "segmentation_label", "mask")

# (image uint8 [h, w, 3], label uint8 [h, w], key [2]) -> (float32 [S, S, 3], int32 [S, S])
Augmentation = Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor]]


class SegmentationDataset:
    """A prepared TFDS data set with an image and a label of every pixel, as batches.

    The image feature is the one named `image`, or the only one with three channels; the label is
    one of one channel, named `label`, `segmentation_mask`, `segmentation_label` or `mask`, or the
    only one. Labels are classes in [0, num_classes), and 255 for pixels that don't count.
    `data_prep/segmentation.py` writes such data sets; the code that built one isn't needed.

    Args:
      name: TFDS name, or the folder that holds a prepared data set's dataset_info.json.
      num_classes: must be the data set's own number, where it has one.
      augmentation: (image, label, key) -> image, label: `augmentation.HamNetAugmentation` or
        `augmentation.MMSegmentationAugmentation`.
      train_split: TFDS split for training, `train`, or a sum like `train+extra`.
      test_split: TFDS split for evaluation.
      data_dir: folder of TFDS data sets, or one data set's own folder; None: TFDS's default.

    Attributes:
      version: the data set's version.
      class_names: names of the classes, in the order of their labels; numbers where the data set
        names none.

    Raises:
      ValueError: when there is no such data set, split, image or label, when `num_classes` isn't
        the data set's, or when its files aren't local TFRecords.
    """

    def __init__(
        self,
        *,
        name: str,
        num_classes: int,
        augmentation: Augmentation | None = None,
        train_split: str = "train",
        test_split: str = "validation",
        data_dir: str | None = None,
    ):
        if not 1 <= num_classes < augmentations.IGNORED:
            raise ValueError(f"num_classes must be in [1, 255), got {num_classes}.")
        self.name = name
        self.num_classes = num_classes
        self.augmentation = augmentation
        self.train_split = train_split
        self.test_split = test_split
        self._info = prepared.open_builder(name, data_dir).info
        self._image_key, self._label_key = _find_features(self._info)
        self.version = str(self._info.version)
        self.class_names = self._class_names()
        self._finders: dict[str, places.RecordFinder] = {}
        self._counts: dict[str, int] = {}
        for split in (train_split, test_split):
            self._prepare(split)

    def check_files(self, *splits: str) -> None:
        """Asks whether the files of splits are there; none: of training and of test.

        Raises:
          ValueError: one isn't; it is named.
        """
        for split in splits or (self.train_split, self.test_split):
            paths = prepared.list_files(self._info, split)["path"].tolist()
            prepared.check_there(self._info, paths)

    def identity(self) -> dict[str, object]:
        """What tells these images from others of the same name."""
        split = self.train_split
        paths = prepared.list_files(self._info, split)["path"]
        return {
            "name": self._info.name,
            "version": self.version,
            "classes": hashlib.sha256("\n".join(self.class_names).encode()).hexdigest()[:16],
            "splits": {
                split: {"images": self.num_examples(split), "content": content.digest(paths)}
            },
        }

    @property
    def info(self) -> tfds.core.DatasetInfo:
        """TFDS's description of the data set: splits, their files and sizes."""
        return self._info

    def num_examples(self, split: str) -> int:
        """How many examples a split holds; ValueError: the data set has no such split."""
        self._prepare(split)
        return self._counts[split]

    def train_batches(
        self,
        *,
        batch_size: int,
        seed: int,
        start_batch: int = 0,
        shard_index: int = 0,
        num_shards: int = 1,
    ) -> tf.data.Dataset:
        """An endless stream of `train_split`, in another order every epoch.

        Epochs follow one another without a seam, and no example is dropped: a batch may hold the
        end of one and the beginning of the next. (Published: the rest of an epoch is dropped.) The
        stream of shard i holds rows [i * batch_size, (i + 1) * batch_size) of every global batch.

        Args:
          batch_size: images per batch of this shard.
          seed: fixes order and augmentation.
          start_batch: enter the stream after this many batches.
          shard_index: which shard this is, in [0, num_shards).
          num_shards: how many shards share the stream.

        Returns:
          A data set of {'image': float32 [batch_size, S, S, 3], 'label': int32 [batch_size, S, S]},
          as `augmentation` gives them. Damaged records and labels outside of the classes raise
          `tf.errors.InvalidArgumentError` or `tf.errors.UnknownError` when they are read.

        Raises:
          ValueError: when an argument is out of range, or the data set has no augmentation.
        """
        order.check_stream(
            batch_size=batch_size,
            seed=seed,
            start_batch=start_batch,
            shard_index=shard_index,
            num_shards=num_shards,
        )
        if self.augmentation is None:
            raise ValueError("augmentation must be given for training, got None.")
        start = start_batch * batch_size * num_shards
        # Keys take 31 bits at a time; a seed after a rollback has more.
        parts = [seed >> shift & (2**31 - 1) for shift in (0, 31, 62)]
        stream = _shuffled(self.num_examples(self.train_split), seed, start).enumerate(start)
        # Batch k * num_shards + i is this shard's part of global batch k.
        mine = stream.batch(batch_size).shard(num_shards, shard_index).unbatch()

        def load(position, number):
            example = self._load(self.train_split, number)
            key = stateless.key(*parts, _PIXELS, position)
            image, label = self.augmentation(example["image"], example["label"], key)
            return {"image": image, "label": label}

        examples = mine.map(load, num_parallel_calls=tf.data.AUTOTUNE)
        return with_options(examples.batch(batch_size, drop_remainder=True))

    def test_examples(
        self, *, split: str | None = None, shard_index: int = 0, num_shards: int = 1
    ) -> tf.data.Dataset:
        """Every example of a split once, in stored order, one by one: sizes differ.

        Args:
          split: None: `test_split`.
          shard_index, num_shards: examples shard_index, shard_index + num_shards, ... only.

        Returns:
          A finite data set of {'image': uint8 [h, w, 3], 'label': uint8 [h, w], 'id': string, empty
          where the data set has none}.

        Raises:
          ValueError: when the data set has no such split, or a number is out of range.
        """
        order.check_shard(shard_index, num_shards)
        split = self.test_split if split is None else split
        numbers = tf.data.Dataset.range(shard_index, self.num_examples(split), num_shards)
        return with_options(
            numbers.map(lambda number: self._load(split, number), num_parallel_calls=4)
        )

    def _class_names(self) -> list[str]:
        label = self._info.features[self._label_key]
        count = getattr(label, "num_classes", None)
        if count is None:
            return [str(number) for number in range(self.num_classes)]
        if count != self.num_classes:
            raise ValueError(
                f"num_classes must be the number of classes that {self._info.name} has, which is "
                f"{count}, got {self.num_classes}."
            )
        return list(label.names)

    def _prepare(self, split: str) -> None:
        if split in self._finders:
            return
        files = prepared.list_files(self._info, split)
        paths = files["path"]
        is_tfrecord = self._info.file_format == file_adapters.FileFormat.TFRECORD
        if not is_tfrecord or any("://" in path for path in paths):
            raise ValueError(
                f"{self._info.name} must be local TFRecord files, got {paths[0]}: copy it to this "
                "machine."
            )
        self._finders[split] = places.RecordFinder(files)
        self._counts[split] = int(files["take"].sum())

    def _load(self, split: str, number: tf.Tensor) -> dict[str, tf.Tensor]:
        """{'image': uint8 [h, w, 3], 'label': uint8 [h, w], 'id'} of a record."""
        finder = self._finders[split]

        def read(number):
            with places.READS:
                return _parse(self._image_key, self._label_key, finder, int(number))

        image, label, name = tf.numpy_function(read, [number], (tf.string, tf.string, tf.string))
        image, label, name = (tf.ensure_shape(x, []) for x in (image, label, name))
        image = _decode(image)
        label = tf.io.decode_png(label, channels=1)[..., 0]
        strange = (label >= self.num_classes) & (label != augmentations.IGNORED)
        checks = [
            tf.debugging.Assert(
                ~tf.reduce_any(strange),
                [
                    f"Labels of {self._info.name} must be in [0, {self.num_classes}) or "
                    f"{augmentations.IGNORED}, got",
                    tf.boolean_mask(label, strange)[:1],
                    f"in split {split}, record (from 0)",
                    number,
                ],
            ),
            tf.debugging.assert_equal(
                tf.shape(image)[:2],
                tf.shape(label),
                f"Image and label of a record of {self._info.name}'s {split} must have one size",
            ),
        ]
        with tf.control_dependencies(checks):
            return {"image": tf.identity(image), "label": tf.identity(label), "id": name}


def _shuffled(num_examples: int, seed: int, start: int) -> tf.data.Dataset:
    """Numbers of records, in another order each epoch, for ever, from position `start` on."""
    first_epoch, skipped = divmod(start, num_examples)

    def epoch_stream(epoch):
        key = tf.stack([tf.constant(seed, tf.int64), epoch])
        numbers = tf.random.experimental.stateless_shuffle(
            tf.range(num_examples, dtype=tf.int64), seed=key, alg=_ALGORITHM
        )
        skip = tf.where(epoch == first_epoch, tf.constant(skipped, tf.int64), 0)
        return tf.data.Dataset.from_tensor_slices(numbers[skip:])

    return tf.data.Dataset.counter(first_epoch).flat_map(epoch_stream)


def _decode(encoded: tf.Tensor) -> tf.Tensor:
    """uint8 [h, w, 3]."""
    return tf.cond(
        tf.io.is_jpeg(encoded),
        # As Pillow and OpenCV decode; TensorFlow's default is faster, and up to 3 levels off.
        lambda: tf.io.decode_jpeg(encoded, channels=3, dct_method="INTEGER_ACCURATE"),
        lambda: tf.io.decode_image(encoded, channels=3, expand_animations=False),
    )


def _parse(image_key, label_key, finder, number) -> tuple[bytes, bytes, bytes]:
    """Image and label as they are stored, and the example's name."""
    (place,) = finder.find(np.array([number]))
    try:
        features = tf.train.Example.FromString(place.read()).features.feature
        (image,) = features[image_key].bytes_list.value
        (label,) = features[label_key].bytes_list.value
    except (message.DecodeError, ValueError):
        raise ValueError(
            f"{finder.name(number)} is damaged. Copy the file again, or prepare the data set again."
        ) from None
    if label[24:26] != _GREY_PNG:
        # TensorFlow would decode a palette's colours, and stretch 1, 2 and 4 bits.
        raise ValueError(
            f"The label in {finder.name(number)} must be a grey PNG of 8 bits: prepare the data "
            "set "
            "with data_prep/segmentation.py."
        )
    names = features["id"].bytes_list.value if "id" in features else []
    return image, label, names[0] if names else b""


def _find_features(info: tfds.core.DatasetInfo) -> tuple[str, str]:
    """Keys of the image and of the label feature."""

    def keys(channels):
        return [
            key
            for key, feature in info.features.items()
            if isinstance(feature, tfds.features.Image)
            and feature.np_dtype == np.uint8
            and feature.shape[-1] == channels
        ]

    def pick(what, names, candidates):
        named = [name for name in names if name in candidates]
        chosen = named[:1] or candidates
        if len(chosen) != 1:
            raise ValueError(
                f"{info.name} must have {what} named {' or '.join(names)}, or just one under "
                f"another name, got the features {dict(info.features.items())}."
            )
        return chosen[0]

    image = pick("an 8-bit image of three channels", ("image",), keys(3))
    return image, pick("an 8-bit label image of one channel", _LABEL_NAMES, keys(1))
