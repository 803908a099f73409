"""Own photographs: what a data set decides, and the network that scores without Inception."""

import json
import os
import pathlib
import re
import sys

import crops
import forked
import gin
import made
import made_inception
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from data_prep import folder as folder_job
from data_prep import inception, packing, sources
from hamgan import fitting
from hamgan.cli import common, configuration, train
from hamgan.data import summary
from hamgan.evaluation import features, own_features, terminal
from hamgan.evaluation import summary as evaluations
from hamgan.run import history

ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def cleared():
    gin.clear_config()
    yield
    gin.clear_config()


def prepare(images, data_dir, size=32, **options):
    source = sources.Tree(str(images))
    done = dict(data_dir=str(data_dir), size=size, num_workers=1, decode=sources.decode_photo)
    return packing.pack(source, **{**done, **options})[0]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """A data folder with `photos_32` (three classes, 90 crops) and `single_32` (one class)."""
    root = tmp_path_factory.mktemp("own")
    crops.write(root / "photos", per_class=30, side=32)
    prepare(root / "photos", root / "data")
    (root / "single").mkdir()
    for name in sorted((root / "photos" / "temple").iterdir()):
        Image.open(name).save(root / "single" / name.name)
    for name in sorted((root / "photos" / "flower").iterdir()):
        Image.open(name).save(root / "single" / f"more_{name.name}")
    prepare(root / "single", root / "data")
    return str(root / "data")


@pytest.fixture(scope="module")
def network(data_dir):
    return own_features.ensure("photos_32", data_dir, steps=60, progress=False)


def load(data_dir, *params, name="photos_32", files=("photos",), model_dir=None):
    """(experiment, what the data set decided)"""
    gin.clear_config()
    flags = dict(gin_files=files, gin_params=params, model_dir=model_dir)
    of_data = common.settings_of_data(name, data_dir=data_dir, **flags)
    return configuration.load_experiment(**flags, of_data=of_data), of_data


def test_the_data_set_decides_name_classes_size_and_split(data_dir, capsys):
    experiment, _ = load(data_dir)
    dataset = experiment.dataset(data_dir=data_dir)
    assert (dataset.name, dataset.image_size, dataset.num_classes) == ("photos_32", 32, 3)
    assert dataset.class_names == ["flower", "portrait", "temple"]
    assert dataset.reference_split == "train"
    assert experiment.schedule.num_steps == 20_000  # 90 images: the first row of the table
    assert configuration.value_of("networks.Generator.width") == 16
    assert (
        configuration.value_of("features.FeatureNetwork.handle") == "{data_dir}/photos_32_features"
    )
    printed = capsys.readouterr().err
    assert "3 classes" in printed and "width 16" in printed and "steps 20000" in printed


def test_what_is_set_explicitly_wins(data_dir, tmp_path):
    mine = tmp_path / "mine.gin"
    mine.write_text("include 'configs/photos.gin'\nWIDTH = 4\nIMAGE_SIZE = 64\n")
    experiment, of_data = load(
        data_dir, "loop.Schedule.num_steps = 7", "NUM_CLASSES = 5", files=(str(mine),)
    )
    assert experiment.schedule.num_steps == 7
    assert configuration.value_of("networks.Generator.width") == 4
    assert configuration.value_of("data.ImageDataset.image_size") == 64
    assert not {"IMAGE_SIZE", "NUM_CLASSES"} & set(of_data)
    with pytest.raises(ValueError, match="num_classes .5. must be the number of classes"):
        load(data_dir, "NUM_CLASSES = 5")[0].dataset(data_dir=data_dir)


def test_a_dry_run_says_that_the_network_would_be_trained(data_dir, tmp_path, capsys):
    os.symlink(f"{data_dir}/photos_32", tmp_path / "photos_32")
    place = str(tmp_path)
    small = ["WIDTH = 1", "trainer.Trainer.batch_size = 2", "protocol.Protocol.num_samples = 8"]
    experiment, of_data = load(place, *small)
    features = train.prepare_features(of_data, data_dir=place, dry_run=True)
    assert not features and not (tmp_path / "photos_32_features").exists()
    told = capsys.readouterr().out
    assert "a network would be trained on these images" in told and "76 images of photos" in told
    common_parts = dict(strategy=made.one_device(), data_dir=place, evaluates=True)
    parts = train.build(experiment, f"{place}/run", **common_parts, features=features)
    assert parts["evaluator"] is None
    with pytest.raises(ValueError, match="No SavedModel at"):
        train.build(experiment, f"{place}/run", **common_parts)


def test_other_configurations_take_facts_and_keep_their_length(data_dir):
    experiment, _ = load(data_dir, files=("digits",))
    dataset = experiment.dataset(data_dir=data_dir)
    assert (dataset.name, dataset.num_classes) == ("photos_32", 3)
    assert experiment.schedule.num_steps == 1500
    assert configuration.value_of("networks.Generator.width") == 4
    assert "_OF_DATA" not in gin.config_str()


def test_a_run_that_is_there_keeps_what_was_chosen_for_it(data_dir, tmp_path):
    # Inception is fetched, and images were added, after the run was begun.
    kept = {"FEATURES_OF_DATA": "'{data_dir}/photos_32_features'", "WIDTH_OF_DATA": "8"}
    text = "\n".join(f"{name} = {value}" for name, value in kept.items())
    (tmp_path / "config.gin").write_text(text)
    chosen = {"FEATURES_OF_DATA": "{data_dir}/tfgan_inception", "WIDTH_OF_DATA": 16}
    chosen |= {"data.ImageDataset.name": "photos_32", "NUM_CLASSES": 3}
    found = configuration.settled(
        chosen, gin_files=["photos"], gin_params=[], model_dir=str(tmp_path)
    )
    assert found["FEATURES_OF_DATA"] == "{data_dir}/photos_32_features"
    assert (found["WIDTH_OF_DATA"], found["NUM_CLASSES"]) == (8, 3)


def test_wrong_uses_are_told(data_dir):
    with pytest.raises(ValueError, match="(?s)'photo_32' isn't prepared.*photos_32, single_32"):
        load(data_dir, name="photo_32")
    with pytest.raises(ValueError, match="--data=photos_32, but data.ImageDataset.name = 'other'"):
        load(data_dir, "data.ImageDataset.name = 'other'")
    with pytest.raises(ValueError, match="--data=photos_32 goes with --gin_file"):
        load(data_dir, files=())


@pytest.mark.parametrize(
    "splits, reference", [({"validation": 999}, "train"), ({"test": 1000}, "test")]
)
def test_small_held_out_splits_are_no_reference(splits, reference):
    found = summary.Summary("x", 2, 64, True, {"train": 12_000, **splits})
    chosen = fitting.settings(found, "nowhere")
    assert chosen["data.ImageDataset.reference_split"] == reference
    assert (chosen["WIDTH_OF_DATA"], chosen["STEPS_OF_DATA"]) == (64, 100_000)


def test_sizes_are_those_of_networks():
    def size_of(side):
        return fitting.image_size(summary.Summary("x", 2, side, True, {"train": 9}))

    assert [size_of(side) for side in (32, 100, 500)] == [32, 64, 256]
    with pytest.raises(ValueError, match="squares of x have 31 pixels.*--size=32"):
        size_of(31)


def test_the_table_in_the_docs_is_the_one_that_is_used():
    text = (ROOT / "docs" / "data.md").read_text()
    for size in fitting.SIZES:
        row = f"| {size.width} | {size.batch_size} | {size.num_steps:,} | {size.num_samples:,} |"
        assert row in text and row in fitting.__doc__


def test_the_network_is_trained_held_out_from_and_found_again(network, data_dir):
    about = network.about
    assert (about["task"], about["images"] + about["held_out"]) == ("classes", 90)
    assert about["accuracy"] > about["chance"]
    again = own_features.ensure("photos_32", data_dir)
    assert (again.written, again.about) == (False, about)
    outputs = features.FeatureNetwork(handle=network.folder, size=32)(np.zeros([2, 32, 32, 3], "f"))
    assert outputs["pool_3"].shape == (2, 128) and outputs["logits"].shape == (2, 3)


def test_a_network_of_other_images_is_refused(network, data_dir, tmp_path):
    crops.write(tmp_path / "photos", per_class=30, side=32, seed=1)
    prepare(tmp_path / "photos", tmp_path / "data")
    os.symlink(network.folder, tmp_path / "data" / "photos_32_features")
    with pytest.raises(ValueError, match="trained on other images than those that photos_32"):
        own_features.ensure("photos_32", str(tmp_path / "data"))


def test_one_class_is_told_by_turns_with_a_note(data_dir):
    built = own_features.ensure("single_32", data_dir, steps=5, progress=False)
    assert (built.about["task"], built.about["chance"]) == ("quarter turns", 0.25)
    words = own_features.in_words({**built.about, "accuracy": 0.3})
    assert "NOTE: With one class" in words and "WARNING: That is poor" in words
    assert "WARNING" not in own_features.in_words({**built.about, "accuracy": 0.99})


def test_turns_are_what_their_labels_say():
    image = tf.reshape(tf.range(12.0), [1, 2, 2, 3])
    turned, labels = own_features._turned(image)
    assert labels.numpy().tolist() == [0, 1, 2, 3]
    for picture, label in zip(turned.numpy(), labels.numpy(), strict=True):
        np.testing.assert_array_equal(picture, np.rot90(image[0].numpy(), label))


def test_too_few_images_are_refused(tmp_path):
    crops.write(tmp_path / "photos", per_class=5, side=32)
    prepare(tmp_path / "photos", tmp_path / "data")
    with pytest.raises(ValueError, match="at least 40 images .* has 15"):
        own_features.ensure("photos_32", str(tmp_path / "data"))


def record_of(identity):
    return {
        "kind": "evaluation",
        "step": 1,
        "checkpoint": "ckpt-1",
        "fid": 1.0,
        "inception_score": 1.0,
        "kid": 1.0,
        "seed": 0,
        "num_samples": 100,
        "protocol": {"name": "custom", "fingerprint": "same"},
        "reference": {"dataset": "photos_32", "split": "train", "count": 90},
        "features": identity,
    }


def test_no_record_is_comparable_with_one_by_inception(network, tmp_path):
    own = features.FeatureNetwork(handle=network.folder, size=32).identity()
    folder = made_inception.save_tf2(tmp_path / "inception")
    others = features.FeatureNetwork(handle=folder).identity()
    assert (own["trained_on"], own["task"]) == ("photos_32", "classes")
    assert not {"trained_on", "task"} & set(others)
    own, others = record_of(own), record_of(others)
    assert history.measured_under(own) != history.measured_under(others)
    assert "trained on photos_32 itself" in terminal.line_of(own)
    assert "NOTE" not in terminal.line_of(others)
    assert evaluations.of_own_features(others) is None


def test_inception_is_checked_and_put_where_it_is_found(data_dir, tmp_path):
    good = made_inception.save_tf2(tmp_path / "good")
    folder, digest = inception.put(good, str(tmp_path / "data"))
    assert digest == features.FeatureNetwork(handle=good).digest
    assert inception.put(good, str(tmp_path / "data")) == (folder, digest)
    found = summary.summarise("photos_32", data_dir)
    assert fitting.feature_network(found, str(tmp_path / "data")) == (
        "{data_dir}/tfgan_inception",
        299,
    )
    (tmp_path / "good" / "saved_model.pb").write_bytes(b"damaged")
    with pytest.raises(ValueError, match="can't be read"):
        inception.check(good)


def test_another_network_is_no_inception(network, monkeypatch):
    monkeypatch.setattr(fitting, "INCEPTION_SIZE", 32)
    with pytest.raises(ValueError, match="isn't TF-GAN's Inception: .*2048.*128"):
        inception.check(network.folder)


def test_the_next_commands_are_told(monkeypatch):
    monkeypatch.delitem(sys.modules, "data_prep.commands", raising=False)
    text = folder_job.next_commands("my data/photos_32/1.0.0")
    assert "python data_prep/features.py --data=photos_32 --data_dir='my data'" in text
    monkeypatch.setitem(sys.modules, "data_prep.commands", sys)
    assert "    hamgan-train --gin_file=photos" in folder_job.next_commands("data/photos_32/1.0.0")


def run(*command):
    result = forked.run([sys.executable, *command], timeout=1500)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout + result.stderr


@pytest.mark.slow
def test_from_photographs_to_a_record(tmp_path):
    crops.write(tmp_path / "photos", per_class=100, side=32)
    data, model = f"--data_dir={tmp_path}/data", f"--model_dir={tmp_path}/run"
    text = run("data_prep/folder.py", f"--image_dir={tmp_path}/photos", data, "--size=32")
    assert re.search(r"data_prep/features.py --data=photos_32 ", text)
    small = ["loop.Schedule.num_steps=4", "loop.Schedule.steps_per_loop=2", "WIDTH=2"]
    small += ["protocol.Protocol.num_samples=150", "trainer.Trainer.batch_size=8"]
    command = ["scripts/train.py", "--gin_file=photos", "--data=photos_32", data, model]
    command += ["--accelerator=cpu", *(f"--gin_param={param}" for param in small)]
    assert "a network trained on 255 images" in run(*command)  # the features are made by it
    run(*command)  # the same command finds all done
    printed = run("scripts/evaluate.py", model, data, "--accelerator=cpu")
    assert "trained on photos_32 itself" in printed
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    scored = [r for r in map(json.loads, lines) if r["kind"] == "evaluation"]
    assert {r["features"]["trained_on"] for r in scored} == {"photos_32"}
    assert all(np.isfinite(r["fid"]) for r in scored)
    assert "itself" in (tmp_path / "run" / "report.html").read_text()
