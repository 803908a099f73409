"""Batches of images and labels from a prepared TFDS data set, for training and for reference.

What is shuffled are the numbers of the records; a record is read when it is due, and of a JPEG only
the square that is used gets decoded. The published pipeline shuffles decoded images, which takes
gigabytes of memory. Files that can't be read at any place (remote ones) are read from beginning to
end instead, and records shuffled as stored, encoded.

The order of the training stream is a function of (seed, epoch, position in the epoch) alone: not
of the machine's cores, the number of hosts, how records are read, whether the split is held in
memory, or TensorFlow's global seed. A stream can therefore be entered at any batch, which is how a
resumed run goes on with the data it would have seen.
"""

import contextlib
import functools
import hashlib
from collections.abc import Callable

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from tensorflow_datasets.core import file_adapters

from hamgan import arguments
from hamgan.data import content, photos, pixels, prepared
from hamgan.data.loading import Loader
from hamgan.data.order import check_at_least, check_stream, numbers_of, range_of, shuffled
from hamgan.data.places import RecordFinder
from hamgan.data.stored import StoredExamples


@arguments.take(
    name=arguments.text(),
    image_size=arguments.whole(1),
    num_classes=arguments.whole(1),
    shuffle_buffer=arguments.whole(1),
    data_dir=arguments.optional(arguments.text()),
    cache_bytes=arguments.whole(0),
    random_access=arguments.optional(arguments.truth()),
    max_pixels=arguments.whole(1),
)
class ImageDataset:
    """A prepared TFDS data set with an image and a label feature, as batches of images in [-1, 1].

    The image feature is the one named `image`, or the only one; the label is the integer feature
    named `label`, or the only class label. The code that built the data set isn't needed.

    An image feature is one of encoded files (`tfds.features.Image`), or of packed squares: raw
    bytes of uint8 [side, side, 3], `tfds.features.Tensor` with the encoding BYTES. Packed squares
    of image_size aren't resampled, larger ones as by `preprocess`.

    Args:
      name: TFDS name (`digits`, `imagenet2012`, `name/config:version`), or the folder that holds a
        prepared data set's dataset_info.json.
      image_size: S; images are [S, S, 3].
      num_classes: must be the data set's own number.
      train_split: TFDS split for training, `train` or a part like `train[:90%]`.
      reference_split: TFDS split for reference statistics.
      shuffle_buffer: how many encoded records are shuffled at a time; the files are shuffled too.
      data_dir: folder of TFDS data sets, or one data set's own folder, local or gs://; None: TFDS's
        default.
      cache_bytes: a split whose preprocessed images take no more than this is decoded once, on
        first use, and held in memory. It changes speed, not the stream.
      random_access: read each record from its place in the file when it is due; a checksum isn't
        looked at. Otherwise files are read from beginning to end, which suits hard disks and
        network folders, by every host, and the records in the shuffle buffer are held in memory.
        None: for local TFRecord files. It changes speed and memory, not the stream.
      flip: mirror images of the training stream left to right, each with probability 1/2.
      inexact_decode: decode a JPEG at 1/2, 1/4 or 1/8 of its size where its square is then no
        smaller than image_size. Faster, and not the published pixels.
      max_pixels: an encoded image with more (width times height) is refused by name, before it is
        decoded.

    Attributes:
      crop: what `preprocess` does with an image, in words: part of the fingerprint of reference
        statistics.
      version: the data set's version.
      class_names: names of the classes, in the order of their labels; numbers where the data set
        names none.

    Raises:
      ValueError: when there is no such data set, split, image or label, when `num_classes` isn't
        the data set's, or when packed squares are smaller than `image_size`.
    """

    crop = "central square, bilinear with aligned corners"

    def __init__(
        self,
        *,
        name: str,
        image_size: int = 128,
        num_classes: int = 1000,
        train_split: str = "train",
        reference_split: str = "validation",
        shuffle_buffer: int = 10_000,
        data_dir: str | None = None,
        cache_bytes: int = 256 * 2**20,
        random_access: bool | None = None,
        flip: bool = False,
        inexact_decode: bool = False,
        max_pixels: int = photos.MAX_PIXELS,
    ):
        check_at_least("image_size", image_size, 1)
        check_at_least("num_classes", num_classes, 1)
        check_at_least("shuffle_buffer", shuffle_buffer, 1)
        check_at_least("max_pixels", max_pixels, 1)
        self.name = name
        self.image_size = image_size
        self.num_classes = num_classes
        self.train_split = train_split
        self.reference_split = reference_split
        self.shuffle_buffer = shuffle_buffer
        self.cache_bytes = cache_bytes
        self.random_access = random_access
        if inexact_decode:
            self.crop += ", from an inexact decode"
        self.flip = flip
        self.inexact_decode = inexact_decode

        self._info = prepared.open_builder(name, data_dir).info
        image_key, label_key = prepared.find_features(self._info)
        self._features = tfds.features.FeaturesDict(
            {key: self._info.features[key] for key in (image_key, label_key)}
        )
        self._image_key, self._label_key = image_key, label_key
        self.version = str(self._info.version)
        self.class_names = self._class_names()
        self._packed_side = self._find_packed_side()
        self._files = {
            split: prepared.list_files(self._info, split)
            for split in (train_split, reference_split)
        }
        self.reads_anywhere(train_split)
        self._memory: dict[str, dict[str, tf.Tensor]] = {}
        self._contents: dict[str, str] = {}
        self._finders: dict[str, RecordFinder] = {}
        stored = StoredExamples(
            image_key=image_key,
            label_key=label_key,
            side=self._packed_side,
            num_classes=num_classes,
            max_pixels=max_pixels,
        )
        self._loader = Loader(
            stored, side=self._packed_side, image_size=image_size, inexact_decode=inexact_decode
        )

    def check_files(self, *splits: str) -> None:
        """Asks whether the files of splits are there; none: of training and of reference.

        Raises:
          ValueError: one isn't; it is named.
        """
        for split in splits or (self.train_split, self.reference_split):
            prepared.check_there(self._info, self._files_of(split)["path"].tolist())

    def num_examples(self, split: str) -> int:
        """How many examples a split holds.

        Raises:
          ValueError: when the data set has no such split.
        """
        return int(self._files_of(split)["take"].sum())

    def content(self, split: str) -> str:
        """A digest of the files that a split is in (see `hamgan.data.content`).

        Raises:
          ValueError: when the dataset has no such split.
        """
        if split not in self._contents:
            self._contents[split] = content.digest(self._files_of(split)["path"])
        return self._contents[split]

    def last_change(self, split: str) -> float:
        """When a file of a split was changed last, Unix seconds."""
        paths = set(self._files_of(split)["path"].tolist())
        return max(tf.io.gfile.stat(path).mtime_nsec for path in paths) / 1e9

    def identity(self) -> dict[str, object]:
        """What tells these images from others of the same name."""
        splits = dict.fromkeys((self.train_split, self.reference_split))
        return {
            "name": self._info.name,
            "version": self.version,
            "classes": hashlib.sha256("\n".join(self.class_names).encode()).hexdigest()[:16],
            "splits": {
                split: {"images": self.num_examples(split), "content": self.content(split)}
                for split in splits
            },
        }

    @property
    def info(self) -> tfds.core.DatasetInfo:
        """TFDS's description of the data set: splits, their files and sizes."""
        return self._info

    def records(self, path: str) -> tf.data.Dataset:
        """The serialised examples of one of the data set's files, string [] each."""
        return file_adapters.ADAPTER_FOR_FORMAT[self._info.file_format].make_tf_data(path)

    @property
    def packed_side(self) -> int | None:
        """The side of packed squares; None: images are encoded files."""
        return self._packed_side

    @property
    def stored_shape(self) -> tuple[int | None, int | None]:
        """Height and width that all stored images have; None where they differ."""
        height, width, _ = self._features[self._image_key].shape
        return height, width

    def sides(self, path: str, *, limit: int) -> list[int]:
        """The shorter sides of the first encoded images in one of the data set's files, pixels;
        those that can't be read are passed over.
        """
        feature = {self._image_key: tf.io.FixedLenFeature([], tf.string)}
        found = []
        for record in self.records(path).take(limit):
            encoded = tf.io.parse_single_example(record, feature)[self._image_key].numpy()
            with contextlib.suppress(ValueError, OSError, SyntaxError):
                found.append(photos.side_of(encoded))
        return found

    def parse_labels(self, records: tf.Tensor) -> tf.Tensor:
        """The labels of serialised examples [B] as they are stored, int64 [B], be they those of
        classes or not.
        """
        feature = tf.io.FixedLenFeature([], tf.int64)
        return tf.io.parse_example(records, {self._label_key: feature})[self._label_key]

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

        Epochs follow one another without a seam: a batch may hold the end of one and the beginning
        of the next, so no example is dropped. The stream of shard i holds rows
        [i * batch_size, (i + 1) * batch_size) of every global batch of num_shards * batch_size:
        the global batches don't depend on how many hosts share them. Every shard decodes its own
        records only, and with random access reads no others.

        Args:
          batch_size: images per batch of this shard.
          seed: fixes the order.
          start_batch: enter the stream after this many batches. Of the epoch that is entered, the
            numbers of the earlier records are drawn again, a million in about 1.5 seconds of
            processor time; only without random access some of these records are read, those of
            files that also hold later ones (566 of ImageNet's 1,024 files in the middle of an
            epoch).
          shard_index: which shard this is, in [0, num_shards).
          num_shards: how many shards share the stream.

        Returns:
          A data set of {'image': float32 [batch_size, S, S, 3] in [-1, 1],
          'label': int32 [batch_size]}. A label outside [0, num_classes) raises
          `tf.errors.InvalidArgumentError` when it is read.

        Raises:
          ValueError: when an argument is out of range.
        """
        check_stream(
            batch_size=batch_size,
            seed=seed,
            start_batch=start_batch,
            shard_index=shard_index,
            num_shards=num_shards,
        )
        split = self.train_split
        start = start_batch * batch_size * num_shards
        in_memory = self._fits_memory(split)
        numbers_do = in_memory or self.reads_anywhere(split)
        stream = self._shuffled(
            split, seed, start, read=numbers_of if numbers_do else self._read_file
        )
        # Batch k * num_shards + i is this shard's part of global batch k.
        batches = stream.batch(batch_size, drop_remainder=True).shard(num_shards, shard_index)
        if in_memory:
            pick = functools.partial(_pick, self._in_memory(split))
            return with_options(batches.map(pick, num_parallel_calls=tf.data.AUTOTUNE))
        return with_options(
            self._loader.load(self._finder(split), batches, batch_size, drop_remainder=True)
        )

    def reference_batches(self, *, batch_size: int, split: str | None = None) -> tf.data.Dataset:
        """Every example of a split once, in stored order, the last batch as long as what is left.

        Args:
          batch_size: images per batch.
          split: None: `reference_split`.

        Returns:
          A finite data set of {'image': float32 [<= batch_size, S, S, 3] in [-1, 1],
          'label': int32 [<= batch_size]}. A label outside [0, num_classes) raises
          `tf.errors.InvalidArgumentError` when it is read.

        Raises:
          ValueError: when the data set has no such split, or batch_size is below 1.
        """
        check_at_least("batch_size", batch_size, 1)
        split = self.reference_split if split is None else split
        if self._fits_memory(split):
            return with_options(
                tf.data.Dataset.from_tensor_slices(self._in_memory(split)).batch(batch_size)
            )
        return with_options(self._in_stored_order(split, batch_size))

    def label_batches(self, *, batch_size: int, split: str) -> tf.data.Dataset:
        """Every label of a split once, in stored order, integer [<= batch_size]; no image is
        decoded.

        Raises:
          ValueError: when the data set has no such split, or batch_size is below 1.
        """
        check_at_least("batch_size", batch_size, 1)

        batches = self._stored_files(split).flat_map(self._read_file).batch(batch_size)
        return with_options(batches.map(lambda batch: self.parse_labels(batch["record"])))

    def _files_of(self, split: str) -> dict[str, np.ndarray]:
        if split not in self._files:
            self._files[split] = prepared.list_files(self._info, split)
        return self._files[split]

    def _class_names(self) -> list[str]:
        label = self._features[self._label_key]
        count = getattr(label, "num_classes", None)
        if count is None:
            return [str(number) for number in range(self.num_classes)]
        if count != self.num_classes:
            raise ValueError(
                f"num_classes ({self.num_classes}) must be the number of classes that "
                f"{self._info.name} has, which is {count}: "
                + (prepared.wrong_folder_level(label.names) or f"set num_classes={count}.")
            )
        return list(label.names)

    def _find_packed_side(self) -> int | None:
        side = prepared.packed_side(self._features[self._image_key])
        if side is not None and self.image_size > side:
            raise ValueError(
                f"image_size ({self.image_size}) must be at most {side}, the side of the packed "
                "squares of "
                f"{self._info.name}: they aren't enlarged. Set image_size={side}, or pack the "
                "images again."
            )
        return side

    def reads_anywhere(self, split: str) -> bool:
        """Whether the shuffle buffer holds numbers of records, each of which is read from its place
        when it is due.

        Raises:
          ValueError: `random_access` is True, but the files can't be read so.
        """
        paths = self._files_of(split)["path"]
        is_tfrecord = self._info.file_format == file_adapters.FileFormat.TFRECORD
        possible = is_tfrecord and not any("://" in path for path in paths)
        if self.random_access and not possible:
            raise ValueError(
                "random_access (True) must be None or False for files that aren't local "
                f"TFRecords, as {paths[0]}."
            )
        return possible if self.random_access is None else self.random_access

    def _finder(self, split: str) -> RecordFinder:
        if split not in self._finders:
            self._finders[split] = RecordFinder(self._files_of(split))
        return self._finders[split]

    def _read_file(self, file: dict[str, tf.Tensor]) -> tf.data.Dataset:
        """{'number', 'record'} of a file's records; the record is empty where the file isn't
        needed.
        """
        records = file_adapters.ADAPTER_FOR_FORMAT[self._info.file_format].make_tf_data(
            file["path"]
        )
        read = tf.where(file["needed"], file["take"], 0)
        records = records.skip(file["skip"]).take(read)
        # A file that lost records would shift every later position of the stream: say so.
        records = records.apply(tf.data.experimental.assert_cardinality(read))
        records = records.concatenate(tf.data.Dataset.from_tensors("").repeat(file["take"] - read))
        return tf.data.Dataset.zip({"number": range_of(file), "record": records})

    def _shuffled(
        self,
        split: str,
        seed: int,
        start: int,
        *,
        read: Callable[[dict[str, tf.Tensor]], tf.data.Dataset],
    ) -> tf.data.Dataset:
        return shuffled(
            self._files_of(split),
            seed=seed,
            start=start,
            read=read,
            shuffle_buffer=self.shuffle_buffer,
            flip=self.flip,
        )

    def _stored_files(self, split: str) -> tf.data.Dataset:
        """A split's files in stored order, all of them needed, as `_read_file` takes them."""
        files = self._files_of(split)
        return tf.data.Dataset.from_tensor_slices(
            {**files, "needed": np.full(len(files["path"]), True)}
        )

    def _in_stored_order(self, split: str, batch_size: int) -> tf.data.Dataset:
        elements = self._stored_files(split).flat_map(
            numbers_of if self.reads_anywhere(split) else self._read_file
        )
        return self._loader.load(
            self._finder(split), elements.batch(batch_size), batch_size, drop_remainder=False
        )

    def _fits_memory(self, split: str) -> bool:
        bytes_per_image = self.image_size**2 * 3 * 4
        return self.num_examples(split) * bytes_per_image <= self.cache_bytes

    def _in_memory(self, split: str) -> dict[str, tf.Tensor]:
        """All of a split in stored order, {'image': [N, S, S, 3], 'label': [N]}; decoded once."""
        if split not in self._memory:
            with tf.device("CPU:0"):  # where tf.data reads it; a GPU's memory is for the networks
                examples = self._in_stored_order(split, self.num_examples(split))
                self._memory[split] = with_options(examples).get_single_element()
        return self._memory[split]


def _pick(memory: dict[str, tf.Tensor], elements: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    examples = {key: tf.gather(value, elements["number"]) for key, value in memory.items()}
    if "flip" in elements:
        examples["image"] = pixels.flipped(examples["image"], elements["flip"])
    return examples


def with_options(dataset: tf.data.Dataset) -> tf.data.Dataset:
    options = tf.data.Options()
    options.deterministic = True
    # tf.distribute would otherwise shard again what already is.
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    return dataset.prefetch(tf.data.AUTOTUNE).with_options(options)
