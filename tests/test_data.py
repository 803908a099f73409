"""hamgan.data: preprocessing against NumPy, the order of the stream, and every error."""

import io
import itertools
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from PIL import Image
from sklearn import datasets

from data_prep import digits
from hamgan import data
from hamgan.data import order, places, prepared

ROOT = pathlib.Path(__file__).parent.parent

# Height and width: portrait, landscape, square; odd and even differences. In (128, 256) and
# (61, 93) the square begins at a column that is a multiple of 16: a border of JPEG's blocks.
SIZES = [(97, 61), (61, 97), (64, 64), (375, 500), (130, 77), (128, 256), (61, 93), (50, 51)]
NUM_NUMBERED = 30


class Made(tfds.core.GeneratorBasedBuilder):
    """A data set of given features and examples: the code that is gone when it is read."""

    VERSION = tfds.core.Version("1.0.0")
    url_infos = None  # as in data_prep/digits.py

    def __init__(self, *, features, splits, **kwargs):
        self._made_features = features
        self._made_splits = splits
        super().__init__(**kwargs)

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(self._made_features)
        )

    def _split_generators(self, dl_manager):
        return {name: self._generate_examples(rows) for name, rows in self._made_splits.items()}

    def _generate_examples(self, rows):
        yield from enumerate(rows)


def make(folder, features, num_shards=1, **splits):
    """Writes a data set and returns its folder."""
    builder = Made(features=features, splits=splits, data_dir=str(folder))
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(num_shards=num_shards, try_download_gcs=False)
    )
    return str(folder)


def oracle(image, size):
    """Central square of uint8 [h, w, c], corner-aligned bilinear to [size, size, 3]; float64."""
    height, width, _ = image.shape
    side = min(height, width)
    top, left = int(np.ceil(0.5 * (height - side))), int(np.ceil(0.5 * (width - side)))
    square = image[top : top + side, left : left + side].astype(np.float64)
    position = np.arange(size) * (side - 1) / (size - 1)
    low = np.floor(position).astype(int)
    high = np.minimum(low + 1, side - 1)
    part = position - low
    rows = square[low] * (1 - part)[:, None, None] + square[high] * part[:, None, None]
    both = rows[:, low] * (1 - part)[:, None] + rows[:, high] * part[:, None]
    return np.repeat(both, 3 // image.shape[2], axis=2) * 2 / 255 - 1


def picture(height, width, grey=False):
    """Colourful waves and hard edges: wrong rows, columns or colours show."""
    rng = np.random.default_rng(height * 1000 + width)
    y, x = np.mgrid[:height, :width]
    waves = [128 + 90 * np.sin(x / 5 + y / 11), 128 + 90 * np.cos(y / 4), (x * 7 + y * 3) % 256]
    image = np.stack(waves, axis=-1) + rng.normal(0, 15, (height, width, 3))
    image[::9, :, 0] = 255
    image[:, ::6, 2] = 0
    image = np.clip(image, 0, 255).astype(np.uint8)
    return image[..., 1] if grey else image


def encode(image, form, **options):
    file = io.BytesIO()
    Image.fromarray(image).save(file, form, **options)
    return file.getvalue()


@pytest.fixture(scope="session")
def digits_dir(tmp_path_factory):
    builder, _ = digits.prepare(str(tmp_path_factory.mktemp("tfds")))
    return str(builder.data_path.parent.parent)


@pytest.fixture(scope="session")
def photos():
    """Encoded images of every size: JPEG with and without chroma subsampling, grey JPEG, PNG."""
    files = []
    for number, (height, width) in enumerate(SIZES):
        image = picture(height, width)
        files += [encode(image, "JPEG", quality=92, subsampling=s) for s in (0, 1, 2)]
        files += [encode(picture(height, width, grey=True), "JPEG", quality=92)]
        if number < 2:  # TFDS keeps what it is given, whatever the feature's declared format
            files += [encode(image, "PNG")]
    return files


@pytest.fixture(scope="session")
def photos_dir(photos, tmp_path_factory):
    features = {
        "image": tfds.features.Image(encoding_format="jpeg"),
        "label": tfds.features.ClassLabel(names=[f"n{number}" for number in range(len(photos))]),
        "file_name": tfds.features.Text(),
    }
    rows = [
        {"image": photo, "label": label, "file_name": f"{label}.JPEG"}
        for label, photo in enumerate(photos)
    ]
    return make(
        tmp_path_factory.mktemp("photos"), features, num_shards=3, train=rows, validation=rows[:7]
    )


@pytest.fixture(scope="session")
def numbered_dir(tmp_path_factory):
    """Thirty 4x4 images in four files; example i is labelled i and painted in grey i."""
    features = {
        "image": tfds.features.Image(shape=(4, 4, 1)),
        "label": tfds.features.Scalar(np.int64),
    }
    rows = [
        {"image": np.full((4, 4, 1), label, np.uint8), "label": label}
        for label in range(NUM_NUMBERED)
    ]
    return make(
        tmp_path_factory.mktemp("numbered"), features, num_shards=4, train=rows, test=rows[:10]
    )


def numbered(folder, **options):
    options = {"num_classes": NUM_NUMBERED, "reference_split": "test", **options}
    return data.ImageDataset(name="made", image_size=4, data_dir=folder, **options)


def labels_of(batches, count):
    """Labels of `count` batches, checked against the images: [count, batch]."""
    result = []
    for batch in itertools.islice(iter(batches), count):
        grey = np.rint((batch["image"].numpy() + 1) * 127.5)
        assert np.all(grey == batch["label"].numpy()[:, None, None, None])
        result.append(batch["label"].numpy())
    return np.stack(result)


# Preprocessing. In float32 a sample's position is off by up to side * 2^-24 * 2 pixels, which at
# side 1000 and an edge of 255 grey levels is 0.03 of them: 2.4e-4 on the scale of [-1, 1].
ROUNDING = 3e-4


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("image_size", [32, 128])
def test_preprocess_equals_numpy(image_size, channels):
    rng = np.random.default_rng(0)
    traced = tf.function(
        lambda image: data.preprocess(image, image_size),
        input_signature=[tf.TensorSpec([None, None, None], tf.uint8)],
    )
    for height, width in [*SIZES, (1, 1), (1, 5), (2, 3), (8, 8), (31, 1000), (1000, 999)]:
        image = rng.integers(0, 256, (height, width, channels), dtype=np.uint8)
        result = traced(image)
        assert result.dtype == tf.float32 and result.shape == (image_size, image_size, 3)
        np.testing.assert_allclose(result, oracle(image, image_size), rtol=0, atol=ROUNDING)
        np.testing.assert_array_equal(data.preprocess(tf.constant(image), image_size), result)


def test_preprocess_has_no_black_border():
    # crop_and_resize takes the last row of some sizes for outside: 498 to 32 is one.
    for side in range(480, 520):
        white = np.full((side, side, 1), 255, np.uint8)
        np.testing.assert_array_equal(data.preprocess(white, 32), np.ones((32, 32, 3)))


def test_preprocess_static_shape():
    signature = tf.TensorSpec([None, None, None], tf.uint8)
    traced = tf.function(lambda image: data.preprocess(image, 16), input_signature=[signature])
    assert traced.get_concrete_function().output_shapes == (16, 16, 3)


def read_photos(photos, folder, image_size, split="train"):
    """(encoded file, its image as ImageDataset gives it), for each example of a split."""
    dataset = data.ImageDataset(
        name="made", image_size=image_size, num_classes=len(photos), data_dir=folder
    )
    for batch in dataset.reference_batches(split=split, batch_size=5):
        for image, label in zip(batch["image"].numpy(), batch["label"].numpy(), strict=True):
            yield photos[label], image


@pytest.mark.parametrize("image_size", [32, 128])
def test_encoded_images_equal_fully_decoded(photos, photos_dir, image_size):
    # Decoded in full by the same decoder: only the float32 rounding of above is left.
    count = 0
    for file, image in read_photos(photos, photos_dir, image_size):
        whole = tf.io.decode_image(file, channels=3).numpy()
        np.testing.assert_allclose(image, oracle(whole, image_size), rtol=0, atol=ROUNDING)
        count += 1
    assert count == len(photos)


def test_encoded_images_agree_with_another_decoder(photos, photos_dir):
    # TensorFlow's default inverse DCT is the fast one, Pillow's the accurate one: 6 grey levels in
    # single pixels of these files, about 1 in the mean.
    for file, image in read_photos(photos, photos_dir, 64):
        whole = np.asarray(Image.open(io.BytesIO(file)).convert("RGB"))
        difference = np.abs(image - oracle(whole, 64)) * 127.5
        assert difference.max() < 8 and difference.mean() < 2


@pytest.mark.parametrize("size", [(60, 90), (91, 61)])
def test_cmyk_jpeg(size, tmp_path):
    # ImageNet has some.
    file = io.BytesIO()
    Image.fromarray(picture(*size)).convert("CMYK").save(file, "JPEG", quality=95)
    features = {
        "image": tfds.features.Image(encoding_format="jpeg"),
        "label": tfds.features.Scalar(np.int64),
    }
    make(tmp_path, features, train=[{"image": file.getvalue(), "label": 0}])
    dataset = data.ImageDataset(
        name="made", image_size=32, num_classes=1, reference_split="train", data_dir=str(tmp_path)
    )
    (batch,) = dataset.reference_batches(batch_size=1)
    image = batch["image"][0].numpy()
    whole = tf.io.decode_jpeg(file.getvalue(), channels=3).numpy()
    np.testing.assert_allclose(image, oracle(whole, 32), rtol=0, atol=ROUNDING)
    rgb = np.asarray(Image.open(file).convert("RGB"))
    # The fast inverse DCT's differences, in four channels; read as inverted, colours would be
    # another picture's.
    assert (np.abs(image - oracle(rgb, 32)) * 127.5).mean() < 4


def test_inexact_decode_is_the_smaller_decoding(photos, photos_dir):
    common = dict(name="made", num_classes=len(photos), data_dir=photos_dir)
    ratios = set()
    for size in (7, 30):
        dataset = data.ImageDataset(image_size=size, inexact_decode=True, **common)
        (batch,) = dataset.reference_batches(split="train", batch_size=100)
        for image, label in zip(batch["image"].numpy(), batch["label"].numpy(), strict=True):
            height, width, channels = tf.io.decode_image(photos[label], channels=3).shape
            is_jpeg = photos[label].startswith(b"\xff\xd8")
            ratio = max(
                r for r in (1, 2, 4, 8) if r == 1 or is_jpeg and min(height, width) >= r * size
            )
            ratios.add(ratio)
            whole = (
                tf.io.decode_jpeg(photos[label], channels=3, ratio=ratio)
                if is_jpeg
                else tf.io.decode_image(photos[label], channels=3)
            )
            np.testing.assert_allclose(image, oracle(whole.numpy(), size), rtol=0, atol=ROUNDING)
    assert ratios == {1, 2, 4, 8}


def test_digits_equal_numpy(digits_dir):
    source = datasets.load_digits()
    scaled = np.floor(source.images * 255 / 16 + 0.5).astype(np.uint8)[..., None]
    label_of = {image.tobytes(): label for image, label in zip(scaled, source.target, strict=True)}
    common = {"name": "digits", "num_classes": 10, "data_dir": digits_dir}
    # At their own size they are not resampled: the stored 8x8 can be read off.
    small = data.ImageDataset(image_size=8, reference_split="test", **common)
    large = data.ImageDataset(image_size=32, reference_split="test", **common)
    seen = 0
    for split in ("train", "test"):
        pairs = zip(
            small.reference_batches(split=split, batch_size=100),
            large.reference_batches(split=split, batch_size=100),
            strict=True,
        )
        for at_8, at_32 in pairs:
            stored = np.rint((at_8["image"].numpy()[..., :1] + 1) * 127.5).astype(np.uint8)
            np.testing.assert_array_equal(at_8["label"], [label_of[i.tobytes()] for i in stored])
            np.testing.assert_array_equal(at_8["label"], at_32["label"])
            expected = np.stack([oracle(image, 32) for image in stored])
            np.testing.assert_allclose(at_32["image"], expected, rtol=0, atol=1e-5)
            seen += len(stored)
    assert seen == 1797


# Order. `cache_bytes` 0 reads records, the default holds these small splits in memory.
RECORDS = {"cache_bytes": 0, "random_access": True}
FILES = {"cache_bytes": 0, "random_access": False}
both_paths = pytest.mark.parametrize("options", [{}, RECORDS], ids=["memory", "records"])
every_read = pytest.mark.parametrize("options", [RECORDS, FILES], ids=["records", "files"])


@both_paths
def test_batches_have_static_shapes(numbered_dir, options):
    spec = numbered(numbered_dir, **options).train_batches(batch_size=7, seed=0).element_spec
    assert spec == {
        "image": tf.TensorSpec([7, 4, 4, 3], tf.float32),
        "label": tf.TensorSpec([7], tf.int32),
    }


@both_paths
@pytest.mark.parametrize("shuffle_buffer", [5, 10_000])
def test_every_epoch_holds_every_example_once_in_a_new_order(numbered_dir, options, shuffle_buffer):
    dataset = numbered(numbered_dir, shuffle_buffer=shuffle_buffer, **options)
    # 7 doesn't divide 30: batches run over the epochs' borders.
    stream = labels_of(dataset.train_batches(batch_size=7, seed=3), 30)
    epochs = stream.reshape(-1)[: 7 * NUM_NUMBERED].reshape(7, NUM_NUMBERED)
    for epoch in epochs:
        assert sorted(epoch) == list(range(NUM_NUMBERED))
    assert len({tuple(epoch) for epoch in epochs}) == 7
    assert tuple(sorted(epochs[0])) != tuple(epochs[0])


def test_batch_larger_than_the_split(numbered_dir):
    stream = labels_of(numbered(numbered_dir).train_batches(batch_size=75, seed=0), 2).reshape(-1)
    assert np.bincount(stream).tolist() == [5] * NUM_NUMBERED


@pytest.mark.parametrize("interleave", [16, 3])
def test_order_depends_on_the_seed_alone(numbered_dir, monkeypatch, interleave):
    # 3: fewer files at once than there are, and fewer records in turn than a file has.
    monkeypatch.setattr(order, "_INTERLEAVE", interleave)
    tf.random.set_seed(4)
    datasets = [numbered(numbered_dir, **options) for options in ({}, RECORDS, FILES)]
    first = labels_of(datasets[0].train_batches(batch_size=8, seed=11), 20)
    for dataset in datasets:
        tf.random.set_seed(5)
        again = labels_of(dataset.train_batches(batch_size=8, seed=11), 20)
        np.testing.assert_array_equal(again, first)
        other = labels_of(dataset.train_batches(batch_size=8, seed=12), 20)
        assert np.any(other != first)


def test_photos_in_memory_equal_photos_read(photos, photos_dir):
    common = {"name": "made", "image_size": 16, "num_classes": len(photos), "data_dir": photos_dir}
    streams = [
        data.ImageDataset(**common, **options).train_batches(batch_size=4, seed=5)
        for options in ({}, RECORDS)
    ]
    for held, read in itertools.islice(zip(*map(iter, streams), strict=True), 20):
        for key in ("image", "label"):
            np.testing.assert_array_equal(held[key], read[key])


@pytest.mark.parametrize(
    ("options", "shuffle_buffer"),
    [({}, 5), ({}, 10_000), (RECORDS, 5), (RECORDS, 10_000), (FILES, 5)],
)
def test_entering_at_a_batch_continues_the_stream(numbered_dir, options, shuffle_buffer):
    dataset = numbered(numbered_dir, shuffle_buffer=shuffle_buffer, **options)
    stream = labels_of(dataset.train_batches(batch_size=4, seed=3), 48)
    # 15 batches are two epochs: before, within and after, and exactly at the border.
    for start in (1, 7, 8, 15, 40):
        entered = dataset.train_batches(batch_size=4, seed=3, start_batch=start)
        np.testing.assert_array_equal(labels_of(entered, 8), stream[start : start + 8])


@both_paths
def test_entering_far_in_reads_no_earlier_epoch(numbered_dir, options):
    # A trillion batches: it would never come to an end if it went through them.
    dataset = numbered(numbered_dir, **options)
    far = labels_of(dataset.train_batches(batch_size=3, seed=3, start_batch=10**12), 20)
    assert all(sorted(epoch) == list(range(NUM_NUMBERED)) for epoch in far.reshape(2, -1))


def test_skipped_images_are_not_decoded(tmp_path):
    good, broken = encode(picture(9, 9), "PNG"), b"\x89PNG but no more"
    features = {"image": tfds.features.Image(), "label": tfds.features.Scalar(np.int64)}
    rows = [{"image": broken if label == 4 else good, "label": label} for label in range(12)]
    make(tmp_path, features, train=rows)
    dataset = data.ImageDataset(
        name="made",
        image_size=8,
        num_classes=12,
        reference_split="train",
        data_dir=str(tmp_path),
        **RECORDS,
    )
    before = []
    with pytest.raises(tf.errors.InvalidArgumentError):
        for batch in dataset.train_batches(batch_size=1, seed=0):
            before += batch["label"].numpy().tolist()
    assert len(before) < 12
    entered = dataset.train_batches(batch_size=1, seed=0, start_batch=len(before) + 1)
    rest = [int(batch["label"][0]) for batch in entered.take(11 - len(before))]
    assert sorted(before + rest) == [0, 1, 2, 3, 5, 6, 7, 8, 9, 10, 11]


@pytest.mark.parametrize(
    ("options", "num_shards"), [({}, 2), ({}, 3), (RECORDS, 2), (RECORDS, 3), (FILES, 2)]
)
def test_shards_are_rows_of_the_global_batch(numbered_dir, options, num_shards):
    dataset = numbered(numbered_dir, **options)
    whole = labels_of(dataset.train_batches(batch_size=4 * num_shards, seed=9), 12)
    shards = [
        labels_of(
            dataset.train_batches(batch_size=4, seed=9, shard_index=index, num_shards=num_shards),
            12,
        )
        for index in range(num_shards)
    ]
    # So they are disjoint and lose nothing: `whole` holds every example once an epoch.
    np.testing.assert_array_equal(np.concatenate(shards, axis=1), whole)
    entered = dataset.train_batches(
        batch_size=4, seed=9, start_batch=5, shard_index=1, num_shards=num_shards
    )
    np.testing.assert_array_equal(labels_of(entered, 7), shards[1][5:])


def test_two_hosts_share_an_epoch_without_overlap_or_loss(numbered_dir):
    dataset = numbered(numbered_dir, **RECORDS)
    hosts = [
        labels_of(dataset.train_batches(batch_size=5, seed=2, shard_index=index, num_shards=2), 3)
        for index in range(2)
    ]
    assert not set(hosts[0].flat) & set(hosts[1].flat)
    assert sorted([*hosts[0].flat, *hosts[1].flat]) == list(range(NUM_NUMBERED))


@every_read
def test_entering_reads_no_file_whose_records_are_over(
    numbered_dir, tmp_path, monkeypatch, options
):
    # File after file.
    monkeypatch.setattr(order, "_INTERLEAVE", 1)
    folder = shutil.copytree(numbered_dir, tmp_path / "copy")
    dataset = numbered(str(folder), shuffle_buffer=1, **options)
    stream = labels_of(dataset.train_batches(batch_size=1, seed=3), NUM_NUMBERED).reshape(-1)
    past = {int(label) for label in stream[:17]}
    deleted = 0
    for path in (folder / "made" / "1.0.0").glob("*train*tfrecord*"):
        records = tf.data.TFRecordDataset(str(path)).as_numpy_iterator()
        labels = [
            tf.train.Example.FromString(r).features.feature["label"].int64_list.value[0]
            for r in records
        ]
        if set(labels) <= past:
            path.unlink()
            deleted += 1
    assert deleted == 2
    entered = labels_of(dataset.train_batches(batch_size=1, seed=3, start_batch=17), 13)
    np.testing.assert_array_equal(entered.reshape(-1), stream[17:])


# Flips.


@pytest.fixture(scope="module")
def sided_dir(tmp_path_factory):
    """Forty 4x4 images, white in the left column only."""
    features = {
        "image": tfds.features.Image(shape=(4, 4, 1)),
        "label": tfds.features.Scalar(np.int64),
    }
    image = np.zeros((4, 4, 1), np.uint8)
    image[:, 0] = 255
    rows = [{"image": image, "label": label} for label in range(40)]
    folder = tmp_path_factory.mktemp("sided")
    make(folder / "encoded", features, num_shards=3, train=rows)
    features["image"] = packed_feature(4)
    rows = [{**row, "image": np.repeat(image, 3, axis=2)} for row in rows]
    make(folder / "packed", features, num_shards=3, train=rows)
    return folder


def flips_of(batches, count):
    """What was mirrored in `count` batches, and the labels: two arrays [count, batch]."""
    flips, labels = [], []
    for batch in itertools.islice(iter(batches), count):
        image = batch["image"].numpy()
        flip = image[:, 0, 3, 0] > 0
        expected = np.full((4, 4, 3), -1, np.float32)
        expected[:, 0] = 1
        for one, mirrored in zip(image, flip, strict=True):
            np.testing.assert_array_equal(one, expected[:, ::-1] if mirrored else expected)
        flips.append(flip)
        labels.append(batch["label"].numpy())
    return np.stack(flips), np.stack(labels)


def sided(folder, **options):
    return data.ImageDataset(
        name="made",
        image_size=4,
        num_classes=40,
        reference_split="train",
        data_dir=str(folder),
        **options,
    )


def test_flips_are_a_function_of_seed_and_position(sided_dir):
    expected, labels = flips_of(
        sided(sided_dir / "encoded", flip=True).train_batches(batch_size=10, seed=1), 12
    )
    # Half of them, anew in each epoch, and in each run.
    assert 40 < expected.sum() < 80
    by_epoch = np.zeros((3, 40), bool)
    for epoch in range(3):
        by_epoch[epoch, labels[4 * epoch : 4 * epoch + 4].reshape(-1)] = expected[
            4 * epoch : 4 * epoch + 4
        ].reshape(-1)
    assert (
        len({tuple(row) for row in by_epoch}) == 3
        and len({tuple(row) for row in expected.reshape(3, 40)}) == 3
    )
    other, _ = flips_of(
        sided(sided_dir / "encoded", flip=True).train_batches(batch_size=10, seed=2), 12
    )
    assert np.any(other != expected)
    for name, options in (("encoded", {}), ("encoded", FILES), ("packed", RECORDS)):
        dataset = sided(sided_dir / name, flip=True, **options)
        # On one host and on two.
        entered = flips_of(dataset.train_batches(batch_size=10, seed=1, start_batch=5), 7)
        np.testing.assert_array_equal(entered, (expected[5:], labels[5:]))
        halves = [
            flips_of(
                dataset.train_batches(
                    batch_size=5, seed=1, start_batch=1, shard_index=i, num_shards=2
                ),
                11,
            )
            for i in range(2)
        ]
        np.testing.assert_array_equal(np.concatenate(halves, axis=2), (expected[1:], labels[1:]))


def test_flips_are_off_unless_asked_for_and_never_in_the_reference(sided_dir):
    _, with_flips = flips_of(
        sided(sided_dir / "encoded", flip=True).train_batches(batch_size=10, seed=1), 4
    )
    flips, labels = flips_of(sided(sided_dir / "encoded").train_batches(batch_size=10, seed=1), 4)
    assert not flips.any()
    np.testing.assert_array_equal(labels, with_flips)
    for name, options in (("encoded", {}), ("packed", RECORDS)):
        reference = sided(sided_dir / name, flip=True, **options).reference_batches(batch_size=40)
        assert not flips_of(reference, 1)[0].any()


# Packed squares.


def packed_feature(side):
    return tfds.features.Tensor(
        shape=(side, side, 3), dtype=np.uint8, encoding=tfds.features.Encoding.BYTES
    )


@pytest.fixture(scope="module")
def packed_dir(photos, photos_dir, tmp_path_factory):
    """The photos as squares of 16, rounded to uint8."""
    names = [f"n{number}" for number in range(len(photos))]
    features = {"image": packed_feature(16), "label": tfds.features.ClassLabel(names=names)}
    common = dict(name="made", image_size=16, num_classes=len(photos), data_dir=photos_dir)
    (whole,) = data.ImageDataset(**common).reference_batches(split="train", batch_size=100)
    images = np.rint((whole["image"].numpy() + 1) * 127.5).astype(np.uint8)
    labels = whole["label"].numpy().tolist()
    rows = sorted(
        zip(labels, images, strict=True), key=lambda row: row[0]
    )  # the keys of photos_dir: its order
    rows = [{"image": image, "label": label} for label, image in rows]
    return make(
        tmp_path_factory.mktemp("packed"), features, num_shards=3, train=rows, validation=rows[:7]
    )


@pytest.mark.parametrize("options", [{}, RECORDS, FILES], ids=["memory", "records", "files"])
def test_packed_squares_equal_photos_within_a_grey_level(photos, photos_dir, packed_dir, options):
    common = dict(name="made", image_size=16, num_classes=len(photos), **options)
    on_the_fly = data.ImageDataset(data_dir=photos_dir, **common)
    packed = data.ImageDataset(data_dir=packed_dir, **common)
    assert packed.class_names == on_the_fly.class_names
    assert packed.train_batches(batch_size=5, seed=0).element_spec == {
        "image": tf.TensorSpec([5, 16, 16, 3], tf.float32),
        "label": tf.TensorSpec([5], tf.int32),
    }
    streams = [
        (
            dataset.reference_batches(batch_size=3),
            dataset.train_batches(batch_size=5, seed=4, start_batch=2),
        )
        for dataset in (on_the_fly, packed)
    ]
    for one, other in zip(*streams, strict=True):
        for expected, batch in itertools.islice(zip(one, other, strict=False), 15):
            np.testing.assert_array_equal(batch["label"], expected["label"])
            levels = (batch["image"].numpy() + 1) * 127.5
            np.testing.assert_allclose(levels, np.rint(levels), rtol=0, atol=1e-4)
            np.testing.assert_allclose(
                levels, (expected["image"].numpy() + 1) * 127.5, rtol=0, atol=0.501
            )


@pytest.mark.parametrize(
    "name_of", [None, "{:03}", "{:0300}"], ids=["no name", "short name", "long name"]
)
def test_squares_are_read_as_they_are_stored(name_of, tmp_path):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, [200, 4, 4, 3], np.uint8)
    labels = rng.integers(0, 10, len(images))
    features = {"image": packed_feature(4), "label": tfds.features.ClassLabel(num_classes=10)}
    rows = [{"image": image, "label": label} for image, label in zip(images, labels, strict=True)]
    if name_of:
        features["name"] = tfds.features.Text()
        rows = [{**row, "name": name_of.format(number)} for number, row in enumerate(rows)]
    make(tmp_path, features, num_shards=3, train=rows)
    dataset = data.ImageDataset(
        name="made",
        data_dir=tmp_path,
        num_classes=10,
        image_size=4,
        reference_split="train",
        **RECORDS,
    )

    wanted = sorted(
        (int(label), image.tobytes()) for image, label in zip(images, labels, strict=True)
    )
    for _ in range(3):  # the first time, records are parsed; later, most of them are only copied
        (batch,) = dataset.reference_batches(batch_size=len(images))
        pixels = np.rint((batch["image"].numpy() + 1) * 127.5).astype(np.uint8)
        pairs = zip(pixels, batch["label"].numpy(), strict=True)
        assert sorted((int(label), image.tobytes()) for image, label in pairs) == wanted
    # Records with names come in too many kinds.
    assert bool(dataset._loader._stored._squares._before) == (name_of is None)


def test_larger_packed_squares_are_resized_exactly(photos, packed_dir):
    common = dict(name="made", num_classes=len(photos), data_dir=packed_dir, **RECORDS)
    whole, smaller = (
        next(iter(data.ImageDataset(image_size=size, **common).reference_batches(batch_size=7)))
        for size in (16, 7)
    )
    for square, image in zip(whole["image"].numpy(), smaller["image"].numpy(), strict=True):
        square = np.rint((square + 1) * 127.5).astype(np.uint8)
        np.testing.assert_allclose(image, data.preprocess(square, 7), rtol=0, atol=1e-6)


def test_flat_square_does_not_shift_others(tmp_path):
    flat, noise = b"\x30" * 48, bytes(range(47)) + b"\x30"
    before, behind = b"before \x30", b"behind"
    with tf.io.TFRecordWriter(str(tmp_path / "file")) as file:
        file.write(before + noise + behind)
    place = places.Place(str(tmp_path / "file"), 12, len(before + noise + behind))
    square = np.empty([4, 4, 3], np.uint8)
    squares = places.SquareReader(max_kinds=2)
    squares.learn(before + flat + behind, flat, 3)
    assert squares.read(place, square) is None
    squares.learn(before + noise + behind, noise, 3)
    assert squares.read(place, square) == 3 and square.tobytes() == noise


def test_every_flipped_bit_of_packed_squares_is_found(photos, packed_dir, tmp_path):
    folder = shutil.copytree(packed_dir, tmp_path / "copy")
    path = min((folder / "made" / "1.0.0").glob("*train*"))
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    common = dict(name="made", num_classes=len(photos), image_size=16, data_dir=folder, **RECORDS)
    for position in rng.integers(0, 8 * len(whole), 30).tolist():
        damaged = bytearray(whole)
        damaged[position // 8] ^= 1 << position % 8
        path.write_bytes(damaged)
        with pytest.raises(tf.errors.OpError, match="is damaged|was cut off"):
            for _ in data.ImageDataset(**common).reference_batches(batch_size=7, split="train"):
                pass
    path.write_bytes(whole)
    for _ in range(2):  # whole records are read, the second time as squares of known kinds
        batches = data.ImageDataset(**common).reference_batches(batch_size=7, split="train")
        assert sum(len(batch["label"]) for batch in batches) == len(photos)


def test_a_missing_file_is_named_before_anything_is_read(photos, packed_dir, tmp_path):
    folder = shutil.copytree(packed_dir, tmp_path / "copy")
    path = min((folder / "made" / "1.0.0").glob("*train*"))
    path.unlink()
    dataset = data.ImageDataset(
        name="made", num_classes=len(photos), image_size=16, data_dir=folder
    )
    with pytest.raises(ValueError, match=rf"made/1.0.0 is incomplete: .*{path.name} is missing"):
        dataset.check_files()
    dataset.check_files("validation")


def test_python_exits_while_something_is_read(photos, packed_dir):
    code = f"""
import functools, os, time
from hamgan import data

def slow(read, *args):
    time.sleep(0.02)
    return read(*args)

os.pread, os.preadv = functools.partial(slow, os.pread), functools.partial(slow, os.preadv)
dataset = data.ImageDataset(
    name="made", num_classes={len(photos)}, image_size=16, cache_bytes=0,
    data_dir={str(packed_dir)!r},
)
batches = iter(dataset.train_batches(batch_size=8, seed=0))
next(batches)
"""
    # `batches` is still there, and at work, when Python exits.
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=180
    )
    assert done.returncode == 0, done.stderr
    assert "Error" not in done.stderr


def test_square_of_another_size_is_named(photos, packed_dir, tmp_path):
    folder = shutil.copytree(packed_dir, tmp_path / "copy")
    path = min((folder / "made" / "1.0.0").glob("*validation*"))
    records = list(tf.data.TFRecordDataset(str(path)).as_numpy_iterator())
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in records:
            example = tf.train.Example.FromString(record)
            example.features.feature["image"].bytes_list.value[0] += b"more"
            writer.write(example.SerializeToString())
    dataset = data.ImageDataset(
        name="made", image_size=16, num_classes=len(photos), data_dir=str(folder), cache_bytes=0
    )
    with pytest.raises(
        tf.errors.InvalidArgumentError, match=rf"image in record 0 .* of {path} must have 768 bytes"
    ):
        list(dataset.reference_batches(batch_size=2))


def test_damaged_record_is_named(photos, packed_dir, tmp_path):
    folder = shutil.copytree(packed_dir, tmp_path / "copy")
    path = sorted(folder.glob("made/1.0.0/*-train.tfrecord-*"))[0]
    content = bytearray(path.read_bytes())
    content[12:16] = b"\xff\xff\xff\xff"  # where the first record begins
    path.write_bytes(content)
    dataset = data.ImageDataset(
        name="made",
        num_classes=len(photos),
        image_size=16,
        reference_split="train",
        data_dir=folder,
        **RECORDS,
    )
    with pytest.raises(
        tf.errors.OpError, match=r"record 0 \(from 0\) of .*-train.tfrecord-00000-of-.* is damaged"
    ):
        list(dataset.reference_batches(batch_size=4))


def test_packed_squares_are_not_enlarged(photos, packed_dir):
    with pytest.raises(
        ValueError, match=r"image_size \(17\) must be at most 16, the side of the packed squares"
    ):
        data.ImageDataset(name="made", image_size=17, num_classes=len(photos), data_dir=packed_dir)


@pytest.mark.parametrize(
    "feature",
    [
        tfds.features.Tensor(shape=(4, 4, 3), dtype=np.uint8),
        tfds.features.Tensor(shape=(4, 4, 3), dtype=np.uint8, encoding=tfds.features.Encoding.ZLIB),
        tfds.features.Tensor(
            shape=(4, 5, 3), dtype=np.uint8, encoding=tfds.features.Encoding.BYTES
        ),
        tfds.features.Tensor(
            shape=(4, 4, 1), dtype=np.uint8, encoding=tfds.features.Encoding.BYTES
        ),
        tfds.features.Tensor(shape=(4, 4, 3), dtype=np.int8, encoding=tfds.features.Encoding.BYTES),
    ],
    ids=["numbers", "compressed", "oblong", "grey", "signed"],
)
def test_other_tensors_are_no_images(feature):
    assert prepared.packed_side(feature) is None and prepared.packed_side(packed_feature(4)) == 4


# Reference.


@pytest.mark.parametrize("options", [{}, RECORDS, FILES], ids=["memory", "records", "files"])
def test_reference_holds_every_example_once_in_stored_order(numbered_dir, options):
    dataset = numbered(numbered_dir, **options)
    builder = tfds.builder_from_directory(f"{numbered_dir}/made/1.0.0")
    stored = []
    for file in builder.info.splits["train"].filepaths:
        for record in tf.data.TFRecordDataset(str(file)):
            example = tf.train.Example.FromString(record.numpy())
            stored += example.features.feature["label"].int64_list.value
    for _ in range(2):
        batches = list(dataset.reference_batches(split="train", batch_size=8))
        assert [len(batch["label"]) for batch in batches] == [8, 8, 8, 6]
        assert np.concatenate([batch["label"] for batch in batches]).tolist() == stored
        assert batches[0]["image"].shape == (8, 4, 4, 3)
        assert batches[0]["label"].dtype == tf.int32
    assert sorted(stored) == list(range(NUM_NUMBERED))
    default = list(dataset.reference_batches(batch_size=8))
    assert sorted(np.concatenate([b["label"] for b in default])) == list(range(10))


def test_labels_are_read_in_stored_order_without_the_images(tmp_path):
    features = {"image": tfds.features.Image(), "label": tfds.features.Scalar(np.int64)}
    rows = [{"image": b"\x89PNG but no more", "label": label} for label in range(7)]
    make(tmp_path, features, num_shards=2, train=rows)
    dataset = data.ImageDataset(
        name="made", image_size=8, num_classes=7, reference_split="train", data_dir=str(tmp_path)
    )
    batches = [
        batch.numpy().tolist() for batch in dataset.label_batches(split="train", batch_size=4)
    ]
    assert [len(batch) for batch in batches] == [4, 3] and sorted(batches[0] + batches[1]) == list(
        range(7)
    )
    files = tfds.builder_from_directory(f"{tmp_path}/made/1.0.0").info.splits["train"].filepaths
    stored = [
        tf.train.Example.FromString(r.numpy())
        for f in files
        for r in tf.data.TFRecordDataset(str(f))
    ]
    assert batches[0] + batches[1] == [
        e.features.feature["label"].int64_list.value[0] for e in stored
    ]


def test_parts_of_a_split(numbered_dir):
    dataset = numbered(numbered_dir, train_split="train[:70%]", reference_split="train[70%:]")
    assert dataset.num_examples("train[:70%]") == 21 and dataset.num_examples("train") == 30
    trained = labels_of(dataset.train_batches(batch_size=21, seed=0), 3)
    held_out = labels_of(dataset.reference_batches(batch_size=9), 1)
    assert {tuple(sorted(epoch)) for epoch in trained} == {tuple(sorted(trained[0]))}
    assert sorted([*trained[0], *held_out[0]]) == list(range(NUM_NUMBERED))


# What a data set is.


def test_found_by_folder(numbered_dir):
    folder = f"{numbered_dir}/made/1.0.0"
    common = {"num_classes": NUM_NUMBERED, "reference_split": "test"}
    for where in (
        {"name": folder},
        {"name": "made", "data_dir": folder},
        {"name": "made:1.0.0", "data_dir": numbered_dir},
    ):
        assert data.ImageDataset(**where, **common).num_examples("train") == NUM_NUMBERED


def test_class_names(digits_dir, numbered_dir):
    named = data.ImageDataset(
        name="digits", num_classes=10, reference_split="test", data_dir=digits_dir
    )
    assert named.class_names == list("0123456789")
    assert numbered(numbered_dir).class_names == [str(n) for n in range(NUM_NUMBERED)]


def test_features_under_other_names(tmp_path):
    features = {
        "photo": tfds.features.Image(shape=(4, 4, 1)),
        "kind": tfds.features.ClassLabel(names=["cat", "dog"]),
        "id": tfds.features.Scalar(np.int64),
        "depth": tfds.features.Tensor(shape=(4, 4), dtype=np.float32),
    }
    rows = [
        {"photo": np.full((4, 4, 1), kind, np.uint8), "kind": kind, "id": 77, "depth": np.eye(4)}
        for kind in (0, 1, 1)
    ]
    for row in rows:
        row["depth"] = row["depth"].astype(np.float32)
    make(tmp_path, features, train=rows)
    dataset = numbered(str(tmp_path), num_classes=2, reference_split="train")
    assert dataset.class_names == ["cat", "dog"]
    assert sorted(labels_of(dataset.reference_batches(batch_size=3), 1)[0]) == [0, 1, 1]


# Wrong use.


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("digits", "python data_prep/digits.py --data_dir={0}"),
        (
            "imagenet2012",
            "python data_prep/imagenet.py --data_dir={0} --manual_dir=<folder with ILSVRC",
        ),
        (
            "imagenet2012_128",
            "python data_prep/pack.py --data_dir={0} --dataset=imagenet2012 --size=128",
        ),
        ("cifar10", "tfds build cifar10 --data_dir={0}"),
    ],
)
def test_missing_dataset(tmp_path, name, command):
    with pytest.raises(ValueError) as error:
        data.ImageDataset(name=name, data_dir=str(tmp_path))
    assert command.format(tmp_path) in str(error.value)
    assert str(tmp_path / name) in str(error.value).split("Prepare it with")[0]


def test_folder_of_another_dataset(numbered_dir):
    with pytest.raises(ValueError, match=r"name \('digits'\).* is 'made'"):
        data.ImageDataset(name="digits", data_dir=f"{numbered_dir}/made/1.0.0")


def test_unknown_split(numbered_dir):
    message = r"split \('{}'\) must be one of made's splits \['test', 'train'\]"
    dataset = numbered(numbered_dir)
    for split in ("validation", "validation[:10%]"):
        with pytest.raises(ValueError, match=message.format(split).replace("[:10%]", r"\[:10%\]")):
            dataset.num_examples(split)
        with pytest.raises(ValueError, match="must be one of made's splits"):
            dataset.reference_batches(split=split, batch_size=2)
    for option in ("train_split", "reference_split"):
        with pytest.raises(ValueError, match=message.format("valid")):
            numbered(numbered_dir, **{option: "valid"})


def test_empty_split(numbered_dir):
    with pytest.raises(ValueError, match=r"split \('train\[:0\]'\) of made must have examples"):
        numbered(numbered_dir, train_split="train[:0]")


@pytest.mark.parametrize("num_classes", [9, 11, 1000])
def test_number_of_classes(digits_dir, num_classes):
    message = rf"num_classes \({num_classes}\) .* digits has, which is 10: set num_classes=10"
    with pytest.raises(ValueError, match=message):
        data.ImageDataset(
            name="digits", num_classes=num_classes, reference_split="test", data_dir=digits_dir
        )


@both_paths
def test_label_outside_the_classes(numbered_dir, options):
    dataset = numbered(numbered_dir, num_classes=29, **options)
    for batches in (
        lambda: dataset.train_batches(batch_size=NUM_NUMBERED, seed=0),
        lambda: dataset.reference_batches(split="train", batch_size=NUM_NUMBERED),
    ):
        with pytest.raises(
            tf.errors.InvalidArgumentError, match=r"(?s)Label.*29.*num_classes is.*29"
        ):
            next(iter(batches()))


def test_negative_label(tmp_path):
    # TFDS marks unlabelled examples with -1 and accepts that as a class label.
    features = {
        "image": tfds.features.Image(shape=(4, 4, 1)),
        "label": tfds.features.ClassLabel(num_classes=2),
    }
    make(tmp_path, features, train=[{"image": np.zeros((4, 4, 1), np.uint8), "label": -1}])
    dataset = numbered(str(tmp_path), num_classes=2, reference_split="train")
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"(?s)Label.*-1.*num_classes is.*2"):
        list(dataset.reference_batches(batch_size=1))


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ({"label": tfds.features.ClassLabel(num_classes=2)}, "an 8-bit image named 'image'"),
        ({"image": tfds.features.Image(shape=(4, 4, 1))}, "a class label named 'label'"),
    ],
)
def test_dataset_without_image_or_label(tmp_path, features, message):
    row = {"image": np.zeros((4, 4, 1), np.uint8), "label": 0}
    make(tmp_path, features, train=[{key: row[key] for key in features}])
    with pytest.raises(ValueError, match=message):
        numbered(str(tmp_path), reference_split="train")


LOST = [
    (RECORDS, tf.errors.InvalidArgumentError, "{} must hold 5 records, but ends within record 4"),
    (FILES, tf.errors.FailedPreconditionError, "expected to contain 5 elements"),
]
CUT = [LOST[0], (FILES, tf.errors.DataLossError, "truncated record at")]


def one_file(folder):
    """A data set of five records in one file; the file."""
    features = {
        "image": tfds.features.Image(shape=(4, 4, 1)),
        "label": tfds.features.Scalar(np.int64),
    }
    image = np.zeros((4, 4, 1), np.uint8)
    make(folder, features, train=[{"image": image, "label": label} for label in range(5)])
    (path,) = (folder / "made" / "1.0.0").glob("*.tfrecord*")
    return path


@pytest.mark.parametrize(("options", "error", "message"), LOST, ids=["records", "files"])
def test_file_that_lost_records(tmp_path, options, error, message):
    path = one_file(tmp_path)
    records = list(tf.data.TFRecordDataset(str(path)).as_numpy_iterator())
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in records[:-1]:
            writer.write(record)
    dataset = numbered(str(tmp_path), reference_split="train", **options)
    with pytest.raises(error, match=message.format(path)):
        list(dataset.reference_batches(batch_size=1))


@pytest.mark.parametrize(("options", "error", "message"), CUT, ids=["records", "files"])
def test_file_that_was_cut_off(tmp_path, options, error, message):
    path = one_file(tmp_path)
    path.write_bytes(path.read_bytes()[:-20])
    dataset = numbered(str(tmp_path), reference_split="train", **options)
    for batches in (
        dataset.reference_batches(batch_size=1),
        dataset.train_batches(batch_size=5, seed=0),
    ):
        with pytest.raises(error, match=message.format(path)):
            list(batches.take(5))


@every_read
def test_image_that_was_cut_off_is_named(tmp_path, options):
    whole = encode(picture(40, 30), "JPEG", quality=92)
    # Behind its end an image may have anything; the cut one has lost its last lines only.
    files = [whole, whole + b"more", whole[:-40], whole]
    features = {
        "image": tfds.features.Image(encoding_format="jpeg"),
        "label": tfds.features.Scalar(np.int64),
    }
    make(
        tmp_path,
        features,
        train=[{"image": file, "label": label} for label, file in enumerate(files)],
    )
    dataset = data.ImageDataset(
        name="made",
        image_size=8,
        num_classes=4,
        reference_split="train",
        data_dir=str(tmp_path),
        **options,
    )
    (path,) = (tmp_path / "made" / "1.0.0").glob("*.tfrecord*")
    stored = [
        tf.train.Example.FromString(record).features.feature["label"].int64_list.value[0]
        for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator()
    ]
    message = (
        rf"The image in record {stored.index(2)} \(from 0\) of {path} "
        rf"can't be decoded \({len(whole) - 40} bytes\)"
    )
    for batches in (
        dataset.reference_batches(batch_size=1),
        dataset.train_batches(batch_size=1, seed=0),
    ):
        with pytest.raises(tf.errors.InvalidArgumentError, match=message):
            list(batches.take(4))
    dataset.reference_split = f"train[:{stored.index(2)}]"
    assert len(list(dataset.reference_batches(batch_size=1))) == stored.index(2)


def test_random_access_of_remote_files_is_refused(numbered_dir, monkeypatch):
    dataset = numbered(numbered_dir, **RECORDS)
    monkeypatch.setitem(dataset._files["train"], "path", np.array(["gs://bucket/file.tfrecord"]))
    with pytest.raises(
        ValueError, match=r"random_access \(True\) must be .* as gs://bucket/file.tfrecord"
    ):
        dataset.train_batches(batch_size=1, seed=0)


@pytest.mark.parametrize(
    ("option", "value"), [("image_size", 0), ("num_classes", 0), ("shuffle_buffer", 0)]
)
def test_constructor_arguments(numbered_dir, option, value):
    arguments = {"name": "made", "data_dir": numbered_dir, option: value}
    with pytest.raises(ValueError, match=rf"{option} must be at least 1, got {value}"):
        data.ImageDataset(**arguments)


@pytest.mark.parametrize(
    ("option", "value", "rule"),
    [
        ("batch_size", 0, "at least 1"),
        ("start_batch", -1, "at least 0"),
        ("num_shards", 0, "at least 1"),
        ("shard_index", 1, r"in \[0, num_shards\)"),
        ("shard_index", -1, r"in \[0, num_shards\)"),
        ("seed", -1, r"in \[0, 2\*\*63\)"),
    ],
)
def test_stream_arguments(numbered_dir, option, value, rule):
    arguments = {"batch_size": 4, "seed": 0, option: value}
    with pytest.raises(ValueError, match=rf"{option} must be {rule}.*, got {value}"):
        numbered(numbered_dir).train_batches(**arguments)


def test_reference_batch_size(numbered_dir):
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        numbered(numbered_dir).reference_batches(batch_size=0)
