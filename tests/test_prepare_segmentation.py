"""data_prep/segmentation.py on made trees in the published layouts: labels, resuming, damage."""

import io
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import scipy.io
import tensorflow_datasets as tfds
from PIL import Image
from test_data import encode, picture
from test_prepare import contents, write_tree

from data_prep import segmentation
from hamgan.segmentation import augmentation, classes, data, palette

SCRIPT = pathlib.Path(segmentation.__file__)


def png(label, *, indexed=False):
    return palette.encode_png(label, palette.voc_palette() if indexed else None)


def jpeg(number, height=14, width=17):
    return encode(picture(height + number % 3, width), "JPEG")


def label(number, values, height=14, width=17):
    """A label of the size of `jpeg(number)`: rows of these values."""
    rows = np.resize(np.array(values, np.uint8), height + number % 3)
    return np.repeat(rows[:, None], width, axis=1)


def mat(values):
    """One of SBD's files."""
    buffer = io.BytesIO()
    struct = np.zeros((1, 1), [("Segmentation", object), ("Boundaries", object)])
    struct[0, 0] = (values, np.zeros(2))
    scipy.io.savemat(buffer, {"GTcls": struct})
    return buffer.getvalue()


def lines(*names):
    return "\n".join([*names, ""]).encode()


def voc_tree(root):
    """VOC 2012 and SBD: two train images, one of validation, and SBD's four, two of them VOC's."""
    files = {
        "VOC2012/ImageSets/Segmentation/train.txt": lines("t0", "t1"),
        "VOC2012/ImageSets/Segmentation/val.txt": lines("v0"),
        "VOC2012/ImageSets/Segmentation/test.txt": lines("u0"),
        "sbd/train.txt": lines("s1", "t1"),
        "sbd/val.txt": lines("v0", "s0"),
    }
    for number, name in enumerate(("t0", "t1", "v0", "s0", "s1")):
        files[f"VOC2012/JPEGImages/{name}.jpg"] = jpeg(number)
        values = [number, 255, 20]
        if name[0] != "s":
            files[f"VOC2012/SegmentationClass/{name}.png"] = png(
                label(number, values), indexed=True
            )
        if name != "t0":
            files[f"sbd/cls/{name}.mat"] = mat(label(number, [number, 20]))
    write_tree(root, files)
    return str(root / "VOC2012"), str(root / "sbd")


def write(source, data_dir, **options):
    return segmentation.prepare(
        source, data_dir=str(data_dir), **{"num_workers": 1, "shard_bytes": 3000, **options}
    )


def read(folder, split):
    """{id: (image, label)} by TFDS alone."""
    examples = tfds.builder_from_directory(folder).as_dataset(split=split, shuffle_files=False)
    return {
        e["id"].decode(): (e["image"], e["label"][..., 0]) for e in examples.as_numpy_iterator()
    }


def shown(file):
    return np.asarray(Image.open(io.BytesIO(file)).convert("RGB"))


def test_voc_with_sbd(tmp_path):
    voc, sbd = voc_tree(tmp_path)
    folder, written = write(segmentation.voc2012(voc, sbd_dir=sbd), tmp_path / "data")
    assert written
    builder = tfds.builder_from_directory(folder)
    assert set(builder.info.splits) == {"train", "extra", "validation"}
    assert tuple(builder.info.features["label"].names) == classes.VOC
    train, extra = read(folder, "train"), read(folder, "extra")
    assert list(train) == ["t0", "t1"] and list(extra) == ["s0", "s1"]
    for number, name in enumerate(("t0", "t1")):
        np.testing.assert_array_equal(train[name][1], label(number, [number, 255, 20]))
    # VOC's own labels where there are both; SBD's for the others.
    np.testing.assert_array_equal(extra["s0"][1], label(3, [3, 20]))
    np.testing.assert_array_equal(extra["s1"][1], label(4, [4, 20]))
    assert list(read(folder, "train+extra")) == ["t0", "t1", "s0", "s1"]
    source = data.SegmentationDataset(
        name="voc2012_segmentation",
        num_classes=21,
        augmentation=augmentation.HamNetAugmentation(crop_size=9),
        train_split="train+extra",
        data_dir=str(tmp_path / "data"),
    )
    (example,) = source.test_examples().as_numpy_iterator()
    np.testing.assert_array_equal(example["image"], shown(jpeg(2)))
    np.testing.assert_array_equal(example["label"], label(2, [2, 255, 20]))
    batch = next(iter(source.train_batches(batch_size=6, seed=0)))
    assert set(np.unique(batch["label"])) <= {0, 1, 3, 4, 20, 255}


def test_voc_in_hamnet_s_layout(tmp_path):
    voc, _ = voc_tree(tmp_path)
    root = pathlib.Path(voc)
    (root / "SegmentationClass").rename(root / "SegmentationClassAug")
    files = {f"SegmentationClassAug/s{i}.png": png(label(3 + i, [7])) for i in range(2)}
    lists = {
        "train.txt": lines("t0", "t1"),
        "trainaug.txt": lines("s1", "t0", "s0", "t1"),
        "val.txt": lines("v0"),
        "test.txt": lines("u0"),
    }
    write_tree(root, {**files, **{f"datalist/{n}": content for n, content in lists.items()}})
    write_tree(tmp_path / "test", {"u0.jpg": jpeg(0)})
    source = segmentation.voc2012(
        voc, list_dir=str(root / "datalist"), test_dir=str(tmp_path / "test")
    )
    folder, _ = write(source, tmp_path / "data")
    assert {s: list(read(folder, s)) for s in ("train", "extra", "validation", "test")} == {
        "train": ["t0", "t1"],
        "extra": ["s0", "s1"],
        "validation": ["v0"],
        "test": ["u0"],
    }
    assert (read(folder, "extra")["s1"][1] == 7).all()
    assert (read(folder, "test")["u0"][1] == 255).all()


def context_tree(root):
    files = {
        "ImageSets/SegmentationContext/train.txt": lines("b", "a"),
        "ImageSets/SegmentationContext/val.txt": lines("c"),
    }
    for number, name in enumerate("abc"):
        files[f"JPEGImages/{name}.jpg"] = jpeg(number)
        files[f"SegmentationClassContext/{name}.png"] = png(label(number, [0, 1, 59]))
    return write_tree(root / "VOC2010", files)


@pytest.mark.parametrize("background", [False, True])
def test_pascal_context(tmp_path, background):
    source = segmentation.pascal_context(context_tree(tmp_path), background=background)
    folder, _ = write(source, tmp_path / "data")
    builder = tfds.builder_from_directory(folder)
    names = builder.info.features["label"].names
    assert (
        builder.info.name == f"pascal_context_{59 + background}" and len(names) == 59 + background
    )
    examples = read(folder, "train")
    assert list(examples) == ["b", "a"]
    expected = [0, 1, 59] if background else [255, 0, 58]
    np.testing.assert_array_equal(examples["a"][1], label(0, expected))
    assert names[59 if background else 58] == "wood" and names[background] == "aeroplane"


def ade_tree(root, **changes):
    files = {}
    for split, count in (("training", 6), ("validation", 2)):
        for number in range(count):
            name = f"{split}/ADE_{number:08}"
            files[f"images/{name}.jpg"] = jpeg(number)
            files[f"annotations/{name}.png"] = png(label(number, [0, 1, 150, number + 1]))
    files.update(changes)
    return write_tree(root / "ade", files)


def test_ade20k(tmp_path):
    root = ade_tree(tmp_path)
    folder, _ = write(segmentation.ade20k(root), tmp_path / "data")
    train = read(folder, "train")
    assert list(train) == [f"ADE_{number:08}" for number in range(6)]
    for number, (image, labels) in enumerate(train.values()):
        np.testing.assert_array_equal(labels, label(number, [255, 0, 149, number]))
        np.testing.assert_array_equal(image.shape[:2], labels.shape)
    stored = next(
        iter(
            tfds.builder_from_directory(folder).as_dataset(
                split="train", decoders={"image": tfds.decode.SkipDecoding()}
            )
        )
    )
    assert stored["image"].numpy() == jpeg(0)
    assert len(list(pathlib.Path(folder).glob("*train.tfrecord*"))) > 1


def test_numbers_of_images(tmp_path):
    source = segmentation.ade20k(ade_tree(tmp_path))
    with pytest.raises(ValueError, match="split train must have 20,210 images, got 6"):
        write(source, tmp_path / "data", num_images=segmentation.NUM_IMAGES["ade20k"])
    assert sum(segmentation.NUM_IMAGES["voc2012"][s] for s in ("train", "extra")) == 10_582


def test_damage_is_named_and_the_rest_is_kept(tmp_path):
    changes = {
        "images/training/ADE_00000001.jpg": jpeg(1)[:-40],
        "annotations/training/ADE_00000002.png": png(label(2, [151])),
        "annotations/training/ADE_00000003.png": png(label(3, [1], width=9)),
        "annotations/training/ADE_00000004.png": encode(picture(15, 17), "PNG"),
        "annotations/training/ADE_00000005.png": b"",
    }
    root = ade_tree(tmp_path, **changes)
    with pytest.raises(ValueError, match="5 files can't be used") as error:
        write(segmentation.ade20k(root), tmp_path / "data")
    for part in (
        "ADE_00000001: ValueError: .*truncated",
        r"ADE_00000002: ValueError: labels must be among 150 classes or 255, got \[150\]",
        r"ADE_00000003: ValueError: image and label must have one size, got \(14, 17\) and",
        "ADE_00000004: ValueError: labels must be indices .* mode RGB",
        "ADE_00000005: ValueError: Pillow knows no such image format",
    ):
        assert error.match(part)
    folder, _ = write(segmentation.ade20k(root), tmp_path / "data", skip_bad=True)
    assert list(read(folder, "train")) == ["ADE_00000000"]
    assert len((pathlib.Path(folder) / "bad_files.txt").read_text().splitlines()) == 5


def test_going_on_where_it_was(tmp_path, monkeypatch):
    root = ade_tree(tmp_path)
    whole, _ = write(segmentation.ade20k(root), tmp_path / "whole")
    encode_pair, seen = segmentation._encode, []

    def killed(pair, **options):
        seen.append(pair.name)
        if len(seen) == 5:
            raise KeyboardInterrupt
        return encode_pair(pair, **options)

    monkeypatch.setattr(segmentation, "_encode", killed)
    with pytest.raises(KeyboardInterrupt):
        write(segmentation.ade20k(root), tmp_path / "data")
    again = []
    monkeypatch.setattr(
        segmentation,
        "_encode",
        lambda pair, **o: (again.append(pair.name), encode_pair(pair, **o))[1],
    )
    folder, written = write(segmentation.ade20k(root), tmp_path / "data")
    assert written and 0 < len(again) < 8
    for name, content in contents(whole).items():
        if ".tfrecord-" in name:
            assert (pathlib.Path(folder) / name).read_bytes() == content
    again.clear()
    assert write(segmentation.ade20k(root), tmp_path / "data") == (folder, False) and not again


def own_tree(root, **changes):
    turned = Image.fromarray(picture(8, 12))
    exif = turned.getexif()
    exif[0x0112] = 6
    rotated = io.BytesIO()
    turned.save(rotated, "JPEG", exif=exif)
    grey = io.BytesIO()
    Image.fromarray(picture(8, 12)[..., 0]).convert("LA").save(grey, "PNG")
    files = {
        "images/train/a.JPG": rotated.getvalue(),
        "masks/train/a.png": png(np.full([12, 8], 1, np.uint8)),
        "images/train/b.png": grey.getvalue(),
        "masks/train/b.png": png(np.full([8, 12], 2, np.uint8), indexed=True),
        "images/val/c.webp": encode(picture(8, 12), "WEBP"),
        "masks/val/c.png": png(np.full([8, 12], 255, np.uint8)),
        "classes.txt": lines("ground", "tall grass", "tree"),
    }
    files.update(changes)
    return write_tree(root / "My Own", {n: content for n, content in files.items() if content})


def test_own_images(tmp_path):
    folder, _ = write(segmentation.own_folder(own_tree(tmp_path)), tmp_path / "data")
    builder = tfds.builder_from_directory(folder)
    assert builder.info.name == "my_own"
    assert builder.info.features["label"].names == ["ground", "tall grass", "tree"]
    source = data.SegmentationDataset(name="my_own", num_classes=3, data_dir=str(tmp_path / "data"))
    a, b = source.test_examples(split="train").as_numpy_iterator()
    assert a["image"].shape == (12, 8, 3) and (a["label"] == 1).all()  # turned as viewers do
    assert b["image"].shape == (8, 12, 3) and (b["label"] == 2).all()
    np.testing.assert_array_equal(b["image"], np.repeat(picture(8, 12)[..., :1], 3, axis=-1))


def test_own_images_in_one_folder(tmp_path):
    files = {
        "images/a.png": encode(picture(5, 6), "PNG"),
        "masks/a.png": png(np.zeros([5, 6], "u1")),
    }
    root = write_tree(tmp_path / "few", files)
    source = segmentation.own_folder(root, num_classes=2)
    assert source.class_names == ["class 0", "class 1"]
    folder, _ = write(source, tmp_path / "data")
    assert list(tfds.builder_from_directory(folder).info.splits) == ["train"]


@pytest.mark.parametrize(
    "changes, options, message",
    [
        ({"classes.txt": None}, {}, "num_classes must be given where there is no .*classes.txt"),
        ({}, {"num_classes": 4}, "must be the number of names in .*, 3, got 4"),
        ({"masks/train/b.png": None}, {}, "must have its label; in .*masks/train .* called b$"),
        ({"images/train/b.png": None}, {}, "in .*images/train there is none called b$"),
        ({"images/other/d.png": b"d"}, {}, "train and perhaps val and test, got .*other"),
        ({"images/train/b.jpg": b"d"}, {}, "must hold one file called b, got b.png too"),
        ({"classes.txt": lines("a", "a")}, {}, "must name everything once, got 'a' twice"),
        ({"classes.txt": None}, {"num_classes": 255}, r"must be in \[1, 255\), got 255"),
    ],
)
def test_errors_of_own_folders(tmp_path, changes, options, message):
    with pytest.raises(ValueError, match=message):
        segmentation.own_folder(own_tree(tmp_path, **changes), **options)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda root: segmentation.ade20k(str(root / "no")), "source_dir: the folder .*no isn't"),
        (lambda root: segmentation.voc2012(voc_tree(root)[0]), "sbd_dir must be SBD's folder"),
        (lambda root: segmentation.pascal_context(str(root)), "The list .*train.txt isn't there"),
    ],
)
def test_errors_of_sources(tmp_path, make, message):
    with pytest.raises(ValueError, match=message):
        make(tmp_path)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"name": "My"}, "name must be small letters"),
        ({"shard_bytes": 0}, "shard_bytes must be at least 1, got 0"),
        ({"num_workers": 0}, "num_workers must be at least 1, got 0"),
    ],
)
def test_errors_of_arguments(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        write(segmentation.ade20k(ade_tree(tmp_path)), tmp_path / "data", **options)


def test_another_source_under_the_same_name(tmp_path):
    write(segmentation.ade20k(ade_tree(tmp_path)), tmp_path / "data")
    with pytest.raises(ValueError, match="belongs to a data set prepared from"):
        write(segmentation.pascal_context(context_tree(tmp_path)), tmp_path / "data", name="ade20k")


def test_damaged_mat_files(tmp_path):
    path = tmp_path / "a.mat"
    path.write_bytes(mat(label(0, [1]))[:150])
    with pytest.raises(ValueError, match="must hold GTcls.Segmentation"):
        segmentation.read_label(str(path))


@pytest.mark.slow
def test_command_over_two_processes(tmp_path):
    root = own_tree(tmp_path)
    command = [
        sys.executable,
        str(SCRIPT),
        "--dataset=folder",
        f"--source_dir={root}",
        f"--data_dir={tmp_path / 'data'}",
        "--num_workers=2",
    ]
    environment = {"PYTHONPATH": str(SCRIPT.parent.parent), "PATH": ""}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    assert "Wrote my_own/1.0.0 (train 2, validation 1; 3 classes)" in result.stdout
    alone, _ = write(
        segmentation.own_folder(root), tmp_path / "alone", shard_bytes=segmentation.SHARD_BYTES
    )
    written = contents(tmp_path / "data" / "my_own" / "1.0.0")
    assert {n: c for n, c in contents(alone).items() if ".tfrecord" in n}.items() <= written.items()
