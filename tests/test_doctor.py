"""The checks before a run: each finds what it is for, names it, says what to do, and leaves the
others running.
"""

import functools
import importlib.metadata
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import types

import forked
import made
import numpy as np
import psutil
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from helpers import two_replicas
from PIL import Image
from test_data import encode, make
from test_data import picture as photograph

from data_prep import digits, digits_features
from hamgan import data
from hamgan.checks import doctor, images, labels, machine
from hamgan.checks import environment as check_environment
from hamgan.checks.outcome import Checkup, fail, ok, skip, warn
from hamgan.evaluation.protocol import Protocol
from hamgan.experiment import Experiment
from hamgan.loop import Schedule
from hamgan.trainer import Trainer

ROOT = pathlib.Path(__file__).parent.parent
NAMES = ["cat", "dog", "owl"]
PNG = encode(photograph(9, 12), "PNG")


def make_labelled(folder, labels, *, names=NAMES, pictures=None, num_shards=1):
    """A data set of small pictures with these labels."""
    features = {"image": tfds.features.Image(), "label": tfds.features.ClassLabel(names=names)}
    pictures = pictures or [PNG] * len(labels)
    rows = [
        {"image": picture, "label": label} for picture, label in zip(pictures, labels, strict=True)
    ]
    return make(folder, features, num_shards=num_shards, train=rows)


def open_made(folder, **options):
    defaults = dict(
        name="made", image_size=8, num_classes=3, reference_split="train", data_dir=str(folder)
    )
    return data.ImageDataset(**{**defaults, **options})


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Thirty images of three classes in three files: eight of cat, ten of dog, twelve of owl."""
    return make_labelled(
        tmp_path_factory.mktemp("whole"), [0] * 8 + [1] * 10 + [2] * 12, num_shards=3
    )


@pytest.fixture
def damaged(whole, tmp_path):
    """A copy of it, and its files."""
    shutil.copytree(whole, tmp_path / "data")
    return tmp_path / "data", sorted((tmp_path / "data").rglob("*.tfrecord*"))


def examine(dataset, picture=None, **settings):
    """{name: outcome} of the checks of a data set; with the path of a picture also of those that
    decode images.
    """
    checkup = Checkup()
    found = ok("", value=dataset)
    files = checkup.check("files", images.files, found)
    scans = checkup.check("records", images.records, found, files, progress=False, **settings)
    checkup.check("training labels", labels.check, found, scans, training=True, **settings)
    checkup.check("reference labels", labels.check, found, scans, training=False, **settings)
    checkup.check("memory", machine.memory, found, files)
    if picture:
        checkup.check("images", images.sample, found, files, number=100, progress=False)
        checkup.check("picture", images.picture, found, scans, path=str(picture))
    return {outcome.name: outcome for outcome in checkup.outcomes}


def statuses(outcomes):
    return {name: outcome.status for name, outcome in outcomes.items()}


def failures(outcomes):
    return {name for name, outcome in outcomes.items() if outcome.status == "fail"}


# The data set.


def test_whole_data_set(whole, tmp_path):
    found = examine(open_made(whole), tmp_path / "doctor.png")
    assert statuses(found) == {**dict.fromkeys(found, "ok"), "reference labels": "skip"}
    assert found["training labels"].message == "3 classes: cat 8, dog 10, owl 12"
    assert found["records"].message == "all 30 read (files: 3)"
    assert found["images"].message.startswith("30 decoded")
    width, height = Image.open(tmp_path / "doctor.png").size
    assert width > 8 * 64 and height > 3 * 64


def test_picture_has_a_row_per_class(tmp_path):
    colours = [(200, 0, 0), (0, 200, 0), (0, 0, 200)]
    pictures = [encode(np.full((9, 9, 3), colour, np.uint8), "PNG") for colour in colours] * 20
    folder = make_labelled(tmp_path, [0, 1, 2] * 20, pictures=pictures)
    dataset = open_made(folder)
    scans = images.records(dataset, images.files(dataset).value, progress=False).value
    images.picture(dataset, scans, path=str(tmp_path / "grid.png"))
    grid = np.asarray(Image.open(tmp_path / "grid.png").convert("RGB"))
    rows = [{tuple(pixel) for pixel in line} & set(colours) for line in grid]
    order = [colour for row in rows if len(row) == 1 for colour in row]
    assert order == sorted(order, key=colours.index) and set(order) == set(colours)
    assert all(len(row) <= 1 for row in rows)
    # Eight in a row.
    line = grid[next(i for i, row in enumerate(rows) if row)]
    edges = np.diff([tuple(pixel) in colours for pixel in line].copy(), prepend=False).sum()
    assert edges == 2 * 8


def test_quick_reads_samples(whole, tmp_path, monkeypatch):
    monkeypatch.setattr(images, "_QUICK_RECORDS", 9)
    monkeypatch.setattr(images, "_SAMPLED_FILES", 2)
    found = examine(open_made(whole), quick=True)
    assert not failures(found)
    assert found["records"].message.startswith("10 records at the beginning of 2 of 3 files")
    assert "sample" in found["training labels"].message


def test_all_zero_labels(tmp_path):
    folder = make_labelled(tmp_path / "data", [0] * 12)
    for quick in (False, True):
        found = examine(open_made(folder), quick=quick)
        assert failures(found) == {"training labels"}
        assert "all 12 labels are 0 ('cat')" in found["training labels"].message
        assert "folder per class" in found["training labels"].remedy


def test_missing_class(tmp_path):
    folder = make_labelled(tmp_path / "data", [0, 1] * 6)
    found = examine(open_made(folder))
    assert failures(found) == {"training labels"}
    assert "1 of 3 classes have no image in train: owl" in found["training labels"].message
    # A split for reference alone may lack one.
    reference = labels.check(
        open_made(folder, train_split="train[:50%]"), found["records"].value, training=False
    )
    assert reference.status == "warn" and "owl" in reference.message


def test_wrong_folder_level(tmp_path):
    folder = make_labelled(tmp_path / "data", [0, 1] * 6, names=["train", "val"])
    found = examine(open_made(folder, num_classes=2))
    assert failures(found) == {"training labels"}
    assert "classes are called train, val, as splits are" in found["training labels"].message
    # With the number of classes that there should be, the data set can't even be opened.
    experiment = Experiment(dataset=functools.partial(open_made, folder))
    checkup = Checkup()
    outcome = checkup.check("data set", lambda: images.present(experiment, data_dir=folder))
    assert (
        outcome.status == "fail"
        and "classes are called train, val, as splits are" in outcome.message
    )


def test_one_class_may_be_meant(tmp_path):
    folder = make_labelled(tmp_path / "data", [0] * 6, names=["everything"])
    found = examine(open_made(folder, num_classes=1))
    assert not failures(found)
    assert found["training labels"].status == "warn"
    assert "one class only, 'everything'" in found["training labels"].message
    assert "folder level" in found["training labels"].remedy


def test_label_outside_the_classes(tmp_path):
    folder = make_labelled(tmp_path / "data", [0, 1, 2, -1])
    found = examine(open_made(folder))
    assert "1 of 4 labels are outside [0, 3), e.g. -1" in found["training labels"].message
    assert "unlabelled" in found["training labels"].remedy


def test_labels_of_a_part_of_a_split(whole):
    dataset = open_made(whole, train_split="train[:40%]", reference_split="train[40%:]")
    scans = images.records(dataset, images.files(dataset).value, progress=False).value
    counts = []
    for training in (True, False):
        message = labels.check(dataset, scans, training=training).message
        counts.append([int(number) for number in re.findall(r"(\d+)(?:,|$)", message)])
    assert sum(counts[0]) == 12 and np.sum(counts, axis=0).tolist() == [8, 10, 12]
    # Two pieces, both of which have records of the same file.
    dataset = open_made(whole, train_split="train[:10%]+train[20%:]")
    message = labels.check(dataset, scans, training=True).message
    assert sum(int(number) for number in re.findall(r"(\d+)(?:,|$)", message)) == 27


def test_truncated_file(damaged, tmp_path):
    folder, paths = damaged
    with open(paths[1], "r+b") as file:
        file.truncate(paths[1].stat().st_size - 5)
    found = examine(open_made(folder), tmp_path / "doctor.png")
    assert failures(found) == {"files", "records", "images"}
    assert "bytes, but" in found["files"].message
    for name in ("records", "images"):
        assert paths[1].name in found[name].message
        assert not any(path.name in found[name].message for path in (paths[0], paths[2]))
    # Without reading everything it shows too.
    assert "files" in failures(examine(open_made(folder), quick=True))


def test_file_that_lost_a_record(damaged, tmp_path):
    folder, paths = damaged
    records = list(tf.data.TFRecordDataset(str(paths[2])).as_numpy_iterator())
    with tf.io.TFRecordWriter(str(paths[2])) as writer:
        for record in records[:-1]:
            writer.write(record)
    found = examine(open_made(folder), tmp_path / "doctor.png")
    assert failures(found) == {"files", "records", "images"}
    assert (
        f"{paths[2]} has {len(records) - 1} records instead of {len(records)}"
        in found["records"].message
    )


def test_corrupted_record(damaged, tmp_path):
    folder, paths = damaged
    content = bytearray(paths[0].read_bytes())
    content[len(content) // 2] ^= 255
    paths[0].write_bytes(content)
    found = examine(open_made(folder))
    assert "records" in failures(found) and "files" not in failures(found)
    assert paths[0].name in found["records"].message


def test_missing_file(damaged, tmp_path):
    folder, paths = damaged
    paths[0].unlink()
    found = examine(open_made(folder), tmp_path / "doctor.png")
    assert failures(found) == {"files"}
    assert f"{paths[0]} isn't there" in found["files"].message and "copy" in found["files"].remedy
    assert found["records"].message.endswith("read (files: 2)")


def test_empty_file(damaged, tmp_path):
    folder, paths = damaged
    paths[0].write_bytes(b"")
    found = examine(open_made(folder))
    assert failures(found) == {"files"} and f"{paths[0]} is empty" in found["files"].message


def test_no_file_at_all(damaged, tmp_path):
    folder, paths = damaged
    for path in paths:
        path.unlink()
    found = examine(open_made(folder), tmp_path / "doctor.png")
    assert found.pop("files").status == "fail"
    assert set(statuses(found).values()) == {"skip"}
    assert found["images"].message == "it needs what files couldn't give"


def test_undecodable_image(tmp_path):
    pictures = [PNG] * 11 + [b"\x89PNG but no more"]
    folder = make_labelled(tmp_path / "data", [0, 1, 2] * 4, pictures=pictures)
    found = examine(open_made(folder), tmp_path / "doctor.png")
    assert failures(found) == {"images"}
    (path,) = (tmp_path / "data").rglob("*.tfrecord*")
    assert re.search(
        rf"1 of the first 12 images can't be read: record \d+ of {re.escape(str(path))}: ",
        found["images"].message,
    )
    index = int(re.search(r"record (\d+)", found["images"].message)[1])
    record = list(tf.data.TFRecordDataset(str(path)).as_numpy_iterator())[index]
    assert pictures[-1] in record


def test_images_of_one_colour(tmp_path):
    blank = encode(np.full((9, 9, 3), 70, np.uint8), "PNG")
    for name, pictures, status in (
        ("all", [blank] * 6, "fail"),
        ("one", [blank] + [PNG] * 5, "warn"),
    ):
        folder = make_labelled(tmp_path / name, [0, 1, 2] * 2, pictures=pictures)
        dataset = open_made(folder)
        found = images.sample(dataset, images.files(dataset).value, number=100, progress=False)
        assert found.status == status and "one colour" in found.message


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda image: image * 127.5, r"values of 30 images go from .* not within \[-1, 1\]"),
        (lambda image: image * np.nan, r"from nan to nan, not within"),
        (lambda image: (image + 1) / 255 - 1, "next to no contrast"),
    ],
)
def test_values(whole, change, message):
    dataset = open_made(whole)
    batches = dataset.reference_batches
    dataset.reference_batches = lambda **kwargs: batches(**kwargs).map(
        lambda batch: {"image": change(batch["image"])}
    )
    outcome = images.sample(dataset, images.files(dataset).value, number=100, progress=False)
    assert outcome.status == "fail" and re.search(message, outcome.message)


def imagenet(name="imagenet2012", **counts):
    splits = {split: types.SimpleNamespace(num_examples=count) for split, count in counts.items()}
    return types.SimpleNamespace(
        name=name,
        num_classes=1000,
        class_names=[f"n{number:08}" for number in range(1000)],
        info=types.SimpleNamespace(name=name, splits=splits),
    )


def test_imagenet_is_complete(whole):
    assert images.imagenet(imagenet(train=1_281_167, validation=50_000)).status == "ok"
    outcome = images.imagenet(imagenet(train=1_281_166, validation=50_000))
    assert (
        outcome.status == "fail"
        and "train has 1,281,166 images instead of 1,281,167" in outcome.message
    )
    assert (
        images.imagenet(imagenet("imagenet2012_128", train=1_281_166, validation=50_000)).status
        == "fail"
    )
    outcome = images.imagenet(imagenet(train=1_281_167))
    assert outcome.status == "fail" and "no split 'validation' with 50,000" in outcome.message
    assert images.imagenet(imagenet("my_part", train=1000, validation=50_000)).status == "warn"
    assert images.imagenet(open_made(whole)).status == "skip"


# Folders, disk, memory.


def test_folder_is_written_and_left_as_it_was(tmp_path):
    assert machine.folder(path=str(tmp_path / "new" / "run"), create=True).status == "ok"
    assert list((tmp_path / "new" / "run").iterdir()) == []


def run_folder(path, create=True):
    return Checkup().check("folder", machine.folder, path=str(path), create=create)


def test_unwritable_folder(tmp_path):
    (tmp_path / "file").write_text("in the way")
    outcome = run_folder(tmp_path / "file" / "run")
    assert outcome.status == "fail" and f"{tmp_path}/file/run can't be made" in outcome.message
    assert "ls -ld" in outcome.remedy and outcome.value is None
    assert (
        machine.folder(path=str(tmp_path / "file" / "run"), create=True, unwritable=warn).status
        == "warn"
    )


def test_data_dir_is_not_made(tmp_path):
    outcome = run_folder(tmp_path / "typo", create=False)
    assert (
        outcome.status == "fail"
        and "isn't a folder" in outcome.message
        and "--data_dir" in outcome.remedy
    )
    assert not (tmp_path / "typo").exists()


@pytest.mark.parametrize(
    "action, denied", [("made", "makedirs"), ("written to", "GFile"), ("deleted from", "remove")]
)
def test_bucket_permissions(tmp_path, monkeypatch, action, denied):
    monkeypatch.chdir(tmp_path)

    def refuse(*args, **kwargs):
        raise tf.errors.PermissionDeniedError(
            None, None, "Error executing an HTTP request: HTTP response code 403"
        )

    local = tf.io.gfile.GFile
    for name in ("makedirs", "remove"):
        monkeypatch.setattr(tf.io.gfile, name, lambda path: None)
    monkeypatch.setattr(
        tf.io.gfile, "GFile", lambda path, mode: local(os.path.basename(path), mode)
    )
    monkeypatch.setattr(tf.io.gfile, denied, refuse)
    outcome = run_folder("gs://bucket/run")
    assert (
        outcome.status == "fail"
        and f"gs://bucket/run can't be {action}: PermissionDeniedError" in outcome.message
    )
    assert "403" in outcome.message
    assert (
        "buckets add-iam-policy-binding gs://bucket " in outcome.remedy
        and "objectAdmin" in outcome.remedy
    )


@pytest.fixture(scope="module")
def trainer():
    return made.small_trainer(batch_size=8)


def experiment_of(trainer, **parts):
    return Experiment(trainer=lambda **kwargs: trainer, **parts)


def test_full_disk(trainer, tmp_path, monkeypatch):
    each = sum(value.nbytes for value in made.values(trainer).values())
    experiment = experiment_of(trainer, schedule=Schedule(max_to_keep=2, keep_best=3))

    def outcome(free):
        monkeypatch.setattr(shutil, "disk_usage", lambda path: types.SimpleNamespace(free=free))
        return machine.disk(experiment, trainer, str(tmp_path))

    # The newest two and the best three, and the one that is being written.
    enough = 6 * each + machine._DISK_MARGIN
    assert outcome(enough).status == "ok"
    found = outcome(enough - 1)
    assert (
        found.status == "fail"
        and "6 checkpoints of" in found.message
        and "max_to_keep" in found.remedy
    )
    # A run that goes on has some already.
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "ckpt-1.index").write_text("")
    assert outcome(enough - each).status == "ok" and outcome(enough - each - 1).status == "fail"


def test_disk_of_all_checkpoints(trainer, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: types.SimpleNamespace(free=0))
    schedule = Schedule(max_to_keep=None, num_steps=100, save_every=10)
    found = machine.disk(experiment_of(trainer, schedule=schedule), trainer, str(tmp_path))
    assert "11 checkpoints" in found.message
    assert machine.disk(experiment_of(trainer), trainer, "gs://bucket/run").status == "ok"


def test_too_little_memory(tmp_path, monkeypatch):
    noise = np.random.default_rng(0).integers(0, 256, (100, 100, 3), dtype=np.uint8)
    folder = make_labelled(tmp_path, [0, 1, 2] * 4, pictures=[encode(noise, "PNG")] * 12)
    monkeypatch.setattr(machine, "_MEMORY_MARGIN", 0)

    def outcome(available, random_access=False, **options):
        monkeypatch.setattr(
            psutil, "virtual_memory", lambda: types.SimpleNamespace(available=available)
        )
        dataset = open_made(folder, cache_bytes=0, **options)
        dataset.random_access = random_access
        return machine.memory(dataset, images.files(dataset).value)

    # Noise has 30,000 bytes as PNG too; its record has little more.
    assert outcome(12 * 40_000 / 0.7).status == "ok"
    assert outcome(12 * 31_500).status == "warn"
    found = outcome(12 * 29_000)
    assert found.status == "fail"
    advised = int(re.search(r"data.ImageDataset.shuffle_buffer = (\d+)", found.remedy)[1])
    assert advised < 12 and outcome(12 * 29_000, shuffle_buffer=advised).status == "ok"
    # Of records that are read when they are due, the buffer holds the numbers: local files by
    # default.
    assert [outcome(12 * 29_000, random_access=access).status for access in (True, None)] == [
        "ok",
        "ok",
    ]


# Devices, batch, networks.


def test_devices():
    assert machine.devices(create=made.one_device).message == "CPU:0 (replicas: 1)"

    def no_gpu():
        raise ValueError("accelerator=gpu: TensorFlow sees no GPU on this host")

    outcome = Checkup().check("devices", machine.devices, create=no_gpu, remedy="--accelerator=cpu")
    assert outcome.line() == (
        "fail  devices: accelerator=gpu: TensorFlow sees no GPU on this host. Do: --accelerator=cpu"
    )


def test_batch_that_is_not_divisible(trainer):
    experiment = experiment_of(trainer)
    message = machine.batch(experiment, trainer.strategy).message
    assert message.startswith("8 images a step, 8 a replica (replicas: 1); ")
    # Of the machine that the run is meant for.
    outcome = machine.batch(experiment, trainer.strategy, replicas=3)
    assert (
        outcome.status == "fail"
        and "Batch size (8) must be divisible by the number of replicas (3)" in outcome.message
    )
    assert outcome.value is trainer
    # Of this machine.
    experiment = Experiment(trainer=functools.partial(Trainer, batch_size=9))
    outcome = Checkup().check(
        "batch", machine.batch, ok("", value=experiment), ok("", value=two_replicas())
    )
    assert (
        outcome.status == "fail"
        and "Batch size (9) must be divisible by the number of replicas (2)" in outcome.message
    )


def test_sizes(trainer):
    assert machine.sizes(trainer, made.MadeDataset()).status == "ok"
    outcome = machine.sizes(trainer, made.MadeDataset(image_size=64, num_classes=5))
    assert outcome.status == "fail"
    assert (
        "image_size: 64 of the data set, 32 of the generator, 32 of the discriminator"
        in outcome.message
    )
    assert "num_classes: 5 of the data set, 3 of the generator" in outcome.message


def test_missing_feature_network(tmp_path):
    experiment = Experiment(
        protocol=Protocol(features=functools.partial(Protocol().features, handle="{data_dir}/none"))
    )
    for required, status in ((True, "fail"), (False, "warn")):
        outcome = machine.features(experiment, data_dir=str(tmp_path), required=required)
        assert outcome.status == status and f"{tmp_path}/none" in outcome.message
        for way in ("TF-Hub can be reached", "TFHUB_CACHE_DIR", "features.FeatureNetwork.handle"):
            assert way in outcome.remedy


def test_input_speed(trainer, whole):
    dataset = open_made(whole, image_size=32)
    measure = functools.partial(machine.speed, dataset, trainer, progress=False)
    outcome = measure(seconds=0.01)
    assert outcome.status == "ok" and re.match(
        r"[\d,]+ images/s over 0\.\d s, after", outcome.message
    )
    assert measure(seconds=0.01, steps_per_second=1e-9).status == "ok"
    outcome = measure(seconds=0.01, steps_per_second=1e9)
    assert outcome.status == "warn" and "1e+09 steps/s take 8,000,000,000" in outcome.message
    assert measure(seconds=0).status == "skip"


# Versions.


def test_versions_that_do_not_work_together():
    good = {"tensorflow": "2.20.0", "tf-keras": "2.20.1"}
    assert check_environment.pairing_errors(good) == []
    assert check_environment.pairing_errors({**good, "tf-keras": "2.21.0"}) == [
        "tensorflow 2.20.0 and tf-keras 2.21.0 must be of one minor version"
    ]
    tpu = {"tensorflow-tpu": "2.20.0", "tf-keras": "2.20.1", "libtpu": "0.0.21"}
    assert check_environment.pairing_errors(tpu) == []
    for libtpu in ("0.0.10", "0.0.37", "0.0.52"):
        (error,) = check_environment.pairing_errors({**tpu, "libtpu": libtpu})
        assert libtpu in error and "0.0.21" in error
    del tpu["libtpu"]
    assert "none" in check_environment.pairing_errors(tpu)[0]


# The checkup.


def test_checks_do_not_stop_each_other():
    lines = []
    checkup = Checkup(publish=lambda outcome: lines.append(outcome.line()))
    broken = checkup.check("broken", lambda: 1 / 0)
    refused = checkup.check("refused", lambda: int("x"), remedy="write a number")
    assert broken.status == refused.status == "fail"
    checkup.check("dependent", ok, broken, refused)
    checkup.check("doubtful", lambda: warn("two\n lines.", "think"))
    checkup.check("fine", lambda: ok("well"))
    assert re.fullmatch(
        r"fail  broken: ZeroDivisionError in .*test_doctor.py:\d+: division by zero\. Do: .*",
        lines[0],
    )
    assert lines[1:] == [
        "fail  refused: invalid literal for int() with base 10: 'x'. Do: write a number",
        "skip  dependent: it needs what broken and refused couldn't give",
        "warn  doubtful: two lines. Do: think",
        "ok    fine: well",
    ]
    assert checkup.failed() and checkup.summary() == "5 checks: 2 fail, 1 skip, 1 warn, 1 ok"
    printed = json.loads(checkup.json())
    assert printed["ok"] is False
    assert printed["checks"][1] == {
        "name": "refused",
        "status": "fail",
        "message": "invalid literal for int() with base 10: 'x'",
        "remedy": "write a number",
    }


def test_warnings_are_no_failures():
    checkup = Checkup()
    for outcome in (warn("a", "b"), skip("c"), ok("d")):
        checkup.check("x", lambda outcome=outcome: outcome)
    assert not checkup.failed() and json.loads(checkup.json())["ok"] is True
    checkup.check("x", lambda: fail("e", "f"))
    assert checkup.failed()


def test_without_configuration_the_rest_is_checked(tmp_path):
    checkup = Checkup()
    doctor.examine(
        checkup,
        checkup.check("configuration", lambda: fail("unreadable", "correct it")),
        create_strategy=made.one_device,
        model_dir=str(tmp_path),
        data_dir=str(tmp_path),
        progress=False,
    )
    found = statuses({outcome.name: outcome for outcome in checkup.outcomes})
    fine = {"model_dir": "ok", "data_dir": "ok", "devices": "ok"}
    assert found == {**dict.fromkeys(found, "skip"), "configuration": "fail", **fine}


# The script.


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("data"))
    digits.prepare(folder)
    return folder


@pytest.fixture(scope="module")
def incomplete():
    """Whether this environment lacks something that setup.py asks for: the doctor says so,
    rightly.
    """
    installed = check_environment.installed_packages()
    return bool(
        check_environment.requirement_errors(importlib.metadata.requires("hamgan"), installed)
    )


def run_doctor(model_dir, data_dir, *arguments):
    return forked.run(
        [
            sys.executable,
            "scripts/doctor.py",
            f"--model_dir={model_dir}",
            f"--data_dir={data_dir}",
            "--gin_file=configs/digits.gin",
            "--accelerator=cpu",
            "--seconds=0.1",
            *arguments,
        ]
    )


def test_healthy_digits(data_dir, tmp_path, incomplete):
    result = run_doctor(tmp_path / "run", data_dir, "--json", "--mode=train")
    printed = json.loads(result.stdout)
    assert result.returncode == incomplete and printed["ok"] is not incomplete, (
        result.stdout + result.stderr
    )
    found = {
        check["name"]: check["status"]
        for check in printed["checks"]
        if check["name"] != "environment"
    }
    # The feature network isn't built here, and --mode=train can do without.
    expected = {
        **dict.fromkeys(found, "ok"),
        "feature network": "warn",
        "ImageNet": "skip",
        "reference labels": "skip",
    }
    assert found == expected
    assert {"batch", "disk", "memory", "records", "images", "input speed"} <= found.keys()
    assert (
        sum(
            check["name"] == "environment" and check["status"] == "ok"
            for check in printed["checks"]
        )
        >= 6
    )
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["doctor.png"]


@pytest.mark.slow
def test_lines_and_exit_status(data_dir, tmp_path, incomplete):
    digits_features.build(data_dir)
    result = run_doctor(tmp_path / "run", data_dir, f"--output={tmp_path}/grid.png")
    assert result.returncode == incomplete, result.stdout + result.stderr
    *lines, summary = result.stdout.splitlines()
    assert sum(not re.match(r"(ok  |skip)  [\w ]+: \S", line) for line in lines) == incomplete, (
        lines
    )
    assert summary.startswith(f"{len(lines)} checks: ")
    assert (tmp_path / "grid.png").stat().st_size > 1000

    wrong = [
        "--gin_param=trainer.Trainer.batch_size = 60",
        "--replicas=8",
        "--quick",
        "--accelerator=gpu",
    ]
    result = run_doctor(tmp_path / "run", tmp_path / "nothing", *wrong)
    assert result.returncode == 1 and "Traceback" not in result.stderr
    for line in (
        r"fail  data_dir: .*isn't a folder",
        r"fail  devices: .*GPU",
        r"fail  data set: .*data_prep/digits.py",
    ):
        assert re.search(rf"^{line}.*\. Do: ", result.stdout, re.M), result.stdout
    for line in ("skip  batch: it needs what devices couldn't give", "skip  records: "):
        assert re.search(rf"^{line}", result.stdout, re.M), result.stdout


@pytest.mark.slow
def test_configuration_that_cannot_be_read(data_dir, tmp_path):
    result = run_doctor(tmp_path / "run", data_dir, "--gin_param=trainer.Trainer.batchsize = 8")
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert re.search(r"^fail  configuration: .*batchsize.*\. Do: ", result.stdout, re.M)
    assert re.search(r"^ok    model_dir: ", result.stdout, re.M)


@pytest.mark.slow
def test_help_teaches():
    output = subprocess.run(
        [sys.executable, ROOT / "scripts" / "doctor.py", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    ).stdout
    assert "python scripts/doctor.py --gin_file" in output
    for flag in (
        "--model_dir",
        "--data_dir",
        "--[no]json",
        "--[no]quick",
        "--steps_per_second",
        "--replicas",
        "--mode",
    ):
        assert flag in output, flag
