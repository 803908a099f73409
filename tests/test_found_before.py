"""What is told before anything is built: classes that are splits, too few images, settings that are
gone, a folder that another process holds.
"""

import contextlib
import types

import gin
import numpy as np
import pytest
import tensorflow_datasets as tfds
from made import MadeDataset
from test_data import encode, make, picture
from test_doctor import make_labelled, open_made

from hamgan import data, training
from hamgan.checks import evaluation, images
from hamgan.checks.outcome import Checkup
from hamgan.cli import configuration, import_checkpoint
from hamgan.data import prepared
from hamgan.evaluation import protocol
from hamgan.experiment import Experiment
from hamgan.run import lock


@pytest.fixture(autouse=True)
def cleared():
    gin.clear_config()
    yield
    gin.clear_config()


def never(**kwargs):
    raise AssertionError("networks were built")


def experiment_of(dataset, **settings):
    return Experiment(
        dataset=lambda data_dir: dataset,
        trainer=never,
        protocol=protocol.Protocol(**{"num_samples": 20, **settings}),
    )


def test_training_asks_whether_classes_are_splits(tmp_path):
    folder = make_labelled(tmp_path / "data", [0, 1] * 6, names=["train", "val"])
    dataset = open_made(folder, num_classes=2)  # as many as there are: it can be opened
    with pytest.raises(ValueError, match="classes are called train, val, as splits are"):
        training.build(experiment_of(dataset), strategy=None, data_dir=folder)


@pytest.mark.parametrize(
    "names, wrong",
    [
        (["Train", "Test"], True),
        (["training", "testing"], True),
        (["train", "dev"], True),
        (["train", "val", "extra"], True),  # case 01 d
        (["bicycle", "train", "tram"], False),  # CIFAR-100 has such a class
        (["test", "dev", "x"], False),
        (["cat", "dog"], False),
    ],
)
def test_names_of_splits(names, wrong):
    assert bool(data.wrong_folder_level(names)) is wrong


@pytest.mark.parametrize("evaluates", [True, False])
def test_training_asks_for_enough_real_images(evaluates):
    experiment = experiment_of(MadeDataset(count=1))
    told = pytest.raises(ValueError, match="at least 2 real images, and split 'train' of made")
    built = pytest.raises(AssertionError, match="networks were built")
    with told if evaluates else built:
        training.build(experiment, strategy=None, data_dir=None, evaluates=evaluates)


# The doctor.


def test_doctor_asks_for_enough_real_images():
    few, enough = MadeDataset(count=1), MadeDataset(count=64)
    with pytest.raises(ValueError, match="at least 2 real images"):
        evaluation.counts(experiment_of(few), few, required=True)
    assert evaluation.counts(experiment_of(few), few, required=False).status == "warn"
    outcome = evaluation.counts(experiment_of(enough), enough, required=True)
    assert outcome.status == "ok" and outcome.value == 64


class Network:
    handle, size, trained_on = "data/digits_features", 4, "digits"

    def __call__(self, images):
        return {"pool_3": np.zeros([len(images), 64])}


@pytest.mark.parametrize(
    "count, samples, told",
    [
        (3, 50, "50 samples and 3 real images are too few for 64 features"),
        (64, 100, "64 real images are too few for 64 features"),
        (65, 64, "64 samples are too few for 64 features"),
        (65, 65, None),
    ],
)
def test_doctor_compares_images_with_features(count, samples, told):
    experiment = experiment_of(None, num_samples=samples)
    outcome = evaluation.rank(experiment, Network(), count)
    assert outcome.status == ("warn" if told else "ok")
    assert (told or "64 features") in outcome.message


@pytest.mark.parametrize(
    "name, status",
    [("digits", "ok"), ("digits_32", "ok"), ("toy_32", "warn"), ("digits_of_mine", "warn")],
)
def test_doctor_compares_the_data_with_that_of_the_network(name, status):
    dataset = types.SimpleNamespace(info=types.SimpleNamespace(name=name))
    outcome = evaluation.trained_on(dataset, Network())
    assert outcome.status == status and "trained on digits" in outcome.message
    silent = Network()
    silent.trained_on = None
    assert evaluation.trained_on(dataset, silent).status == "skip"


def small(dataset, folder):
    sizes = images.files(dataset).value
    return Checkup().check("small images", lambda: images.small(dataset, sizes, number=64))


def test_doctor_counts_small_files(tmp_path):
    features = {"image": tfds.features.Image(), "label": tfds.features.Scalar(np.int64)}
    rows = [
        {"image": encode(picture(*size), "PNG"), "label": 0}
        for size in ((40, 40), (8, 40), (40, 5), (50, 41))
    ]
    stored = make(tmp_path, features, train=rows)
    common = dict(name="made", num_classes=1, reference_split="train", data_dir=stored)
    outcome = small(data.ImageDataset(image_size=32, **common), stored)
    assert outcome.status == "warn" and "2 of 4 images looked at" in outcome.message
    assert "shorter side of 5" in outcome.message and "--min_side=32" in outcome.remedy
    assert small(data.ImageDataset(image_size=5, **common), stored).status == "ok"


def test_doctor_tells_what_packing_counted(tmp_path, monkeypatch):
    packed = tfds.features.Tensor(
        shape=(8, 8, 3), dtype=np.uint8, encoding=tfds.features.Encoding.BYTES
    )
    features = {"image": packed, "label": tfds.features.Scalar(np.int64)}
    stored = make(tmp_path, features, train=[{"image": picture(8, 8), "label": 0}])
    dataset = data.ImageDataset(
        name="made", image_size=8, num_classes=1, reference_split="train", data_dir=stored
    )
    assert small(dataset, stored).status == "skip"  # of an earlier version
    (folder,) = (tmp_path / "made").iterdir()
    for enlarged, smallest, status in ((0, "null", "ok"), (2, '["cat/1.png", 3]', "warn")):
        (folder / prepared.IMAGES).write_text(
            f'{{"splits": {{"train": {{"images": 9, "enlarged": {enlarged}, '
            f'"smallest": {smallest}}}}}}}'
        )
        outcome = small(dataset, stored)
        assert outcome.status == status and f"{enlarged} of 9 images" in outcome.message
    assert "cat/1.png (shorter side: 3)" in outcome.message


# A run's folder.


@pytest.mark.parametrize("content", [b"", b"\n \n", b"# a comment\n", bytes(100)])
def test_an_emptied_configuration_is_refused(tmp_path, content):
    (tmp_path / "config.gin").write_bytes(content)
    with pytest.raises(ValueError, match="config.gin is empty .*Restore the file.*--gin_file"):
        configuration.load_experiment(model_dir=str(tmp_path))


def test_an_emptied_configuration_is_as_a_lost_one_where_settings_are_given(tmp_path):
    (tmp_path / "config.gin").write_bytes(b"")
    configuration.load_experiment(gin_files=["configs/digits.gin"], model_dir=str(tmp_path))
    assert configuration.changed_settings(str(tmp_path)) is None
    # Not compared with nothing, which differs in all settings; the checkpoints are asked.
    assert "WIDTH" in configuration.resolved_configuration(str(tmp_path))


def test_an_import_holds_the_folder(tmp_path, monkeypatch):
    held = []
    monkeypatch.setattr(
        import_checkpoint.importing, "run", lambda *args, **kwargs: held.append(dict(lock._held))
    )
    flags = dict(model_dir=str(tmp_path), take_over=False, checkpoint="x", gin_file=[])
    values = {name: types.SimpleNamespace(value=None) for name in import_checkpoint._TOLD}

    class Flags(types.SimpleNamespace):
        def __getitem__(self, name):
            return values[name]

    more = dict.fromkeys(["data_dir", "gin_param", "tolerance", "gradient_tolerance"])
    monkeypatch.setattr(import_checkpoint, "FLAGS", Flags(**flags, **more))
    import_checkpoint.main()
    assert [list(found) for found in held] == [[str(tmp_path)]]
    assert not lock._held


@pytest.mark.parametrize("fails", [True, False])
def test_what_fails_leaves_no_lock_behind(tmp_path, fails):
    (tmp_path / "notes.txt").write_text("mine")
    with contextlib.suppress(ZeroDivisionError), lock.writing(str(tmp_path)):
        assert (tmp_path / "writer.lock").exists()
        if fails:
            _ = 1 / 0
    assert (tmp_path / "writer.lock").exists() is not fails
    with lock.writing(str(tmp_path)):  # free in either case
        pass


def test_a_lock_that_was_there_stays(tmp_path):
    (tmp_path / "writer.lock").write_text("")
    with contextlib.suppress(ZeroDivisionError), lock.writing(str(tmp_path)):
        _ = 1 / 0
    assert (tmp_path / "writer.lock").exists()
