"""Batches of images and labels from a prepared TFDS dataset, for training and for reference.

What is shuffled are the numbers of the records; a record is read when it is due, and of a JPEG only
the square that is used gets decoded. The published pipeline shuffles decoded images, which takes
gigabytes of memory. Files that can't be read at any place (remote ones) are read from beginning to
end instead, and records shuffled as stored, encoded.

The order of the training stream is a function of (seed, epoch, position in the epoch) alone: not
of the machine's cores, the number of hosts, how records are read, whether the split is held in
memory, or TensorFlow's global seed. A stream can therefore be entered at any batch, which is how a
resumed run goes on with the data it would have seen.
"""

import atexit
import functools
import os
import threading
import time
import typing
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from google.protobuf import message
from tensorflow_datasets.core import file_adapters

# Named, because the default may differ between devices and the order must not.
_ALGORITHM = "philox"

# Files read at once, and records taken from each in turn: TFDS's own numbers. They are part of the
# order: other numbers, another stream.
_INTERLEAVE = 16

# What an epoch's flips are drawn with, beside the two keys that the epoch's own is split into.
_FLIPS = 2

# TFRecord: the length as uint64 and its checksum, the record, its checksum.
_BEFORE_RECORD, _AROUND_RECORD = 12, 16

# Seconds without a read, after which none is waited for.
_QUIET = 0.05

# The last two bytes of a whole JPEG and of a whole PNG.
_ENDINGS = (b"\xff\xd9", b"`\x82")


def preprocess(image: tf.Tensor, image_size: int) -> tf.Tensor:
    """An image as the networks see it: central square, bilinear to S x S, scaled to [-1, 1].

    Corners are aligned: the first and the last sample of each axis are the square's border pixels;
    there is no antialiasing (HamGAN, https://arxiv.org/abs/2109.04553, published code).

    Args:
      image: uint8 [h, w, c], c = 1 (grey, repeated over the channels) or 3; h, w and c may be
        unknown while tracing.
      image_size: S.

    Returns:
      float32 [S, S, 3].
    """
    size = tf.shape(image)
    top, left, side = _central_square(size[0], size[1])
    return _resize(image[tf.newaxis, top : top + side, left : left + side], image_size)[0]


def _central_square(height: tf.Tensor, width: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    side = tf.minimum(height, width)
    # 0.5 * (side - box), rounded up.
    return (height - side + 1) // 2, (width - side + 1) // 2, side


def _resize(squares: tf.Tensor, image_size: int) -> tf.Tensor:
    """uint8 [B, side, side, c] -> float32 [B, S, S, 3] in [-1, 1]."""
    # Samples where tf.image.crop_and_resize does, but clamps at the border: that one takes a
    # coordinate rounded past the last pixel for outside (side 498, size 32: a black row).
    pixels = tf.raw_ops.ResizeBilinear(
        images=squares, size=[image_size, image_size], align_corners=True
    )
    return tf.broadcast_to(
        pixels * (2 / 255) - 1, [tf.shape(squares)[0], image_size, image_size, 3]
    )


def _decode_jpeg_square(encoded: tf.Tensor, ratio: int = 1) -> tf.Tensor:
    """The central square of a JPEG, uint8 [box, box, 3]: the pixels that a full decoding at 1 /
    ratio gives.
    """
    shape = tf.io.extract_jpeg_shape(encoded)
    height, width = (shape[0] + ratio - 1) // ratio, (shape[1] + ratio - 1) // ratio
    top, left, side = _central_square(height, width)
    # One column more on each side: smooth chroma upsampling looks at neighbours, and at the border
    # of a cropped decoding it has none (outermost columns up to 90 grey levels off).
    first = tf.maximum(left - 1, 0)
    last = tf.minimum(left + side + 1, width)
    window = tf.stack([top, first, side, last - first])
    pixels = tf.io.decode_and_crop_jpeg(encoded, window, channels=3, ratio=ratio)
    return pixels[:, left - first : left - first + side]


def _decode_jpeg_inexactly(encoded: tf.Tensor, image_size: int) -> tf.Tensor:
    """As `_decode_jpeg_square`, at the smallest of the sizes 1, 1/2, 1/4, 1/8 that isn't below
    image_size.
    """
    side = tf.reduce_min(tf.io.extract_jpeg_shape(encoded)[:2])
    power = tf.reduce_sum([tf.cast(side >= ratio * image_size, tf.int32) for ratio in (2, 4, 8)])
    return tf.switch_case(
        power, [functools.partial(_decode_jpeg_square, encoded, 2**i) for i in range(4)]
    )


def _decode(encoded: tf.Tensor, image_size: int, *, inexact: bool) -> tf.Tensor:
    # By content and not by the feature's declared format: TFDS stores the files it is given as they
    # are, whatever was declared.
    decode_jpeg = (
        functools.partial(_decode_jpeg_inexactly, image_size=image_size)
        if inexact
        else _decode_jpeg_square
    )
    return tf.cond(
        tf.io.is_jpeg(encoded),
        lambda: _resize(decode_jpeg(encoded)[tf.newaxis], image_size)[0],
        lambda: preprocess(
            tf.io.decode_image(encoded, channels=3, expand_animations=False), image_size
        ),
    )


def _flipped(images: tf.Tensor, flip: tf.Tensor) -> tf.Tensor:
    """Images [..., h, w, c], mirrored left to right where `flip` [...] is true."""
    return tf.where(
        flip[..., tf.newaxis, tf.newaxis, tf.newaxis], tf.reverse(images, axis=[-2]), images
    )


class _Reads:
    """Reads under way, in TensorFlow's threads; none is left when Python exits.

    Python ends a thread of others' that asks for its lock once it exits, and TensorFlow, which
    drops the iterators that are left, would wait for that thread for ever.
    """

    def __init__(self):
        self._threads: set[int] = set()
        self._last = 0.0
        self._exits = False
        atexit.register(self._exit)

    def __enter__(self):
        if self._exits:
            raise StopIteration  # to TensorFlow, the end of the data, which it has no message for
        self._last = time.monotonic()
        self._threads.add(threading.get_ident())

    def __exit__(self, *_):
        self._threads.discard(threading.get_ident())
        self._last = time.monotonic()

    def _exit(self):
        self._exits = True
        if not self._last:
            return
        # Pipelines run on until their buffers are full; of errors, that is soon.
        time.sleep(_QUIET)
        while self._threads or time.monotonic() - self._last < _QUIET:
            time.sleep(_QUIET / 10)


_READS = _Reads()


class _Place(typing.NamedTuple):
    """Where a record is: `size` bytes of the file `path`, from the byte `start` on."""

    path: str
    start: int
    size: int

    def read(self) -> bytes:
        return self._access(os.pread, self.size)

    def read_into(self, buffers: list[bytearray | np.ndarray]) -> int:
        """Fills buffers, one after the other; returns how many bytes there were."""
        return self._access(os.preadv, buffers)

    def _access(self, read, what):
        # Opened anew each time: a dataset has more files than a process may hold open.
        handle = os.open(self.path, os.O_RDONLY)
        try:
            return read(handle, what, self.start)
        finally:
            os.close(handle)


class _RecordFinder:
    """Finds single records of local TFRecord files; reads nothing but the lengths of records.

    Args:
      files: columns as `_list_files` gives them.
    """

    def __init__(self, files: dict[str, np.ndarray]):
        self._files = files
        self._starts: dict[int, np.ndarray] = {}

    def find(self, numbers: np.ndarray) -> Iterator[_Place]:
        """Where records are, by their numbers in the split."""
        return (self._place(file, index) for file, index in self._find(numbers))

    def name(self, number: int) -> str:
        """Where a record is, for people."""
        ((file, index),) = self._find(number)
        return f"record {index} (from 0) of {self._files['path'][file]}"

    def _find(self, numbers):
        numbers = np.ravel(numbers)
        files = _file_of(self._files, numbers)
        indices = numbers - self._files["first"][files] + self._files["skip"][files]
        return zip(files.tolist(), indices.tolist(), strict=True)

    def _place(self, file, index):
        start, end = self._starts_of(file)[index : index + 2].tolist()
        return _Place(
            self._files["path"][file], start + _BEFORE_RECORD, end - start - _AROUND_RECORD
        )

    def _starts_of(self, file):
        """Where the records of a file start, and where the last one ends; found when first asked
        for.
        """
        if file not in self._starts:
            path = self._files["path"][file]
            count = int(self._files["skip"][file] + self._files["take"][file])
            starts = np.zeros(count + 1, np.int64)
            handle = os.open(path, os.O_RDONLY)
            try:
                size = os.fstat(handle).st_size
                for index in range(count):
                    start = int(starts[index])
                    end = (
                        start
                        + int.from_bytes(os.pread(handle, 8, start), "little")
                        + _AROUND_RECORD
                    )
                    if end > size:
                        raise ValueError(
                            f"{path} must hold {count} records, but ends within record {index} "
                            "(from 0): it was cut "
                            "off. Copy it again, or prepare the dataset again."
                        )
                    starts[index + 1] = end
            finally:
                os.close(handle)
            self._starts[file] = starts
        return self._starts[file]


class _SquareReader:
    """Reads packed squares from their records straight to where they are wanted.

    Records that are the same before and behind their pixels parse the same. Those of one dataset
    come in few such kinds, two a class at most, so one of each kind is parsed, and of the others
    nothing but pixels is copied.

    Args:
      max_kinds: records of more kinds aren't read so: they hold more than pixels and labels.
    """

    def __init__(self, max_kinds: int):
        self._max_kinds = max_kinds
        self._labels: dict[tuple[bytes, bytes], int] = {}
        self._before: dict[
            int, int
        ] = {}  # by the size of a record, how many bytes of it come before the pixels

    def read(self, place: _Place, square: np.ndarray) -> int | None:
        """Reads a square, and gives its label; None: it is of a new kind, and what `square` now
        holds isn't right.
        """
        num_before = self._before.get(place.size)
        if num_before is None:
            return None
        before, behind = bytearray(num_before), bytearray(place.size - num_before - square.nbytes)
        if place.read_into([before, square, behind]) < place.size:
            return None
        return self._labels.get((bytes(before), bytes(behind)))

    def learn(self, record: bytes, pixels: bytes, label: int) -> None:
        """Takes note of a record's kind."""
        if len(self._labels) >= self._max_kinds:
            self._before.clear()
            return
        num_before = record.find(pixels)
        # Pixels that all equal the byte before them are found too early; a later record will show
        # the place.
        if record.find(pixels, num_before + 1) < 0:
            self._labels[record[:num_before], record[num_before + len(pixels) :]] = label
            self._before[len(record)] = num_before


def _file_of(files: dict[str, np.ndarray], numbers: np.ndarray) -> np.ndarray:
    return np.searchsorted(files["first"], numbers, side="right") - 1


class ImageDataset:
    """A prepared TFDS dataset with an image and a label feature, as batches of images in [-1, 1].

    The image feature is the one named `image`, or the only one; the label is the integer feature
    named `label`, or the only class label. The code that built the dataset isn't needed.

    An image feature is one of encoded files (`tfds.features.Image`), or of packed squares: raw
    bytes of uint8 [side, side, 3], `tfds.features.Tensor` with the encoding BYTES. Packed squares
    of image_size aren't resampled, larger ones as by `preprocess`.

    Args:
      name: TFDS name (`digits`, `imagenet2012`, `name/config:version`), or the folder that holds a
        prepared dataset's dataset_info.json.
      image_size: S; images are [S, S, 3].
      num_classes: must be the dataset's own number.
      train_split: TFDS split for training, `train` or a part like `train[:90%]`.
      reference_split: TFDS split for reference statistics.
      shuffle_buffer: how many encoded records are shuffled at a time; the files are shuffled too.
      data_dir: folder of TFDS datasets, or one dataset's own folder, local or gs://; None: TFDS's
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

    Attributes:
      crop: what `preprocess` does with an image, in words: part of the fingerprint of reference
        statistics.
      version: the dataset's version.
      class_names: names of the classes, in the order of their labels; numbers where the dataset
        names none.

    Raises:
      ValueError: when there is no such dataset, split, image or label, when `num_classes` isn't
        the dataset's, or when packed squares are smaller than `image_size`.
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
    ):
        _check_at_least("image_size", image_size, 1)
        _check_at_least("num_classes", num_classes, 1)
        _check_at_least("shuffle_buffer", shuffle_buffer, 1)
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

        self._info = _open(name, data_dir).info
        image_key, label_key = _find_features(self._info)
        self._features = tfds.features.FeaturesDict(
            {key: self._info.features[key] for key in (image_key, label_key)}
        )
        self._image_key, self._label_key = image_key, label_key
        self.version = str(self._info.version)
        self.class_names = self._class_names()
        self._packed_side = self._find_packed_side()
        self._files = {
            split: _list_files(self._info, split) for split in (train_split, reference_split)
        }
        self.reads_anywhere(train_split)
        self._memory: dict[str, dict[str, tf.Tensor]] = {}
        self._finders: dict[str, _RecordFinder] = {}
        self._squares = _SquareReader(max_kinds=4 * num_classes)

    def num_examples(self, split: str) -> int:
        """How many examples a split holds.

        Raises:
          ValueError: when the dataset has no such split.
        """
        return int(self._files_of(split)["take"].sum())

    @property
    def info(self) -> tfds.core.DatasetInfo:
        """TFDS's description of the dataset: splits, their files and sizes."""
        return self._info

    def records(self, path: str) -> tf.data.Dataset:
        """The serialised examples of one of the dataset's files, string [] each."""
        return file_adapters.ADAPTER_FOR_FORMAT[self._info.file_format].make_tf_data(path)

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
          A dataset of {'image': float32 [batch_size, S, S, 3] in [-1, 1],
          'label': int32 [batch_size]}. A label outside [0, num_classes) raises
          `tf.errors.InvalidArgumentError` when it is read.

        Raises:
          ValueError: when an argument is out of range.
        """
        _check_at_least("batch_size", batch_size, 1)
        _check_at_least("start_batch", start_batch, 0)
        _check_at_least("num_shards", num_shards, 1)
        if not 0 <= shard_index < num_shards:
            raise ValueError(
                f"shard_index ({shard_index}) must be in [0, num_shards) = [0, {num_shards})."
            )
        if not 0 <= seed < 2**63:
            raise ValueError(f"seed ({seed}) must be in [0, 2**63).")
        split = self.train_split
        start = start_batch * batch_size * num_shards
        in_memory = self._fits_memory(split)
        numbers_do = in_memory or self.reads_anywhere(split)
        stream = self._shuffled(
            split, seed, start, read=_numbers if numbers_do else self._read_file
        )
        # Batch k * num_shards + i is this shard's part of global batch k.
        batches = stream.batch(batch_size, drop_remainder=True).shard(num_shards, shard_index)
        if in_memory:
            pick = functools.partial(_pick, self._in_memory(split))
            return _with_options(batches.map(pick, num_parallel_calls=tf.data.AUTOTUNE))
        return _with_options(self._load(split, batches, batch_size, drop_remainder=True))

    def reference_batches(self, *, batch_size: int, split: str | None = None) -> tf.data.Dataset:
        """Every example of a split once, in stored order, the last batch as long as what is left.

        Args:
          batch_size: images per batch.
          split: None: `reference_split`.

        Returns:
          A finite dataset of {'image': float32 [<= batch_size, S, S, 3] in [-1, 1],
          'label': int32 [<= batch_size]}. A label outside [0, num_classes) raises
          `tf.errors.InvalidArgumentError` when it is read.

        Raises:
          ValueError: when the dataset has no such split, or batch_size is below 1.
        """
        _check_at_least("batch_size", batch_size, 1)
        split = self.reference_split if split is None else split
        if self._fits_memory(split):
            return _with_options(
                tf.data.Dataset.from_tensor_slices(self._in_memory(split)).batch(batch_size)
            )
        return _with_options(self._in_stored_order(split, batch_size))

    def label_batches(self, *, batch_size: int, split: str) -> tf.data.Dataset:
        """Every label of a split once, in stored order, integer [<= batch_size]; no image is
        decoded.

        Raises:
          ValueError: when the dataset has no such split, or batch_size is below 1.
        """
        _check_at_least("batch_size", batch_size, 1)

        batches = self._stored_files(split).flat_map(self._read_file).batch(batch_size)
        return _with_options(batches.map(lambda batch: self.parse_labels(batch["record"])))

    def _files_of(self, split: str) -> dict[str, np.ndarray]:
        if split not in self._files:
            self._files[split] = _list_files(self._info, split)
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
                + (wrong_folder_level(label.names) or f"set num_classes={count}.")
            )
        return list(label.names)

    def _find_packed_side(self) -> int | None:
        side = _packed_side(self._features[self._image_key])
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

    def _finder(self, split: str) -> _RecordFinder:
        if split not in self._finders:
            self._finders[split] = _RecordFinder(self._files_of(split))
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
        return tf.data.Dataset.zip({"number": _range(file), "record": records})

    def _shuffled(
        self,
        split: str,
        seed: int,
        start: int,
        *,
        read: Callable[[dict[str, tf.Tensor]], tf.data.Dataset],
    ) -> tf.data.Dataset:
        """What `read` gives for every file, shuffled anew each epoch, for ever, from `start` on.

        The permutation doesn't depend on what is read: records and their numbers come in the same
        order.
        """
        files = self._files_of(split)
        num_files = len(files["path"])
        num_examples = self.num_examples(split)
        first_epoch, skipped = divmod(start, num_examples)
        needed = np.full(num_files, True)
        if skipped and read is not _numbers:
            rest = self._shuffled(split, seed, start, read=_numbers).take(num_examples - skipped)
            numbers = np.concatenate(
                [batch["number"] for batch in rest.batch(2**16).as_numpy_iterator()]
            )
            needed = np.isin(np.arange(num_files), _file_of(files, numbers))

        # Threads cost more than numbers do.
        parallel = (
            {}
            if read is _numbers
            else dict(num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        )

        def epoch_stream(epoch):
            # The buffer's seed would otherwise be mixed with the global one of tf.random.set_seed.
            # While tracing, this sets the seed of the traced function and of nothing else. Not 0:
            # after a 0, TensorFlow compares the buffer's seed in Python.
            tf.compat.v1.set_random_seed(1)
            is_first = epoch == first_epoch
            key = tf.stack([tf.constant(seed, tf.int64), epoch])
            file_key, buffer_key = tf.unstack(
                tf.random.experimental.stateless_split(key, 2, alg=_ALGORITHM)
            )
            file_order = tf.random.experimental.stateless_shuffle(
                tf.range(num_files), seed=file_key, alg=_ALGORITHM
            )
            columns = {**files, "needed": needed | ~is_first}
            shuffled_files = {
                name: tf.gather(column, file_order) for name, column in columns.items()
            }
            skip = tf.where(is_first, tf.constant(skipped, tf.int64), 0)
            elements = (
                tf.data.Dataset.from_tensor_slices(shuffled_files)
                .interleave(
                    read,
                    cycle_length=min(_INTERLEAVE, num_files),
                    block_length=_INTERLEAVE,
                    **parallel,
                )
                .shuffle(
                    min(self.shuffle_buffer, num_examples),
                    seed=buffer_key[0],
                    reshuffle_each_iteration=False,
                )
                .skip(skip)
            )
            if not self.flip:
                return elements
            flip_key = tf.random.experimental.stateless_fold_in(key, _FLIPS, alg=_ALGORITHM)
            flips = (
                tf.random.stateless_uniform(
                    [num_examples], flip_key, 0, 2, tf.int32, alg=_ALGORITHM
                )
                == 1
            )
            flips = tf.data.Dataset.from_tensor_slices(flips[skip:])
            return tf.data.Dataset.zip(elements, flips).map(
                lambda element, flip: {**element, "flip": flip}
            )

        return tf.data.Dataset.counter(first_epoch).flat_map(epoch_stream)

    def _stored_files(self, split: str) -> tf.data.Dataset:
        """A split's files in stored order, all of them needed, as `_read_file` takes them."""
        files = self._files_of(split)
        return tf.data.Dataset.from_tensor_slices(
            {**files, "needed": np.full(len(files["path"]), True)}
        )

    def _in_stored_order(self, split: str, batch_size: int) -> tf.data.Dataset:
        elements = self._stored_files(split).flat_map(
            _numbers if self.reads_anywhere(split) else self._read_file
        )
        return self._load(split, elements.batch(batch_size), batch_size, drop_remainder=False)

    def _load(
        self, split: str, batches: tf.data.Dataset, batch_size: int, *, drop_remainder: bool
    ) -> tf.data.Dataset:
        """Batches of {'number', perhaps 'record' and 'flip'} -> batches of {'image', 'label'}."""
        read = functools.partial(self._read, self._finder(split))
        examples = batches.map(read, num_parallel_calls=tf.data.AUTOTUNE)
        if self._packed_side:
            return examples.map(self._finish, num_parallel_calls=tf.data.AUTOTUNE)
        examples = examples.unbatch().map(self._finish, num_parallel_calls=tf.data.AUTOTUNE)
        return examples.batch(batch_size, drop_remainder=drop_remainder)

    def _read(self, finder: _RecordFinder, elements: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Elements [B] -> {'image': squares uint8 [B, side, side, 3], flipped, or files [B] with
        'flip'; 'label'}.
        """
        side = self._packed_side
        arguments = {"numbers": "number", "records": "record", "flips": "flip"}
        given = {
            argument: elements[name] for argument, name in arguments.items() if name in elements
        }

        def read(*values):
            with _READS:
                return self._read_records(finder, **dict(zip(given, values, strict=True)))

        image, label = tf.numpy_function(
            read, [*given.values()], (tf.uint8 if side else tf.string, tf.int32)
        )
        shape = elements["number"].shape
        image = tf.ensure_shape(image, [*shape, side, side, 3] if side else shape)
        flip = {"flip": elements["flip"]} if "flip" in elements and not side else {}
        return {"image": image, "label": tf.ensure_shape(label, shape), **flip}

    def _read_records(
        self,
        finder: _RecordFinder,
        numbers: np.ndarray,
        records: np.ndarray | None = None,
        flips: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """What is stored in records [B], which are read if they aren't given: images [B], labels
        int32 [B].

        Squares are mirrored where `flips`; files can't be yet.
        """
        side = self._packed_side
        images = (
            np.empty([len(numbers), side, side, 3], np.uint8)
            if side
            else np.empty([len(numbers)], object)
        )
        labels = np.empty([len(numbers)], np.int32)
        # One after the other, so that a record is in the processor's cache when it is copied:
        # faster than TensorFlow's operations on whole batches.
        for row, source in enumerate(finder.find(numbers) if records is None else records):
            label = self._squares.read(source, images[row]) if side and records is None else None
            if label is None:
                record = source.read() if records is None else source
                image, label = self._parse(record, finder, numbers[row])
                if side:
                    images[row] = np.frombuffer(image, np.uint8).reshape(side, side, 3)
                    if records is None:
                        self._squares.learn(record, image, label)
                else:
                    images[row] = image
            labels[row] = label
            if side and flips is not None and flips[row]:
                _mirror(images[row])
        return images, labels

    def _parse(self, record: bytes, finder: _RecordFinder, number: int) -> tuple[bytes, int]:
        """The image as it is stored, and the label, of a record; both are checked."""
        try:
            features = tf.train.Example.FromString(record).features.feature
            (image,) = features[self._image_key].bytes_list.value
            (label,) = features[self._label_key].int64_list.value
        except (message.DecodeError, ValueError):
            raise ValueError(
                f"{finder.name(number)} is damaged. Copy the file again, or prepare the dataset "
                "again."
            ) from None
        if not 0 <= label < self.num_classes:
            raise ValueError(
                f"Label {label} of {finder.name(number)} must be in [0, num_classes), and "
                "num_classes is "
                f"{self.num_classes}."
            )
        if self._packed_side:
            num_bytes = 3 * self._packed_side**2
            if len(image) != num_bytes:
                raise ValueError(
                    f"The image in {finder.name(number)} must have {num_bytes} bytes, got "
                    f"{len(image)}."
                )
        # Looked at only when it doesn't end as it should: some images have something behind their
        # end.
        elif not image.endswith(_ENDINGS):
            _check_decodable(image, finder, number)
        return image, label

    def _finish(self, examples: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """A batch of stored squares, or one file, -> {'image': float32 [..., S, S, 3], 'label'}."""
        image, label = examples["image"], examples["label"]
        if not self._packed_side:
            image = _decode(image, self.image_size, inexact=self.inexact_decode)
        if "flip" in examples:
            image = _flipped(image, examples["flip"])
        if self._packed_side == self.image_size:
            # x * 2 / 255 - 1 in one pass: most of the time goes into writing these numbers.
            image = tf.quantization.dequantize(
                tf.bitcast(image, tf.quint8), -1, 1, mode="MIN_COMBINED"
            )
        elif self._packed_side:
            image = _resize(image, self.image_size)
        return {"image": image, "label": label}

    def _fits_memory(self, split: str) -> bool:
        bytes_per_image = self.image_size**2 * 3 * 4
        return self.num_examples(split) * bytes_per_image <= self.cache_bytes

    def _in_memory(self, split: str) -> dict[str, tf.Tensor]:
        """All of a split in stored order, {'image': [N, S, S, 3], 'label': [N]}; decoded once."""
        if split not in self._memory:
            with tf.device("CPU:0"):  # where tf.data reads it; a GPU's memory is for the networks
                examples = self._in_stored_order(split, self.num_examples(split))
                self._memory[split] = _with_options(examples).get_single_element()
        return self._memory[split]


def _list_files(info: tfds.core.DatasetInfo, split: str) -> dict[str, np.ndarray]:
    """Columns over a split's files: path, records to skip and to take, number of the first."""
    try:
        parts = info.splits[split].file_instructions
    except (KeyError, ValueError, AssertionError) as error:
        raise ValueError(
            f"split ({split!r}) must be one of {info.name}'s splits {sorted(info.splits)}, or a "
            "part of one, written like 'train[:90%]': set the dataset's splits."
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


def _range(file: dict[str, tf.Tensor]) -> tf.data.Dataset:
    return tf.data.Dataset.range(file["first"], file["first"] + file["take"])


def _numbers(file: dict[str, tf.Tensor]) -> tf.data.Dataset:
    """{'number'} of a file's records."""
    return tf.data.Dataset.zip({"number": _range(file)})


def _pick(memory: dict[str, tf.Tensor], elements: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    examples = {key: tf.gather(value, elements["number"]) for key, value in memory.items()}
    if "flip" in elements:
        examples["image"] = _flipped(examples["image"], elements["flip"])
    return examples


def _mirror(square: np.ndarray) -> None:
    """Mirrors [h, w, 3] left to right, in place."""
    before = square.copy()
    for channel in range(
        3
    ):  # four times as fast as all at once, which NumPy copies three bytes at a time
        square[..., channel] = before[:, ::-1, channel]


def _check_decodable(encoded: bytes, finder: _RecordFinder, number: int) -> None:
    try:
        tf.io.decode_image(encoded, channels=3, expand_animations=False)
    except tf.errors.InvalidArgumentError as error:
        raise ValueError(
            f"The image in {finder.name(number)} can't be decoded ({len(encoded)} bytes): "
            f"{error.message.splitlines()[0]}. Prepare the dataset again from whole images."
        ) from None


def _with_options(dataset: tf.data.Dataset) -> tf.data.Dataset:
    options = tf.data.Options()
    options.deterministic = True
    # tf.distribute would otherwise shard again what already is.
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    return dataset.prefetch(tf.data.AUTOTUNE).with_options(options)


def _check_at_least(argument: str, value: int, minimum: int) -> None:
    if value < minimum:
        raise ValueError(f"{argument} ({value}) must be at least {minimum}.")


def _open(name: str, data_dir: str | None) -> tfds.core.DatasetBuilder:
    """The builder that reads the prepared dataset `name`."""
    data_dir = data_dir and os.path.expanduser(data_dir)
    if "/" in name and _is_dataset(os.path.expanduser(name)):
        return tfds.builder_from_directory(os.path.expanduser(name))
    if data_dir and _is_dataset(data_dir):
        builder = tfds.builder_from_directory(data_dir)
        if builder.name != name.split("/")[0].split(":")[0]:
            raise ValueError(
                f"name ({name!r}) must be the dataset's that data_dir holds: {data_dir} is "
                f"{builder.name!r}."
            )
        return builder
    try:
        # Not tfds.builder: that one answers with an unprepared dataset where it knows the code.
        return tfds.core.read_only_builder.builder_from_files(name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError as error:
        folders = tfds.core.utils.file_utils.list_data_dirs(data_dir)
        looked_in = ", ".join(os.path.join(os.fspath(folder), name) for folder in folders)
        raise ValueError(
            f"Dataset {name!r} isn't prepared: no <version>/dataset_info.json in {looked_in}. "
            f"Prepare it with\n    {_preparing_command(name, data_dir)}\n"
            "or set data_dir to the folder of TFDS datasets where it is."
        ) from error


def wrong_folder_level(class_names: list[str]) -> str | None:
    """What is wrong when classes are called what splits are called, else None."""
    if not {name.lower() for name in class_names} <= {
        "train",
        "training",
        "val",
        "valid",
        "validation",
        "dev",
        "test",
    }:
        return None
    return (
        f"the classes are called {', '.join(class_names)}, as splits are, so the images were read "
        "from one folder too "
        "high up. Prepare the dataset again from the folder of one split, which holds a folder per "
        "class."
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


def _packed_side(feature: tfds.features.FeatureConnector) -> int | None:
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


def _find_features(info: tfds.core.DatasetInfo) -> tuple[str, str]:
    """Keys of the image and of the label feature."""

    def is_image(feature):
        is_file = (
            isinstance(feature, tfds.features.Image)
            and feature.np_dtype == np.uint8
            and len(feature.shape) == 3
        )
        return is_file or _packed_side(feature) is not None

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
