"""ImageNet from made archives and folders, against TFDS's own builder; nothing outside an archive
is ever read.
"""

import functools
import hashlib
import io
import json
import os
import pathlib
import pickle
import subprocess
import sys
import tarfile

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core.utils import shard_utils
from test_data import encode, picture
from test_prepare import DATA_PREP, contents, read, records_of, saved, write_tree

from data_prep import imagenet, packing, sources

# One image of the CMYK list of TFDS's builder, and the one PNG; both under the name of a JPEG.
CMYK, PNG = "n01739381_1309.JPEG", "n02105855_2933.JPEG"
TRAIN = {
    "n01440764": ["n01440764_18.JPEG", "n01440764_7.JPEG", "n01440764_10027.JPEG"],
    "n01739381": [CMYK, "n01739381_2.JPEG"],
    "n02105855": [PNG, "n02105855_1.JPEG"],
    "n15075141": ["n15075141_54.JPEG"],
}
VALIDATION = [f"ILSVRC2012_val_{number:08}.JPEG" for number in range(1, 6)]
COUNTS = {"train": 8, "validation": 5}
FOUR = shard_utils.ShardConfig(num_shards=4)


def image_of(name):
    seed = int(hashlib.md5(name.encode()).hexdigest()[:2], 16)
    image = picture(20 + seed % 30, 20 + seed // 8)
    if name in (CMYK, PNG):  # smooth colours, so that encoding them anew changes little
        y, x = np.mgrid[:40, :50]
        smooth = Image.fromarray(
            np.stack([50 + x * 3, 200 - y * 3, 80 + x], axis=-1).astype(np.uint8)
        )
        return saved(smooth.convert("CMYK"), "JPEG") if name == CMYK else saved(smooth, "PNG")
    return encode(image, "JPEG")


def tar_of(files):
    """An archive as bytes; of {name: content}, or of TarInfo objects with no content of their
    own.
    """
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            if isinstance(content, tarfile.TarInfo):
                archive.addfile(content)
            else:
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


def class_tars():
    return {
        f"{synset}.tar": tar_of({name: image_of(name) for name in names})
        for synset, names in TRAIN.items()
    }


def write_archives(folder, train=None, validation=None):
    # The validation archive isn't in order of its names.
    validation = validation or {name: image_of(name) for name in reversed(VALIDATION)}
    return write_tree(
        folder,
        {
            "ILSVRC2012_img_train.tar": tar_of(train or class_tars()),
            "ILSVRC2012_img_val.tar": tar_of(validation),
        },
    )


def validation_synsets():
    path = tfds.core.tfds_path("datasets/imagenet2012/validation_labels.txt")
    return dict(zip(VALIDATION, path.read_text().split(), strict=False))


def write_folders(folder, by_class=False):
    files = {
        f"train/{synset}/{name}": image_of(name)
        for synset, names in TRAIN.items()
        for name in names
    }
    for name, synset in validation_synsets().items():
        files[f"val/{synset}/{name}" if by_class else f"val/{name}"] = image_of(name)
    return write_tree(folder, files)


def prepare(data_dir, **options):
    return imagenet.prepare(
        data_dir=str(data_dir), **{"num_images": COUNTS, "num_workers": 1, **options}
    )


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    return write_archives(tmp_path_factory.mktemp("archives"))


@pytest.fixture(scope="module")
def prepared(archives, tmp_path_factory):
    """The data set's folder, from the archives, in four files a split."""
    folder, written = prepare(
        tmp_path_factory.mktemp("data"), manual_dir=archives, shard_config=FOUR
    )
    assert written
    return folder


def test_files_are_those_of_tfds_s_own_builder(archives, prepared, tmp_path):
    builder = tfds.builder("imagenet2012", data_dir=str(tmp_path))
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(
            manual_dir=archives, num_shards=4, try_download_gcs=False
        )
    )
    ours, theirs = contents(prepared), contents(builder.data_dir)
    assert set(ours) - set(theirs) == {"prepared_from.json"}
    assert ours["features.json"] == theirs["features.json"]
    splits = [json.loads(files["dataset_info.json"])["splits"] for files in (ours, theirs)]
    assert splits[0] == splits[1]
    assert len(records_of(prepared)) == 8
    for name in records_of(prepared):
        assert messages_in(prepared, name) == messages_in(builder.data_dir, name)


def messages_in(folder, name):
    """The records of a file as messages: TFDS's bytes come in any order of their features."""
    return [
        tf.train.Example.FromString(record)
        for record in tf.data.TFRecordDataset(os.path.join(folder, name)).as_numpy_iterator()
    ]


def test_records(prepared):
    builder = tfds.builder_from_directory(prepared)
    assert builder.info.full_name == "imagenet2012/5.1.0"
    names = builder.info.features["label"].names
    raw = {"image": tfds.decode.SkipDecoding()}
    seen = {}
    for split, label_of in (
        (
            "train",
            {name: synset for synset, synset_names in TRAIN.items() for name in synset_names},
        ),
        ("validation", validation_synsets()),
    ):
        for example in builder.as_dataset(split=split, decoders=raw).as_numpy_iterator():
            name = example["file_name"].decode()
            assert names[example["label"]] == label_of[name]
            seen[name] = example["image"]
    assert len(seen) == 13
    for name, stored in seen.items():
        if name in (CMYK, PNG):  # stored as RGB JPEG, whatever the file was
            assert (
                Image.open(io.BytesIO(stored)).format == "JPEG"
                and Image.open(io.BytesIO(stored)).mode == "RGB"
            )
            original = tf.io.decode_image(image_of(name), channels=3).numpy().astype(int)
            assert np.abs(tf.io.decode_jpeg(stored).numpy().astype(int) - original).mean() < 2
        else:
            assert stored == image_of(name)


def test_other_processes_encode_the_same(tmp_path):
    builder = tfds.builder("imagenet2012", data_dir=str(tmp_path))
    encode_image = functools.partial(imagenet._encode, builder)
    sent = pickle.loads(pickle.dumps(encode_image))
    write_tree(tmp_path, {"a.JPEG": image_of("a")})
    image = sources.Stored(str(tmp_path / "a.JPEG"), "n01440764_7.JPEG", 3)
    one, other = (
        tf.train.Example.FromString(encode_image(image)),
        tf.train.Example.FromString(sent(image)),
    )
    assert one == other and one.features.feature["label"].int64_list.value[0] == 3


@pytest.mark.parametrize("by_class", [False, True])
def test_folders_give_the_same_records_as_archives(prepared, tmp_path, by_class):
    tree = write_folders(tmp_path / "tree", by_class)
    folder, written = prepare(tmp_path / "data", image_dir=tree, shard_config=FOUR)
    assert written
    assert contents(folder) == contents(prepared)


def test_second_run_does_nothing(prepared, archives):
    before = {path: path.stat().st_mtime_ns for path in pathlib.Path(prepared).iterdir()}
    data_dir = str(pathlib.Path(prepared).parent.parent)
    assert prepare(data_dir, manual_dir="/nowhere") == (prepared, False)
    assert {path: path.stat().st_mtime_ns for path in pathlib.Path(prepared).iterdir()} == before


def test_interrupted_run_goes_on_even_from_the_other_source_s_files(
    archives, prepared, tmp_path, monkeypatch
):
    encode_image, encoded = imagenet._encode, []

    def interrupted(builder, image):
        if len(encoded) == 5:
            raise KeyboardInterrupt
        encoded.append(image.name)
        return encode_image(builder, image)

    monkeypatch.setattr(imagenet, "_encode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare(tmp_path, manual_dir=archives, shard_config=FOUR)
    encoded.clear()

    def counted(builder, image):
        encoded.append(image.name)
        return encode_image(builder, image)

    monkeypatch.setattr(imagenet, "_encode", counted)
    folder, _ = prepare(tmp_path, manual_dir=archives, shard_config=FOUR)
    assert contents(folder) == contents(prepared)
    assert len(encoded) == 13 - 4  # two files of two were finished


def test_packed_from_the_dataset_and_from_the_tree_are_the_same_squares(prepared, tmp_path):
    tree = write_tree(
        tmp_path / "tree",
        {f"train/{s}/{name}": image_of(name) for s, names in TRAIN.items() for name in names},
    )
    options = {
        "data_dir": str(tmp_path),
        "decode": sources.decode_as_stored,
        "size": 16,
        "num_workers": 1,
    }
    data_dir = str(pathlib.Path(prepared).parent.parent)
    one, _ = packing.pack(sources.Prepared("imagenet2012", data_dir), name="one", **options)
    other, _ = packing.pack(sources.Tree(tree), name="other", **options)
    images, labels, feature = read(one)
    assert feature.num_classes == 1000 and len(read(one, "validation")[1]) == 5
    synsets = [feature.names[label] for label in labels]
    others, other_labels, other_feature = read(other)
    other_synsets = [other_feature.names[label] for label in other_labels]
    # Two were encoded anew on the way into imagenet2012.
    odd = {"n01739381", "n02105855"}
    stored = sorted(
        (s, image.tobytes()) for s, image in zip(synsets, images, strict=True) if s not in odd
    )
    expected = sorted(
        (s, image.tobytes()) for s, image in zip(other_synsets, others, strict=True) if s not in odd
    )
    assert stored == expected and sorted(synsets) == sorted(other_synsets)


# What isn't ImageNet.


def link(kind, name, target):
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return {name: member}


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
@pytest.mark.parametrize("where", ["train", "class", "validation"])
def test_links_of_archives_are_not_followed(tmp_path, kind, where):
    secret = tmp_path / "secret.JPEG"
    secret.write_bytes(image_of("secret"))
    train, validation = class_tars(), {name: image_of(name) for name in VALIDATION}
    if where == "train":
        train |= link(kind, "n01443537.tar", str(secret))
    elif where == "class":
        train["n15075141.tar"] = tar_of(link(kind, "n15075141_54.JPEG", str(secret)))
    else:
        validation |= link(kind, VALIDATION[-1], "../secret.JPEG")
    archives = write_archives(tmp_path / "archives", train, validation)
    with pytest.raises(
        ValueError, match="is something else, a link to .*secret.JPEG.*isn't the original archive"
    ):
        prepare(tmp_path / "data", manual_dir=archives)
    assert not list((tmp_path / "data").rglob("*.tfrecord*"))


@pytest.mark.parametrize(
    "name", ["../n01440764_1.JPEG", "/tmp/n01440764_1.JPEG", "..", "n01440764/n01440764_1.JPEG"]
)
def test_members_outside_are_refused(tmp_path, name):
    train = {**class_tars(), "n01440764.tar": tar_of({name: image_of("any")})}
    with pytest.raises(
        ValueError,
        match="n01440764.tar must hold ordinary files without folders; '.*' is something",
    ):
        prepare(tmp_path / "data", manual_dir=write_archives(tmp_path / "archives", train))
    assert sorted(path.name for path in tmp_path.iterdir()) in (["archives"], ["archives", "data"])


def test_archive_that_is_cut_off(tmp_path):
    archives = write_archives(tmp_path / "archives")
    path = tmp_path / "archives" / "ILSVRC2012_img_train.tar"
    path.write_bytes(path.read_bytes()[:14_000])
    with pytest.raises(ValueError, match="is damaged or cut off .*: get it again"):
        prepare(tmp_path / "data", manual_dir=archives)


def test_missing_archive(tmp_path, archives):
    os.link(f"{archives}/ILSVRC2012_img_train.tar", tmp_path / "ILSVRC2012_img_train.tar")
    with pytest.raises(
        ValueError, match="after registration. Not there: .*/ILSVRC2012_img_val.tar"
    ):
        prepare(tmp_path / "data", manual_dir=str(tmp_path))


def test_one_source(tmp_path, archives):
    for both in ({}, {"manual_dir": archives, "image_dir": archives}):
        with pytest.raises(
            ValueError, match=r"One of manual_dir \(.*\) and image_dir \(.*\) must be given"
        ):
            prepare(tmp_path, **both)


def test_incomplete(tmp_path, archives):
    with pytest.raises(
        ValueError,
        match="train split must have 1,281,167 images; here are 8, and none of 996 classes",
    ):
        prepare(tmp_path, manual_dir=archives, num_images=imagenet.NUM_IMAGES)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (
            {"train/cats/n01440764_1.JPEG": b""},
            r"train must hold folders like n01440764; it holds 'cats'",
        ),
        (
            {"train/n01440764/photo.jpg": b""},
            r"class n01440764 must hold images named like .* it has 'photo.jpg'",
        ),
        ({"train/n01440764/n01443537_1.JPEG": b""}, r"it has 'n01443537_1.JPEG'"),
        (
            {"val/me.JPEG": b""},
            r"val must hold images named like ILSVRC2012_val_00000001.JPEG; it has 'me.JPEG'",
        ),
        (
            {"val/n01440764/ILSVRC2012_val_00000006.JPEG": b""},
            r"val/n01440764 must hold images of that class; ILSVRC",
        ),
    ],
)
def test_folders_that_are_not_imagenet(tmp_path, extra, message):
    tree = write_folders(tmp_path / "tree")
    write_tree(tmp_path / "tree", extra)
    with pytest.raises(ValueError, match=message):
        prepare(tmp_path / "data", image_dir=tree)


def test_folder_of_the_wrong_level(tmp_path):
    tree = write_folders(tmp_path / "tree")
    for wrong in (f"{tree}/train", str(tmp_path), str(tmp_path / "nowhere")):
        with pytest.raises(
            ValueError, match=r"image_dir \(.*\) must be a folder that holds train and val; it has"
        ):
            prepare(tmp_path / "data", image_dir=wrong)


def test_unreadable_images_are_named(tmp_path):
    tree = write_folders(tmp_path / "tree")
    (tmp_path / "tree/train/n01440764/n01440764_7.JPEG").write_bytes(b"")
    whole = (tmp_path / "tree/train/n01440764/n01440764_18.JPEG").read_bytes()
    (tmp_path / "tree/train/n01440764/n01440764_18.JPEG").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "tree/val" / VALIDATION[2]).unlink()
    (tmp_path / "tree/val" / VALIDATION[2]).symlink_to("gone.JPEG")
    with pytest.raises(ValueError, match="3 files can't be used") as error:
        prepare(tmp_path / "data", image_dir=tree)
    assert "n01440764_18.JPEG: InvalidArgumentError" in str(error.value)
    assert "n01440764_7.JPEG: ValueError: not a JPEG" in str(error.value)
    assert f"{VALIDATION[2]}: NotFoundError" in str(error.value)
    assert "--skip_bad" not in str(error.value)  # ImageNet is complete, or it isn't ImageNet


MEMORY = """
import re, sys
from data_prep import imagenet
imagenet.prepare(data_dir=sys.argv[1], manual_dir=sys.argv[2], num_workers=1,
                 num_images={"train": int(sys.argv[3]), "validation": 5})
# Not getrusage, whose maximum begins with the memory of the process that started this one.
print(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
"""


@pytest.mark.slow
@pytest.mark.skipif(
    not os.path.exists("/proc/self/status"), reason="needs Linux's account of a process's memory"
)
def test_memory_does_not_grow_with_the_archive(tmp_path):
    jpeg = b"\xff\xd8" + bytes(10**6) + b"\xff\xd9"
    peaks = []
    for count in (10, 500):
        images = tar_of({f"n01440764_{number}.JPEG": jpeg for number in range(count)})
        archives = write_archives(tmp_path / f"archives{count}", {"n01440764.tar": images})
        result = subprocess.run(
            [sys.executable, "-c", MEMORY, str(tmp_path / f"data{count}"), archives, str(count)],
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join([str(DATA_PREP), str(DATA_PREP.parent)]),
            },
            capture_output=True,
            text=True,
        )
        assert result.returncode == 0, result.stderr
        peaks.append(int(result.stdout.split()[-1]) / 1024)
    assert peaks[1] - peaks[0] < 100, peaks  # MiB; the archive grew by 490 MB
