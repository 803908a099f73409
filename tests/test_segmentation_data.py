"""hamgan.segmentation.data: the order of the stream, shards, resuming, and every error."""

import io
import pathlib
import shutil

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from PIL import Image
from test_data import encode, make

from hamgan import stateless
from hamgan.data import prepared
from hamgan.segmentation import augmentation, data, palette

NUM_CLASSES, NUM_EXAMPLES = 40, 23
NAMES = [f"class {i}" for i in range(NUM_CLASSES)]


def features(**changes):
    return {
        "image": tfds.features.Image(shape=(None, None, 3)),
        "label": tfds.features.LabeledImage(shape=(None, None, 1), labels=NAMES),
        "id": tfds.features.Text(),
        **changes,
    }


def example(number):
    """Every pixel's label is the number; so is the colour."""
    height, width = 12 + number % 3, 10 + number % 4
    label = np.full([height, width, 1], number, np.uint8)
    label[0, 0] = 255
    image = np.repeat(np.full_like(label, number * 5), 3, axis=-1)
    return {"image": image, "label": label, "id": f"image {number}"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    rows = [example(number) for number in range(NUM_EXAMPLES)]
    splits = {"train": rows[:18], "extra": rows[18:], "validation": rows[:7]}
    return make(tmp_path_factory.mktemp("made"), features(), num_shards=3, **splits)


def crop(image, label, key):
    """A pixel of each, and the key."""
    noise = stateless.uniform([1, 1, 3], key[None])[0]
    return tf.cast(image[1:2, 1:2], tf.float32) + noise, tf.cast(label[1:2, 1:2], tf.int32)


def dataset(folder, **options):
    defaults = dict(num_classes=NUM_CLASSES, augmentation=crop, train_split="train+extra")
    return data.SegmentationDataset(name="made", data_dir=folder, **{**defaults, **options})


def read(source, count, **options):
    """(labels [count, B], pixels [count, B])"""
    batches = source.train_batches(**{"batch_size": 4, "seed": 3, **options}).take(count)
    batches = list(batches.as_numpy_iterator())
    labels = np.stack([batch["label"][:, 0, 0] for batch in batches])
    return labels, np.stack([batch["image"][:, 0, 0] for batch in batches])


def test_an_epoch_has_every_example_once(folder):
    source = dataset(folder)
    assert source.num_examples("train+extra") == NUM_EXAMPLES
    labels, pixels = read(source, 3 * NUM_EXAMPLES, batch_size=1)
    epochs = labels.reshape(3, NUM_EXAMPLES)
    for epoch in epochs:
        assert sorted(epoch) == list(range(NUM_EXAMPLES))
    assert (epochs[0] != epochs[1]).any() and (epochs[1] != epochs[2]).any()
    np.testing.assert_array_equal(pixels[..., 0].astype(int) // 5, labels)


def test_a_function_of_seed_and_position(folder):
    labels, pixels = read(dataset(folder), 12)
    tf.random.set_seed(7)
    again = read(dataset(folder), 12)
    np.testing.assert_array_equal(again[0], labels)
    np.testing.assert_array_equal(again[1], pixels)
    for seed in (4, 3 + 2**31, 3 + 2**62):
        other = read(dataset(folder), 12, seed=seed)
        assert (other[0] != labels).any()
        assert not np.isin(other[1] % 1, pixels % 1).any()
    # The same examples in another epoch are cut by other numbers.
    noise = pixels - labels[..., None] * 5
    assert len(np.unique(noise.reshape(-1, 3), axis=0)) == labels.size


@pytest.mark.parametrize("start", [1, 5, 6, 11])
def test_resuming(folder, start):
    labels, pixels = read(dataset(folder), 13)
    rest = read(dataset(folder), 13 - start, start_batch=start)
    np.testing.assert_array_equal(rest[0], labels[start:])
    np.testing.assert_array_equal(rest[1], pixels[start:])


@pytest.mark.parametrize("start", [0, 3])
def test_shards_are_rows_of_the_global_batch(folder, start):
    labels, pixels = read(dataset(folder), 8)
    for shard in range(2):
        part = read(
            dataset(folder),
            8 - start,
            batch_size=2,
            start_batch=start,
            shard_index=shard,
            num_shards=2,
        )
        rows = slice(2 * shard, 2 * shard + 2)
        np.testing.assert_array_equal(part[0], labels[start:, rows])
        np.testing.assert_array_equal(part[1], pixels[start:, rows])


def test_published_augmentation_in_the_stream(folder):
    source = dataset(folder, augmentation=augmentation.HamNetAugmentation(crop_size=17))
    batch = next(iter(source.train_batches(batch_size=3, seed=0)))
    assert batch["image"].shape == (3, 17, 17, 3) and batch["label"].shape == (3, 17, 17)
    for label in batch["label"].numpy():
        assert len(set(label.ravel()) - {255}) == 1


def test_examples_in_stored_order(folder):
    source = dataset(folder)
    assert source.class_names == NAMES
    stored = [
        int(e["label"][1, 1, 0])
        for e in tfds.builder_from_directory(source.info.data_dir).as_dataset(
            split="validation", shuffle_files=False
        )
    ]
    examples = list(source.test_examples().as_numpy_iterator())
    for number, got in zip(stored, examples, strict=True):
        expected = example(number)
        np.testing.assert_array_equal(got["image"], expected["image"])
        np.testing.assert_array_equal(got["label"], expected["label"][..., 0])
        assert got["id"].decode() == expected["id"]
    parts = [source.test_examples(shard_index=i, num_shards=3) for i in range(3)]
    ids = [[e["id"] for e in part.as_numpy_iterator()] for part in parts]
    assert ids == [[e["id"] for e in examples[i::3]] for i in range(3)]


def test_jpegs_are_decoded_as_pillow_does(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (24, 30, 3), dtype=np.uint8)
    file = encode(picture, "JPEG")
    row = {"image": io.BytesIO(file), "label": np.zeros([24, 30, 1], np.uint8), "id": ""}
    jpeg = features(image=tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg"))
    folder = make(tmp_path, jpeg, train=[row])
    source = dataset(folder, train_split="train", test_split="train")
    (got,) = source.test_examples().as_numpy_iterator()
    np.testing.assert_array_equal(got["image"], np.asarray(Image.open(io.BytesIO(file))))


def test_any_single_label_image_will_do(tmp_path):
    made = {
        "photo": tfds.features.Image(shape=(None, None, 3)),
        "regions": tfds.features.Image(shape=(None, None, 1)),
    }
    rows = [{"photo": example(2)["image"], "regions": example(2)["label"]}]
    source = dataset(make(tmp_path, made, train=rows), train_split="train", test_split="train")
    (got,) = source.test_examples().as_numpy_iterator()
    assert got["label"][1, 1] == 2 and got["id"] == b""
    assert source.class_names[:3] == ["0", "1", "2"]


def stored(tmp_path, **row):
    rows = [{**example(1), **row}]
    return make(tmp_path, features(), train=rows)


def first(folder):
    source = dataset(folder, train_split="train", test_split="train")
    return next(iter(source.test_examples()))


def test_labels_outside_of_the_classes(tmp_path):
    label = example(1)["label"]
    label[3, 3] = NUM_CLASSES
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"must be in \[0, 40\) or 255, got"):
        first(stored(tmp_path, label=label))


def test_sizes_that_differ(tmp_path):
    with pytest.raises(tf.errors.InvalidArgumentError, match="must have one size"):
        first(stored(tmp_path, label=example(1)["label"][1:]))


def test_palette_files_as_they_are(tmp_path):
    file = palette.encode_png(example(1)["label"][..., 0], palette.voc_palette())
    with pytest.raises(tf.errors.OpError, match="must be a grey PNG of 8 bits"):
        first(stored(tmp_path, label=io.BytesIO(file)))


def test_damaged_files(folder, tmp_path):
    copy = pathlib.Path(shutil.copytree(folder, tmp_path / "copy"))
    path = sorted(copy.rglob("*validation*tfrecord*"))[0]
    content = bytearray(path.read_bytes())
    content[14:40] = b"\xff" * 26
    path.write_bytes(content)
    with pytest.raises(tf.errors.OpError, match="is damaged"):
        list(dataset(str(copy)).test_examples())
    path.write_bytes(content[:50])
    with pytest.raises(tf.errors.OpError, match="it was cut off"):
        list(dataset(str(copy)).test_examples())


@pytest.mark.parametrize(
    "options, message",
    [
        (
            {"num_classes": 21},
            "num_classes must be the number of classes that made has, which is 40",
        ),
        ({"num_classes": 0}, r"num_classes must be in \[1, 255\), got 0"),
        ({"train_split": "tain"}, r"split \('tain'\) must be one of made's splits"),
        (
            {"test_split": "validation[:0]"},
            r"split \('validation\[:0\]'\) of made must have examples",
        ),
    ],
)
def test_errors_of_datasets(folder, options, message):
    with pytest.raises(ValueError, match=message):
        dataset(folder, **options)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"start_batch": -1}, "start_batch must be at least 0, got -1"),
        ({"num_shards": 0}, "num_shards must be at least 1, got 0"),
        ({"num_shards": 2, "shard_index": 2}, r"shard_index must be in .* = \[0, 2\), got 2"),
        ({"seed": 2**63}, "seed must be in"),
    ],
)
def test_errors_of_streams(folder, options, message):
    with pytest.raises(ValueError, match=message):
        dataset(folder).train_batches(**{"batch_size": 1, "seed": 0, **options})
    if "shard_index" in options:
        with pytest.raises(ValueError, match=message):
            dataset(folder).test_examples(shard_index=2, num_shards=2)


def test_training_needs_an_augmentation(folder):
    with pytest.raises(ValueError, match="augmentation must be given for training"):
        dataset(folder, augmentation=None).train_batches(batch_size=1, seed=0)


def test_features_that_are_missing(tmp_path):
    made = {"image": tfds.features.Image(shape=(None, None, 3))}
    folder = make(tmp_path, made, train=[{"image": example(1)["image"]}])
    with pytest.raises(ValueError, match="must have an 8-bit label image of one channel"):
        dataset(folder, train_split="train", test_split="train")


def test_remote_files(folder, monkeypatch):
    files = prepared.list_files(dataset(folder).info, "train")
    remote = {**files, "path": np.char.add("gs://bucket", files["path"])}
    monkeypatch.setattr(prepared, "list_files", lambda *_: remote)
    with pytest.raises(ValueError, match="must be local TFRecord files, got gs://bucket"):
        dataset(folder)


def test_missing_dataset(tmp_path):
    with pytest.raises(ValueError, match="isn't prepared"):
        dataset(str(tmp_path))
