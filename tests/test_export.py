"""Exports: they give the same images, without hamgan where they say so."""

import json
import os

import helpers
import keras
import made
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from hamgan import networks, normalization, sampling
from hamgan.export import bundle, card, check, onnx_graph, saved_model
from hamgan.layers import layers_of
from hamgan.run import records

NAMES = ["cat", "dog", "cat"]


def make(constructor=made.small_generator):
    keras.utils.set_random_seed(0)
    generator = helpers.randomize(constructor())
    sampler = sampling.Sampler(generator, strategy=made.one_device(), batch_size=4, seed=5)
    return generator, sampler


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """(loaded SavedModel, its path, the sampler that it must equal)."""
    path = str(tmp_path_factory.mktemp("export") / "saved_model")
    generator, sampler = make()
    saved_model.save(path, generator, class_names=NAMES, seed=5, about="words")
    return tf.saved_model.load(path), path, sampler


def call(model, signature, *, psi=1.0, truncation=np.inf, **inputs):
    more = {"truncation": tf.constant(truncation, tf.float32)} if "seed" in inputs else {}
    found = model.signatures[signature](
        psi=tf.constant(psi), **more, **{k: tf.constant(np.asarray(v)) for k, v in inputs.items()}
    )
    return {name: value.numpy() for name, value in found.items()}


def drawn(sampler, seeds, labels):
    return np.concatenate([images for images, _ in sampler.numbered(seeds, labels)])


@pytest.mark.parametrize("count", [1, 5])
def test_a_seed_gives_the_image_of_that_seed(exported, count):
    model, _, sampler = exported
    seeds, labels = np.arange(7, 7 + count), np.arange(count) % 3
    found = call(model, "seed", seed=seeds, label=labels)
    expected = drawn(sampler, seeds, labels)
    np.testing.assert_allclose(found["pixels"], expected, atol=1e-5)
    assert found["images"].dtype == np.uint8
    assert np.abs(found["images"] - (expected + 1) * 127.5).max() < 0.51
    # The names' first classes: cat is class 0.
    names = np.array(["cat", "dog"])[labels % 2]
    by_name = call(model, "seed_name", seed=seeds, name=names)
    np.testing.assert_allclose(by_name["pixels"], drawn(sampler, seeds, labels % 2), atol=1e-5)


def test_truncation_is_the_samplers(exported):
    model, _, sampler = exported
    for settings in (dict(psi=0.5), dict(truncation=0.7), dict(psi=0.5, truncation=0.7)):
        other = sampling.Sampler(
            sampler.generator, strategy=made.one_device(), batch_size=4, seed=5, **settings
        )
        found = call(model, "seed", seed=[3, 4], label=[0, 1], **settings)
        np.testing.assert_allclose(found["pixels"], drawn(other, [3, 4], [0, 1]), atol=1e-5)


def test_noise_of_ones_own(exported):
    model, _, sampler = exported
    z = helpers.array(3, sampler.generator.latent_dim)
    found = call(model, "z", z=z, label=np.array([0, 1, 2]), psi=0.5)
    keys = saved_model.keys_of_noise(5, 3)
    expected = sampler.generator(0.5 * z, np.array([0, 1, 2]), training=False, keys=keys)
    np.testing.assert_allclose(found["pixels"], expected, atol=1e-5)
    by_name = call(model, "z_name", z=z, name=np.array(["cat", "dog", "dog"]), psi=0.5)
    np.testing.assert_allclose(by_name["pixels"][:2], found["pixels"][:2], atol=1e-6)


@pytest.mark.parametrize(
    "signature, inputs",
    [("seed", dict(label=[3])), ("seed", dict(label=[-1])), ("seed_name", dict(name=["cow"]))],
)
def test_classes_that_are_not_there_are_refused(exported, signature, inputs):
    with pytest.raises(tf.errors.InvalidArgumentError, match="label must be in 0 to 2"):
        call(exported[0], signature, seed=[1], **inputs)


@pytest.mark.parametrize("seed", [-1, 2**32 + 7])
def test_seeds_that_are_not_there_are_refused(exported, seed):
    with pytest.raises(tf.errors.InvalidArgumentError, match="seed must be in 0 to 2147483647"):
        call(exported[0], "seed", seed=[seed], label=[0])


@pytest.mark.parametrize(
    "signature, inputs, message",
    [
        ("seed", dict(psi=np.nan), r"psi must be finite and at least 0, got\] \[nan"),
        ("seed", dict(psi=-0.5), r"psi must be finite and at least 0, got\] \[-0.5"),
        ("seed", dict(psi=np.inf), r"psi must be finite and at least 0, got\] \[inf"),
        ("z", dict(psi=np.nan), r"psi must be finite and at least 0, got\] \[nan"),
        ("seed", dict(truncation=np.nan), r"truncation must be positive .*, got\] \[nan"),
        ("seed", dict(truncation=0.0), r"truncation must be positive .*, got\] \[0\]"),
        ("seed", dict(truncation=-np.inf), r"truncation must be positive .*, got\] \[-inf"),
        ("z", dict(z=np.full([1, 8], np.nan, np.float32)), r"z must be finite, got\] \[nan"),
        ("seed", dict(label=[0, 1, 2]), r"seed and label .* the same number of rows, got.*1.*3"),
        ("seed_name", dict(seed=[0, 1, 2], name=["cat"]), r"the same number of rows, got.*3.*1"),
        ("z", dict(label=[0, 1, 2]), r"z and label .* the same number of rows, got.*1.*3"),
    ],
)
def test_what_the_sampler_refuses_is_refused(exported, signature, inputs, message):
    good = {
        "seed": dict(seed=[1], label=[0]),
        "seed_name": dict(seed=[1], name=["cat"]),
        "z": dict(z=np.zeros([1, 8], np.float32), label=[0]),
    }
    call(exported[0], signature, **good[signature])
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        call(exported[0], signature, **{**good[signature], **inputs})


@pytest.mark.slow
def test_it_is_loaded_where_hamgan_cannot_be_imported(exported, monkeypatch):
    _, path, sampler = exported
    assert check.check_saved_model(path, sampler) < 1e-5
    # Flags name folders from where the command is called.
    monkeypatch.chdir(os.path.dirname(path))
    assert check.check_saved_model(os.path.basename(path), sampler) < 1e-5
    other = sampling.Sampler(sampler.generator, strategy=made.one_device(), batch_size=4, seed=6)
    with pytest.raises(ValueError, match="gives other images than the network"):
        check.check_saved_model(path, other)


def test_moments_are_baked_in():
    generator, sampler = make(made.Tiny)
    standing = sampling.StandingStatistics(sampler, batches=2, batch_size=8)
    with standing.applied(tf.constant(5)):
        expected, _ = sampler.sample(4, [0, 1, 2, 0])
    before, _ = sampling.Sampler(
        generator, strategy=made.one_device(), batch_size=4, seed=5
    ).sample(4, [0, 1, 2, 0])
    saved_model.bake_moments(generator, standing, 5)
    (layer,) = layers_of(generator, normalization.BatchNorm)
    assert layer.moments_source is None
    found, _ = sampling.Sampler(generator, strategy=made.one_device(), batch_size=4, seed=5).sample(
        4, [0, 1, 2, 0]
    )
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.abs(found - before).max() > 1e-2


def test_keras_files_are_the_networks(tmp_path):
    generator, sampler = make()
    discriminator = helpers.randomize(made.small_discriminator(), seed=1)
    output = tmp_path / "out"
    unfinished = tmp_path / "out.unfinished"
    unfinished.mkdir()
    (unfinished / "rest").write_text("of an export that was killed")
    output.mkdir()
    with records.writing_folder(str(output)) as folder:
        exported = bundle.Bundle(
            str(output),
            folder=folder,
            generator=generator,
            discriminator=discriminator,
            sampler=sampler,
            batch_norm=sampling.MovingAverages(sampler),
            seed=5,
            class_names=NAMES,
        )
        exported.write(["keras"], about="")
        assert not list(output.iterdir())
    assert not unfinished.exists()
    assert sorted(path.name for path in output.iterdir()) == [
        "discriminator.keras",
        "generator.keras",
    ]
    with pytest.raises(ValueError, match="gives other images than the network"):
        path = str(output / "generator.keras")
        other = helpers.randomize(made.small_generator(), seed=3)
        check.check_keras(path, other, *sampler.inputs(tf.range(2)))
    z, labels = helpers.array(2, 8), np.array([1, 2])
    keys = np.array([[1, 2], [3, 4]], np.int32)
    loaded = keras.models.load_model(output / "generator.keras")
    assert isinstance(loaded, networks.Generator)
    images = generator(z, labels, keys=keys)
    np.testing.assert_allclose(loaded(z, labels, keys=keys), images, atol=1e-6)
    loaded = keras.models.load_model(output / "discriminator.keras")
    np.testing.assert_allclose(
        loaded(images, labels, keys=keys), discriminator(images, labels, keys=keys), rtol=1e-5
    )


@pytest.mark.slow
def test_onnx_gives_the_same_images(tmp_path):
    pytest.importorskip("tf2onnx", reason="the extra onnx isn't installed")
    runtime = pytest.importorskip("onnxruntime", reason="the extra onnx isn't installed")
    generator, _ = make()
    path = str(tmp_path / "generator.onnx")
    onnx_graph.save(path, generator, seed=5)
    assert check.check_onnx(path, generator, seed=5) < 1e-5
    session = runtime.InferenceSession(path)
    for count in (1, 7):
        z = helpers.array(count, 8)
        (pixels,) = session.run(None, {"z": z, "label": np.arange(count) % 3})
        assert pixels.shape == (count, 32, 32, 3)
    generator.context.gate.assign(-3.0)
    with pytest.raises(ValueError, match="gives other images than the network"):
        check.check_onnx(path, generator, seed=5)


# The card


def evaluation(**values):
    return {
        "kind": "evaluation",
        "step": 7,
        "checkpoint_digest": "abc",
        "weights": "raw",
        "fid": 12.5,
        "fid_interval": [11.0, 14.25],
        "kid": None,
        "protocol": {"name": "paper", "words": "50,176 samples"},
        "features": {"handle": "inception"},
        "reference": {"dataset": "animals", "version": "2.0.0"},
        "seed": 3,
        **values,
    }


def test_card_tells_scores_with_protocol_and_interval(tmp_path):
    yaml = pytest.importorskip("yaml", reason="the hub's own reader of metadata")
    metrics = str(tmp_path / "metrics.jsonl")
    for record in (
        evaluation(),
        evaluation(fid=99.0, checkpoint_digest="other"),
        evaluation(fid=98.0, weights="ema"),
        evaluation(fid=97.0, generator={"digest": "other settings"}),
    ):
        records.append(metrics, record)
    found = card.evaluations_of(metrics, checkpoint="abc", weights="raw", generator="g")
    assert [record["fid"] for record in found] == [12.5]
    text = card.card(
        title="Run: 7",
        facts={"step": "7"},
        evaluations=found,
        data=card.data_of(None, found),
        source={"licence": "CC BY 4.0"},
        class_names=["a: b", "c"],
        licence=None,
        files={"saved_model": "words"},
    )
    _, head, body = text.split("---\n", 2)
    head = yaml.safe_load(head)
    assert head["license"] == "other"
    assert "datasets" not in head  # the hub may have another one of this name, or none
    assert "- licence of the images: CC BY 4.0" in body and "No licence of the images" not in body
    ((result,),) = [entry["results"] for entry in head["model-index"]]
    assert result["metrics"] == [{"type": "fid", "value": 12.5, "name": "FID"}]
    assert "50,176 samples" in result["dataset"]["name"]
    assert "| FID | 12.5 | 11 to 14.25 |" in body
    assert "Protocol paper: 50,176 samples. Features: inception. Seed 3." in body
    assert "No licence was given" in body and "99" not in body
    assert '["a: b"]' in body  # the example names a class that there is


def test_card_of_what_was_never_evaluated():
    text = card.card(
        title="t",
        facts={},
        evaluations=[],
        data={},
        source={},
        class_names=["a"],
        licence="mit",
        files={},
    )
    assert "No licence of the images is known here" in text
    assert "This checkpoint hasn't been evaluated." in text and "model-index" not in text
    assert 'license: "mit"' in text


def test_whose_the_images_are_is_what_their_own_description_says(tmp_path):
    tfds.dataset_builders.store_as_tfds_dataset(
        name="animals",
        version="2.0.0",
        data_dir=tmp_path,
        split_datasets={"train": tf.data.Dataset.from_tensors({"label": 1})},
        features=tfds.features.FeaturesDict({"label": tf.int64}),
        homepage="https://animals.example",
        citation="@misc{animals,\n  title={Animals}}",
    )
    path = tmp_path / "animals" / "2.0.0" / "dataset_info.json"
    described = json.loads(path.read_text()) | {"redistributionInfo": {"license": "CC BY 4.0"}}
    path.write_text(json.dumps(described))
    info = tfds.builder_from_directory(path.parent).info
    assert card.source_of(info, {"name": "animals", "version": "2.0.0"}) == {
        "licence": "CC BY 4.0",
        "homepage": "https://animals.example",
        "citation": "@misc{animals, title={Animals}}",
    }
    for other in ({"name": "animals", "version": "1.0.0"}, {}):
        assert card.source_of(info, other) == {}
    assert card.source_of(None, {"name": "animals", "version": "2.0.0"}) == {}


def test_nothing_is_written_over(tmp_path):
    bundle.check_formats(["keras"], str(tmp_path / "new"))
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="isn't empty: nothing is written over"):
        bundle.check_formats(["keras"], str(tmp_path))
    with pytest.raises(ValueError, match="must be of saved_model, keras, onnx, card, got tflite"):
        bundle.check_formats(["keras", "tflite"], str(tmp_path / "new"))
