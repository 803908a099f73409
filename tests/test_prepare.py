"""data_prep: folders of images and TFDS data sets packed into squares, interrupted, damaged and
repeated.
"""

import io
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from PIL import Image
from test_data import encode, make, oracle, picture

from data_prep import folder, packing, sources
from hamgan import data

DATA_PREP = pathlib.Path(folder.__file__).parent
SIZE = 8
PART = 4 * (SIZE * SIZE * 3 + 70)  # the most that a file holds here: four images


def write_tree(root, files):
    """{relative path: bytes} as files."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return str(root)


def small_tree(root, classes=("cat", "dog", "owl"), per_class=5):
    files = {}
    for c, name in enumerate(classes):
        for i in range(per_class):
            files[f"{name}/{i}.png"] = encode(picture(12 + i, 10 + c), "PNG")
    return write_tree(root, files)


def pack_tree(image_dir, data_dir, **options):
    defaults = {
        "name": "made_8",
        "decode": sources.decode_photo,
        "size": SIZE,
        "shard_bytes": PART,
        "num_workers": 1,
    }
    return packing.pack(
        sources.Tree(str(image_dir)), data_dir=str(data_dir), **{**defaults, **options}
    )


def read(dataset_folder, split="train"):
    """(images, labels, label feature) by TFDS alone."""
    builder = tfds.builder_from_directory(dataset_folder)
    examples = list(builder.as_dataset(split=split, shuffle_files=False).as_numpy_iterator())
    return (
        np.stack([e["image"] for e in examples]),
        [e["label"] for e in examples],
        builder.info.features["label"],
    )


def contents(dataset_folder):
    """{file name: bytes} of all files of a data set."""
    return {path.name: path.read_bytes() for path in pathlib.Path(dataset_folder).glob("*.*")}


def records_of(dataset_folder):
    return {
        name: content for name, content in contents(dataset_folder).items() if ".tfrecord-" in name
    }


# One image.


def test_square_is_training_s_crop_and_sampling():
    for height, width in ((97, 61), (61, 97), (7, 7), (50, 51)):
        image = picture(height, width)
        expected = (oracle(image, 16) + 1) * 127.5
        for decode in (sources.decode_photo, sources.decode_as_stored):
            square = decode(encode(image, "PNG"), 16)
            assert square.shape == (16, 16, 3) and square.dtype == np.uint8
            assert np.abs(square - expected).max() < 0.502


def png16(image):
    return tf.io.encode_png(image).numpy()


def photo(mode):
    return Image.fromarray(picture(40, 40)).convert(mode)


def saved(image, form, **options):
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


FORMATS = {
    # name: (file, the RGB pixels that it shows, how far off a lossy format may be on average)
    # 4: TensorFlow's fast inverse DCT, by which training sees JPEGs, is worst at this quality.
    # (That they are the same pixels: tests/test_photos.py.)
    "jpeg": lambda: (saved(photo("RGB"), "JPEG", quality=100, subsampling=0), photo("RGB"), 4),
    "grey jpeg": lambda: (saved(photo("L"), "JPEG", quality=100), photo("L").convert("RGB"), 4),
    "cmyk jpeg": lambda: (
        saved(photo("CMYK"), "JPEG", quality=100),
        photo("CMYK").convert("RGB"),
        4,
    ),
    "webp": lambda: (saved(photo("RGB"), "WEBP", lossless=True), photo("RGB"), 0),
    "grey png": lambda: (saved(photo("L"), "PNG"), photo("L").convert("RGB"), 0),
    "palette png": lambda: (saved(photo("P"), "PNG"), photo("P").convert("RGB"), 0),
    "bilevel png": lambda: (saved(photo("1"), "PNG"), photo("1").convert("RGB"), 0),
}


@pytest.mark.parametrize("name", FORMATS)
def test_formats(name):
    encoded, shown, tolerance = FORMATS[name]()
    difference = np.abs(
        sources.decode_photo(encoded, 40).astype(int) - np.asarray(shown).astype(int)
    )
    assert difference.mean() <= tolerance
    assert tolerance or difference.max() == 0


def test_transparent_pixels_are_white():
    image = np.zeros([4, 4, 4], np.uint8)
    image[..., 0] = 200
    image[..., 3] = [[0, 255, 0, 255]] * 4
    expected = np.where(image[..., 3:] == 0, 255, image[..., :3])
    np.testing.assert_array_equal(
        sources.decode_photo(saved(Image.fromarray(image), "PNG"), 4), expected
    )
    np.testing.assert_array_equal(
        sources.decode_photo(saved(Image.fromarray(image), "WEBP", lossless=True), 4), expected
    )
    half = np.full([4, 4, 2], [0, 128], np.uint8)  # grey with alpha: 0 * 128/255 + 255 * 127/255
    assert (
        np.abs(sources.decode_photo(saved(Image.fromarray(half), "PNG"), 4).astype(int) - 127).max()
        <= 1
    )
    palette = Image.fromarray(np.array([[0, 1]] * 2, np.uint8), "P")
    palette.putpalette([9, 8, 7, 6, 5, 4])
    square = sources.decode_photo(saved(palette, "PNG", transparency=1), 2)
    assert square.tolist() == [[[9, 8, 7], [255, 255, 255]]] * 2


@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bits_are_scaled(channels):
    levels = np.array([0, 257, 25700, 65535], np.uint16)
    image = np.broadcast_to(levels[:, None, None], [4, 4, channels])
    square = sources.decode_photo(png16(image), 4)
    assert np.abs(square.astype(int) - np.array([0, 1, 100, 255])[:, None, None]).max() == 0


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation(orientation):
    upright = Image.fromarray(picture(24, 24))
    stored = {  # how a camera stores the upright picture under this orientation
        1: upright,
        2: upright.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        3: upright.transpose(Image.Transpose.ROTATE_180),
        4: upright.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
        5: upright.transpose(Image.Transpose.TRANSPOSE),
        6: upright.transpose(Image.Transpose.ROTATE_90),
        7: upright.transpose(Image.Transpose.TRANSVERSE),
        8: upright.transpose(Image.Transpose.ROTATE_270),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    for form, options in (("JPEG", {"quality": 100, "subsampling": 0}), ("PNG", {})):
        square = sources.decode_photo(saved(stored, form, exif=exif, **options), 24)
        assert np.abs(square.astype(int) - np.asarray(upright).astype(int)).mean() <= 4
    packed = sources.decode_as_stored(saved(stored, "PNG", exif=exif), 24)
    np.testing.assert_array_equal(packed, np.asarray(upright))


# A tree.


def test_folder_per_class(tmp_path, capsys):
    tree = small_tree(tmp_path / "tree")
    (tmp_path / "tree" / "notes.txt").write_text("not an image")
    (tmp_path / "tree" / ".hidden.png").write_text("not an image")
    dataset_folder, written = pack_tree(tree, tmp_path / "data")
    assert (
        f"not images by their suffix: 1 files, such as {tree}/notes.txt" in capsys.readouterr().out
    )
    assert written and dataset_folder == str(tmp_path / "data" / "made_8" / "1.0.0")
    images, labels, feature = read(dataset_folder)
    assert feature.names == ["cat", "dog", "owl"]
    stored = sorted(
        (int(label), image.tobytes()) for image, label in zip(images, labels, strict=True)
    )
    expected = sorted(
        (c, sources.decode_photo(encode(picture(12 + i, 10 + c), "PNG"), SIZE).tobytes())
        for c in range(3)
        for i in range(5)
    )
    assert stored == expected
    # Four files of 15 images, none with more than four, classes mixed.
    assert sorted(records_of(dataset_folder)) == [
        f"made_8-train.tfrecord-{i:05}-of-00004" for i in range(4)
    ]
    assert labels != sorted(labels)
    assert set(contents(dataset_folder)) - set(records_of(dataset_folder)) == {
        "dataset_info.json",
        "features.json",
        "images.json",
        "label.labels.txt",
        "prepared_from.json",
        "source_files.json.gz",
    }


def test_raw_bytes_are_stored(tmp_path):
    image = picture(SIZE, SIZE)
    dataset_folder, _ = pack_tree(
        write_tree(tmp_path / "tree", {"a.png": encode(image, "PNG")}), tmp_path
    )
    (record,) = tf.data.TFRecordDataset(
        f"{dataset_folder}/made_8-train.tfrecord-00000-of-00001"
    ).as_numpy_iterator()
    example = tf.train.Example.FromString(record)
    assert example.features.feature["image"].bytes_list.value[0] == image.tobytes()
    feature = tfds.builder_from_directory(dataset_folder).info.features["image"]
    assert feature.shape == (SIZE, SIZE, 3) and feature.np_dtype == np.uint8
    assert type(feature) is tfds.features.Tensor


def test_images_in_one_folder_are_one_class(tmp_path):
    files = {f"{i}.PNG": encode(picture(9, 9 + i), "PNG") for i in range(3)}
    dataset_folder, _ = pack_tree(write_tree(tmp_path / "tree", files), tmp_path / "data")
    _, labels, feature = read(dataset_folder)
    assert labels == [0, 0, 0] and feature.num_classes == 1


def test_splits(tmp_path):
    small_tree(tmp_path / "tree" / "train")
    small_tree(tmp_path / "tree" / "val", classes=["dog"], per_class=2)
    dataset_folder, _ = pack_tree(tmp_path / "tree", tmp_path / "data")
    assert len(read(dataset_folder)[1]) == 15
    _, labels, feature = read(dataset_folder, "validation")
    assert labels == [1, 1] and feature.names == ["cat", "dog", "owl"]


def test_many_classes(tmp_path):
    pixel = encode(picture(2, 2), "PNG")
    tree = write_tree(tmp_path / "tree", {f"{c:04}/x.png": pixel for c in range(1500)})
    dataset_folder, _ = pack_tree(tree, tmp_path / "data", shard_bytes=10**9)
    _, labels, feature = read(dataset_folder)
    assert feature.num_classes == 1500 and sorted(labels) == list(range(1500))


PNG = encode(picture(9, 9), "PNG")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"cat/1.png": PNG, "dog/notes.txt": b""}, r"there are none in dog"),
        (
            {"cat/1.png": PNG, "1.png": PNG},
            r"one class.* or a folder per class; it holds both: 1.png and cat",
        ),
        ({"set/train/1.png": PNG, "set/val/1.png": PNG}, r"one level deeper: set/train, set/val"),
        (
            {"train/cat/1.png": PNG, "val/cow/1.png": PNG},
            r"val must have the classes of train only; it also has cow",
        ),
        (
            {"train/cat/1.png": PNG, "val/cat/1.png": PNG, "valid/cat/1.png": PNG},
            "one validation folder",
        ),
        ({"notes.txt": b""}, r"must hold images, or folders of images"),
    ],
)
def test_trees_that_are_refused(tmp_path, files, message):
    with pytest.raises(ValueError, match=message):
        pack_tree(write_tree(tmp_path / "tree", files), tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_folder_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match=r"image_dir \(.*nowhere\) must be a folder"):
        pack_tree(tmp_path / "nowhere", tmp_path / "data")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "My Photos"}, r"name \('My Photos'\) must be small letters"),
        ({"size": 0}, r"size \(0\) must be at least 1"),
        ({"num_workers": 0}, r"num_workers \(0\) must be at least 1"),
        ({"shard_bytes": 0}, r"shard_bytes \(0\) must be at least 1"),
    ],
)
def test_arguments(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        pack_tree(small_tree(tmp_path / "tree"), tmp_path / "data", **options)


def test_name_of_a_folder():
    assert sources.Tree("/home/me/My Photos (2)/").name == "my_photos_2"


# Damage.


def test_the_reason_why_an_image_cannot_be_decoded_is_told():
    whole = encode(picture(60, 60), "PNG")
    with pytest.raises(ValueError, match="damaged, a PNG of 1,000 bytes .*: Invalid PNG data"):
        sources.decode_photo(whole[:1000], 8)


@pytest.fixture
def damaged(tmp_path):
    """A tree with four files that can't be decoded."""
    tree = small_tree(tmp_path / "tree")
    jpeg = encode(picture(60, 60), "JPEG")
    write_tree(
        tmp_path / "tree",
        {
            "cat/cut.jpg": jpeg[: len(jpeg) // 2],
            "dog/empty.png": b"",
            "owl/text.jpeg": b"no image at all",
        },
    )
    (tmp_path / "tree" / "owl" / "unreadable.jpg").symlink_to(tmp_path / "gone.jpg")
    return tree


BAD = {"cat/cut.jpg", "dog/empty.png", "owl/text.jpeg", "owl/unreadable.jpg"}


@pytest.mark.parametrize("decode", [sources.decode_photo, sources.decode_as_stored])
def test_bad_files_stop_the_job_and_are_named(damaged, tmp_path, decode):
    with pytest.raises(ValueError, match="(?s)4 files can't be used.*--skip_bad") as error:
        pack_tree(damaged, tmp_path / "data", decode=decode)
    dataset_folder = tmp_path / "data" / "made_8" / "1.0.0"
    listed = (dataset_folder / "bad_files.txt").read_text().splitlines()
    assert {line.split(": ")[0] for line in listed} == BAD
    (cut,) = [line for line in listed if line.startswith("cat/cut.jpg")]
    assert re.search(r"it is damaged, a JPEG of [\d,]+ bytes that can't be decoded: .*JPEG", cut)
    assert all(name in str(error.value) for name in BAD)
    assert not (dataset_folder / "dataset_info.json").exists()


def test_skipping_bad_files_repeats_no_work(damaged, tmp_path, monkeypatch, capsys):
    with pytest.raises(ValueError, match="4 files"):
        pack_tree(damaged, tmp_path / "data")
    with monkeypatch.context() as patched:
        patched.setattr(packing, "_write_part", None)  # nothing is left to write
        dataset_folder, written = pack_tree(damaged, tmp_path / "data", skip_bad=True)
    assert written and len(read(dataset_folder)[1]) == 15
    assert {
        line.split(": ")[0]
        for line in contents(dataset_folder)["bad_files.txt"].decode().splitlines()
    } == BAD
    output = capsys.readouterr().out
    assert "Left out 4 bad files" in output and all(name in output for name in BAD)


def test_lost_file_is_written_again(damaged, tmp_path):
    with pytest.raises(ValueError, match="4 files"):
        pack_tree(damaged, tmp_path / "data")
    lost = tmp_path / "data" / "made_8" / "1.0.0" / "made_8-train.tfrecord-00001-of-00005"
    content = lost.read_bytes()
    lost.unlink()
    pack_tree(damaged, tmp_path / "data", skip_bad=True)
    assert lost.read_bytes() == content


def test_repaired_files_are_read_again(damaged, tmp_path):
    with pytest.raises(ValueError, match="4 files"):
        pack_tree(damaged, tmp_path / "data")
    for name in BAD:
        path = tmp_path / "tree" / name
        path.unlink()
        path.write_bytes(PNG)
    dataset_folder, _ = pack_tree(damaged, tmp_path / "data")
    assert len(read(dataset_folder)[1]) == 19
    assert "bad_files.txt" not in contents(dataset_folder)


def test_repaired_files_are_not_left_out(damaged, tmp_path):
    with pytest.raises(ValueError, match="4 files"):
        pack_tree(damaged, tmp_path / "data")
    (tmp_path / "tree" / "cat" / "cut.jpg").write_bytes(PNG)
    dataset_folder, _ = pack_tree(damaged, tmp_path / "data", skip_bad=True)
    assert len(read(dataset_folder)[1]) == 16
    listed = contents(dataset_folder)["bad_files.txt"].decode().splitlines()
    assert {line.split(": ")[0] for line in listed} == BAD - {"cat/cut.jpg"}


def test_nothing_but_bad_files(tmp_path):
    tree = write_tree(tmp_path / "tree", {"a.png": b"", "b.png": b""})
    with pytest.raises(
        ValueError, match="'train' of made_8 must have images; all of its files are bad"
    ):
        pack_tree(tree, tmp_path / "data", skip_bad=True)


def test_a_service_that_is_down_makes_no_image_bad(tmp_path):
    def decode_photo(encoded, size):
        raise tf.errors.UnavailableError(None, None, "try again later")

    with pytest.raises(tf.errors.UnavailableError):
        pack_tree(
            small_tree(tmp_path / "tree"), tmp_path / "data", decode=decode_photo, skip_bad=True
        )


# Again, and after a kill.


def test_second_run_does_nothing(tmp_path):
    tree = small_tree(tmp_path / "tree")
    dataset_folder, _ = pack_tree(tree, tmp_path / "data")
    before = {path: path.stat().st_mtime_ns for path in pathlib.Path(dataset_folder).iterdir()}
    shutil.rmtree(tree)  # which isn't even listed
    assert pack_tree(tree, tmp_path / "data") == (dataset_folder, False)
    assert {
        path: path.stat().st_mtime_ns for path in pathlib.Path(dataset_folder).iterdir()
    } == before


@pytest.mark.parametrize("finished", [True, False])
def test_other_settings_are_refused(tmp_path, finished):
    tree = small_tree(tmp_path / "tree")
    dataset_folder, _ = pack_tree(tree, tmp_path / "data")
    if not finished:
        os.remove(f"{dataset_folder}/dataset_info.json")
    before = contents(dataset_folder)
    with pytest.raises(ValueError, match=r"'size': 8.* isn't .*'size': 6.*choose another --name"):
        pack_tree(tree, tmp_path / "data", size=6)
    assert contents(dataset_folder) == before


def test_dataset_of_somebody_else_is_refused(tmp_path):
    write_tree(tmp_path / "data" / "made_8" / "1.0.0", {"dataset_info.json": b"{}"})
    with pytest.raises(ValueError, match="wasn't prepared by this job: choose another --name"):
        pack_tree(small_tree(tmp_path / "tree"), tmp_path / "data")


def test_interrupted_run_goes_on_with_what_is_missing(tmp_path):
    tree = small_tree(tmp_path / "tree")
    whole, _ = pack_tree(tree, tmp_path / "whole")
    decoded = []

    def decode_photo(encoded, size):  # the same name: the same decoding
        if len(decoded) == 9:
            raise KeyboardInterrupt
        decoded.append(encoded)
        return sources.decode_photo(encoded, size)

    with pytest.raises(KeyboardInterrupt):
        pack_tree(tree, tmp_path / "cut", decode=decode_photo)
    assert not (tmp_path / "cut" / "made_8" / "1.0.0" / "dataset_info.json").exists()
    again = []

    def decode_photo(encoded, size):  # noqa: F811
        again.append(encoded)
        return sources.decode_photo(encoded, size)

    resumed, _ = pack_tree(tree, tmp_path / "cut", decode=decode_photo)
    assert contents(resumed) == contents(whole)
    # 15 images in files of 4, 4, 3 and 4: two files were finished.
    assert len(again) == 15 - 8


def test_changed_tree_is_written_anew(tmp_path):
    tree = small_tree(tmp_path / "tree")
    first, _ = pack_tree(tree, tmp_path / "data")
    # As a kill right before the end leaves it, but for the notes.
    os.remove(f"{first}/dataset_info.json")
    for name in ("cat/0.png", "cat/1.png", "cat/2.png"):
        os.remove(f"{tree}/{name}")
    second, _ = pack_tree(tree, tmp_path / "data")
    assert len(read(second)[1]) == 12
    assert sorted(records_of(second)) == [
        f"made_8-train.tfrecord-{i:05}-of-00003" for i in range(3)
    ]


# Full disks, and buckets.


def test_free_space_is_checked_first(tmp_path, monkeypatch, capsys):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=2000))
    tree = small_tree(tmp_path / "tree")
    with pytest.raises(ValueError, match="0.00 GB free, and 0.00 GB are to be written: make space"):
        pack_tree(tree, tmp_path / "data")
    assert "made_8/1.0.0: train 15 images, 0.00 GB in 4 files" in capsys.readouterr().out
    assert not list(tmp_path.glob("data/**/*.tfrecord*"))
    pack_tree(tree, tmp_path / "data", size=2, name="made_2")  # 15 * 82 bytes do fit


class ImageNetSized:
    """A source of which nothing gets read."""

    identity, name, class_names, ignored = "imagenet2012/5.1.0", "imagenet2012", ["a", "b"], ()
    num_examples = {"train": 1_281_167, "validation": 50_000}

    def examples(self, split, start, stop):
        return ()


def test_imagenet_s_size_is_said_first(tmp_path, monkeypatch, capsys):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=60 * 10**9))
    with pytest.raises(
        ValueError, match="60.00 GB free, and 65.52 GB are to be written: make space, or choose"
    ):
        packing.pack(ImageNetSized(), data_dir=str(tmp_path), decode=sources.decode_as_stored)
    # 1,331,167 * 128 * 128 * 3 bytes are 65.43 GB; 199 MB a file.
    output = capsys.readouterr().out
    assert (
        "imagenet2012_128/1.0.0: train 1,281,167, validation 50,000 images, 65.52 GB in 329 files; "
        "60.00 GB" in output
    )


@pytest.mark.skipif(
    not os.path.exists("/dev/full"), reason="needs /dev/full, a device without space"
)
def test_disk_that_fills_up(tmp_path):
    tree = small_tree(tmp_path / "tree")
    unfinished = tmp_path / "data" / "made_8" / "1.0.0" / "unfinished"
    unfinished.mkdir(parents=True)
    third = unfinished / "made_8-train.tfrecord-00002-of-00004"
    third.symlink_to("/dev/full")
    with pytest.raises(
        ValueError, match="no space left for .*00002-of-00004. Finished parts are kept: make space"
    ):
        pack_tree(tree, tmp_path / "data")
    assert not third.is_symlink()
    kept = records_of(unfinished.parent)
    assert len(kept) == 2
    dataset_folder, _ = pack_tree(tree, tmp_path / "data")
    whole, _ = pack_tree(tree, tmp_path / "whole")
    assert contents(dataset_folder) == contents(whole)


def test_remote_output(tmp_path):
    tree = small_tree(tmp_path / "tree")
    local, _ = pack_tree(tree, tmp_path / "data")
    # ram:// is a file system that only tf.io.gfile knows, as gs:// is.
    remote, written = pack_tree(tree, "ram://prepared")
    assert written and remote == "ram://prepared/made_8/1.0.0"
    remote_contents = {}
    for name in tf.io.gfile.listdir(remote):
        with tf.io.gfile.GFile(f"{remote}/{name}", "rb") as file:
            remote_contents[name] = file.read()
    assert remote_contents == contents(local)
    assert pack_tree(tree, "ram://prepared") == (remote, False)


def test_remote_images(tmp_path):
    tree = pathlib.Path(small_tree(tmp_path / "tree"))
    for path in tree.rglob("*.png"):
        tf.io.gfile.makedirs(f"ram://images/{path.parent.name}")
        tf.io.gfile.copy(str(path), f"ram://images/{path.parent.name}/{path.name}")
    local, _ = pack_tree(tree, tmp_path / "local")
    remote, _ = pack_tree("ram://images", tmp_path / "remote")
    assert records_of(local) == records_of(remote)


# A TFDS data set.


@pytest.fixture(scope="module")
def photos_dir(tmp_path_factory):
    features = {
        "image": tfds.features.Image(),
        "label": tfds.features.ClassLabel(names=["dog", "cat"]),
        "file_name": tfds.features.Text(),
    }
    photos = [
        encode(picture(h, w), "JPEG", quality=92)
        for h, w in ((97, 61), (61, 97), (64, 64), (50, 51), (90, 90))
    ]
    photos.append(saved(Image.fromarray(picture(50, 60)).convert("CMYK"), "JPEG", quality=90))
    photos += [encode(picture(70, 40, grey=True), "JPEG"), encode(picture(33, 44), "PNG")]
    rows = [
        {"image": photo, "label": i % 2, "file_name": f"{i}.JPEG"} for i, photo in enumerate(photos)
    ]
    cut = {"image": photos[0][:-400], "label": 0, "file_name": "cut.JPEG"}
    unlabelled = {"image": photos[0], "label": -1, "file_name": "unlabelled.JPEG"}
    folder = tmp_path_factory.mktemp("photos")
    return make(
        folder,
        features,
        num_shards=3,
        train=rows,
        validation=rows[:4],
        damaged=[*rows, cut],
        test=[unlabelled] * 3,
    )


def pack_photos(photos_dir, data_dir, splits, **options):
    source = sources.Prepared("made", photos_dir, splits)
    defaults = {"name": "made_16", "decode": sources.decode_as_stored, "size": 16, "num_workers": 1}
    return packing.pack(source, data_dir=str(data_dir), **{**defaults, **options})


def test_packed_equals_on_the_fly(photos_dir, tmp_path):
    packed, _ = pack_photos(photos_dir, tmp_path, ["train", "validation"], shard_bytes=3 * 900)
    assert sum("train" in name for name in records_of(packed)) == 3
    on_the_fly = data.ImageDataset(name="made", image_size=16, num_classes=2, data_dir=photos_dir)
    for split, count in (("train", 8), ("validation", 4)):
        images, labels, feature = read(packed, split)
        expected = next(iter(on_the_fly.reference_batches(batch_size=100, split=split)))
        assert feature.names == ["dog", "cat"] and len(labels) == count
        np.testing.assert_array_equal(labels, expected["label"])
        assert np.abs(images - (expected["image"].numpy() + 1) * 127.5).max() <= 1


def test_truncated_jpeg_of_a_dataset_is_named(photos_dir, tmp_path):
    with pytest.raises(
        ValueError,
        match=r"1 files can't be used.*\n  damaged\[\d\] cut.JPEG: ValueError: it is damaged",
    ):
        pack_photos(photos_dir, tmp_path, ["damaged"])
    packed, _ = pack_photos(photos_dir, tmp_path, ["damaged"], skip_bad=True)
    assert len(read(packed, "damaged")[1]) == 8


def test_other_splits_are_another_dataset(photos_dir, tmp_path):
    pack_photos(photos_dir, tmp_path, ["train"])
    with pytest.raises(ValueError, match=r"(?s)prepared from .*\[train\].*choose another"):
        pack_photos(photos_dir, tmp_path, ["train", "validation"])


def test_split_without_labels(photos_dir, tmp_path):
    with pytest.raises(
        ValueError, match="unlabelled.JPEG: ValueError: it has no label: leave its split out"
    ):
        pack_photos(photos_dir, tmp_path, ["test"])


def test_truncated_file_of_a_dataset(photos_dir, tmp_path):
    copied = shutil.copytree(photos_dir, tmp_path / "copy")
    path = sorted(copied.glob("made/1.0.0/*-train.tfrecord-*"))[1]
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(tf.errors.DataLossError):
        pack_photos(copied, tmp_path / "data", ["train"])


def test_packed_dataset_is_not_packed_again(tmp_path):
    dataset_folder, _ = pack_tree(small_tree(tmp_path / "tree"), tmp_path / "data")
    with pytest.raises(ValueError, match="packed already|must have an 8-bit image"):
        sources.Prepared(dataset_folder, None)


def test_unknown_split(photos_dir):
    with pytest.raises(ValueError, match=r"splits \(\['dev'\]\) must be among made's"):
        sources.Prepared("made", photos_dir, ["train", "dev"])


# As commands.


def run(script, *arguments, **options):
    return subprocess.run(
        [sys.executable, str(DATA_PREP / script), *arguments],
        capture_output=True,
        text=True,
        **options,
    )


@pytest.mark.slow
@pytest.mark.parametrize("script", ["folder.py", "pack.py", "imagenet.py"])
def test_help_teaches(script):
    result = run(script, "--help")
    text = " ".join(result.stdout.split())
    assert f"python data_prep/{script}" in text and "goes on where it was" in text
    assert "--data_dir: Folder of TFDS data sets" in text
    assert "--num_workers: " in text and ("--skip_bad: " in text.replace("[no]", "")) == (
        script != "imagenet.py"
    )


@pytest.mark.slow
def test_commands(tmp_path):
    small_tree(tmp_path / "My Pictures")
    first = run(
        "folder.py", "--image_dir=My Pictures", "--data_dir=data", "--size=16", cwd=tmp_path
    )
    assert first.returncode == 0, first.stderr
    assert (
        "Wrote my_pictures_16/1.0.0 (train 15; 3 classes): data/my_pictures_16/1.0.0"
        in first.stdout
    )
    assert "15/15" in first.stderr and "images/s" in first.stderr  # progress
    second = run(
        "folder.py", "--image_dir=My Pictures", "--data_dir=data", "--size=16", cwd=tmp_path
    )
    assert "Found, nothing to do: my_pictures_16/1.0.0" in second.stdout

    wrong = run("pack.py", "--dataset=my_dogs", "--data_dir=data", cwd=tmp_path)
    assert wrong.returncode == 1 and "ERROR: Data set 'my_dogs' isn't prepared" in wrong.stderr
    assert "Traceback" not in wrong.stderr
    neither = run("pack.py", "--data_dir=data", cwd=tmp_path)
    assert "ERROR: One of dataset (None) and image_dir (None) must be given" in neither.stderr
    packed = run("pack.py", "--image_dir=My Pictures", "--data_dir=data", "--size=4", cwd=tmp_path)
    assert packed.returncode == 0, packed.stderr
    assert len(read(str(tmp_path / "data" / "my_pictures_4" / "1.0.0"))[1]) == 15


JOB = """
import sys, time
from data_prep import packing, sources
def main():
    tree = sources.Tree(sys.argv[1])
    packing.pack(tree, name="made_64", data_dir=sys.argv[2], decode=sources.decode_photo, size=64,
                 shard_bytes=20 * 13_000, num_workers=2)
if __name__ == "__main__":
    main()
"""


@pytest.mark.slow
def test_killed_job_goes_on_and_gives_the_same_bytes(tmp_path):
    tree = small_tree(tmp_path / "tree", per_class=300)
    (tmp_path / "job.py").write_text(JOB)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(DATA_PREP), str(DATA_PREP.parent)]),
    }

    def command(where):
        return [sys.executable, str(tmp_path / "job.py"), tree, str(tmp_path / where)]

    folder = tmp_path / "cut" / "made_64" / "1.0.0"
    job = subprocess.Popen(
        command("cut"), env=environment, stderr=subprocess.DEVNULL, start_new_session=True
    )
    while len(list(folder.glob("unfinished/*.json"))) < 5:
        assert job.poll() is None
        time.sleep(0.01)
    job.send_signal(signal.SIGKILL)
    job.wait()
    deadline = time.monotonic() + 60
    with pytest.raises(ProcessLookupError):  # once its workers have ended by themselves
        while time.monotonic() < deadline:
            os.killpg(job.pid, 0)
            time.sleep(0.1)
    finished = {path: path.stat().st_mtime_ns for path in folder.glob("*.tfrecord*")}
    assert 5 <= len(finished) < 40 and not (folder / "dataset_info.json").exists()
    subprocess.run(command("cut"), env=environment, check=True)
    noted = [path for path, time_ns in finished.items() if path.stat().st_mtime_ns == time_ns]
    assert len(noted) >= 5  # kept, not written again
    subprocess.run(command("whole"), env=environment, check=True)
    assert contents(folder) == contents(tmp_path / "whole" / "made_64" / "1.0.0")


DYING_JOB = """
import os, sys
from data_prep import packing, sources
def decode(encoded, size):
    os._exit(9)
def main():
    packing.pack(sources.Tree(sys.argv[1]), name="made", data_dir=sys.argv[2], decode=decode,
                 size=8, shard_bytes=800, num_workers=2)
if __name__ == "__main__":
    main()
"""


@pytest.mark.slow
def test_killed_worker_is_reported(tmp_path):
    (tmp_path / "job.py").write_text(DYING_JOB)
    result = subprocess.run(
        [
            sys.executable,
            str(tmp_path / "job.py"),
            small_tree(tmp_path / "tree"),
            str(tmp_path / "data"),
        ],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(DATA_PREP), str(DATA_PREP.parent)])},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1
    assert (
        "A process was killed, perhaps for want of memory; num_workers (2) must be fewer"
        in result.stderr
    )
