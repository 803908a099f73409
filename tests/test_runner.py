import dataclasses
import functools
import json
import math

import helpers
import keras
import made
import numpy as np
import pytest
import tensorflow as tf
from test_features import Network

from hamgan import sampling, tfgan
from hamgan.evaluation import (
    embedding,
    features,
    metrics,
    protocol,
    reference,
    runner,
    scores,
    scoring,
    shards,
    terminal,
    watch,
)
from hamgan.run import checkpoints, contents, history


class Pooled(Network):
    """12 features of 32x32 images: means over patches, so that they vary smoothly."""

    @tf.function(input_signature=[tf.TensorSpec([None, 32, 32, 3], tf.float32)])
    def __call__(self, images):
        pool = tf.nn.avg_pool2d(images, 16, 16, "VALID")
        pool = tf.reshape(pool, [-1, 12])
        return {"pool_3": pool, "logits": 5 * pool}


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("network"))
    module = Pooled()
    tf.saved_model.save(module, path, signatures={"serving_default": module.__call__})
    return functools.partial(features.FeatureNetwork, handle=path, size=32)


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(shards, "_ROWS", 16)


def make_generator(strategy=None, **kwargs):
    keras.utils.set_random_seed(0)
    with (strategy or made.one_device()).scope():
        return made.Tiny(**kwargs)


def make_real_generator(strategy):
    trainer = made.small_trainer(strategy)
    made.open_gates(trainer)
    return trainer.generator


@pytest.fixture(scope="module")
def generator():
    return make_generator()


def make_evaluator(
    network, generator=None, *, strategy=None, dataset=None, settings=None, **kwargs
):
    strategy = strategy or made.one_device()
    settings = {**dict(num_samples=50, batch_size=16, features=network), **(settings or {})}
    return runner.Evaluator(
        generator=generator or make_generator(strategy),
        strategy=strategy,
        dataset=dataset or made.MadeDataset(),
        protocol=protocol.Protocol(**settings),
        progress=False,
        **kwargs,
    )


@pytest.fixture(scope="module")
def evaluator(network, generator):
    return make_evaluator(network, generator)


def joined(parts):
    return {name: np.concatenate(list(parts.read(name))) for name in ("pool_3", "logits")}


def save(folder, generator, *steps):
    """Checkpoints of a run in `folder`, whatever their numbers are; returns the path of the
    last.
    """
    step = tf.Variable(0, dtype=tf.int64)
    variables = {**contents.network_variables("generator", generator), "step": step}
    for number in steps:
        step.assign(number)
        path = tf.train.Checkpoint(**variables).write(
            str(folder / "checkpoints" / f"ckpt-{number}")
        )
    return path


def stop_after(monkeypatch, evaluator, calls):
    """Lets an evaluator embed that many batches of samples; returns the list of those that it
    embeds.
    """
    embed, seen = evaluator._embed_generated, []

    def embed_some(first, seed):
        if len(seen) == calls:
            raise KeyboardInterrupt
        seen.append(int(first))
        return embed(first, seed)

    monkeypatch.setattr(evaluator, "_embed_generated", embed_some)
    return seen


def test_record_says_how_the_number_came_about(evaluator):
    record = evaluator.evaluate(checkpoint="somewhere/ckpt-12", step=12, seed=4)
    assert (record["kind"], record["step"], record["checkpoint"]) == (
        "evaluation",
        12,
        "somewhere/ckpt-12",
    )
    assert (record["num_samples"], record["seed"]) == (50, 4)
    assert record["features"]["digest"] == evaluator.network.digest
    assert record["reference"]["dataset"] == "made" and record["reference"]["count"] == 64
    assert record["protocol"]["name"] == "custom" and len(record["protocol"]["fingerprint"]) == 16
    assert record["protocol"]["words"] == (
        "50 samples, uniform labels, raw weights, batch norm with moving averages, against 64 "
        "images of made 1.0.0 "
        "train; 8-bit pixels, resized to 32 by tf1 bilinear"
    )


def test_scores_are_tf_gans(network, generator):
    evaluator = make_evaluator(network, generator, settings=dict(quantize=False))
    record = evaluator.evaluate(checkpoint="", step=0)
    generated = joined(evaluator.generated_outputs())
    real = evaluator.network(made.MadeDataset().images)["pool_3"]
    expected = tfgan.frechet_classifier_distance_from_activations(
        real, tf.constant(generated["pool_3"])
    )
    assert record["fid"] == pytest.approx(float(expected), rel=1e-5)
    assert record["inception_score"] == pytest.approx(
        float(tfgan.classifier_score_from_logits(tf.constant(generated["logits"]))), rel=1e-5
    )


def test_features_depend_on_neither_batch_size_nor_replicas(network):
    def outputs(strategy, weights, batch_size):
        settings = dict(quantize=False, batch_size=batch_size)
        return joined(
            make_evaluator(
                network, weights, strategy=strategy, settings=settings
            ).generated_outputs()
        )

    one, two = made.one_device(), helpers.two_replicas()
    weights = {one: make_real_generator(one), two: make_real_generator(two)}
    expected = outputs(one, weights[one], 7)
    assert expected["pool_3"].shape == (50, 12)
    for strategy, batch_size in ((one, 64), (two, 7), (two, 64)):
        for name, value in outputs(strategy, weights[strategy], batch_size).items():
            np.testing.assert_allclose(
                value, expected[name], atol=2e-5, err_msg=f"{name}, batch {batch_size}"
            )


def test_quantize_rounds_to_eight_bits(evaluator):
    images = np.full([2, 32, 32, 3], 0.1234, np.float32)
    level = round((0.1234 + 1) * 127.5)
    np.testing.assert_allclose(evaluator._embedder(images)["pool_3"], level / 127.5 - 1, atol=1e-6)


def test_resize_of_the_protocol_is_the_one_that_is_used(network):
    def darken(images, size):
        return tf.image.resize(images, [size, size]) - 0.5

    embedder = embedding.Embedder(
        strategy=made.one_device(),
        protocol=protocol.Protocol(batch_size=4, features=network, resize=darken, quantize=False),
        progress=False,
    )
    np.testing.assert_allclose(
        embedder(np.full([3, 64, 64, 3], 0.25, np.float32))["pool_3"], -0.25, atol=1e-6
    )


def test_other_seeds_compile_nothing_anew(evaluator):
    for seed in (0, 1, 2):
        evaluator.generated_outputs(seed=seed)
    assert evaluator._embed_generated.experimental_get_tracing_count() == 1


def test_interrupted_evaluation_goes_on_and_gives_the_same(
    network, generator, evaluator, small_shards, monkeypatch, tmp_path
):
    path = save(tmp_path, generator, 3)
    whole = evaluator.evaluate(checkpoint=path, step=3)
    first = make_evaluator(network, generator, work_dir=str(tmp_path / "work"))
    stop_after(monkeypatch, first, 3)
    with pytest.raises(KeyboardInterrupt):
        first.evaluate(checkpoint=path, step=3)
    assert len(list((tmp_path / "work").rglob("*.npz"))) == 3
    second = make_evaluator(network, generator, work_dir=str(tmp_path / "work"))
    seen = stop_after(monkeypatch, second, 100)
    record = second.evaluate(checkpoint=path, step=3)
    assert seen == [48]
    for name in ("fid", "kid", "inception_score"):
        assert record[name] == pytest.approx(whole[name], rel=1e-9)
    assert not list((tmp_path / "work").rglob("*.npz"))


def test_what_has_been_scored_is_not_computed_again(network, generator, monkeypatch, tmp_path):
    path = save(tmp_path, generator, 3)
    first = make_evaluator(network, generator, work_dir=str(tmp_path / "work"), keep_features=True)
    record = first.evaluate(checkpoint=path, step=3)
    assert list((tmp_path / "work").rglob("*.npz"))
    again = make_evaluator(network, generator, work_dir=str(tmp_path / "work"))
    seen = stop_after(monkeypatch, again, 100)
    assert again.evaluate(checkpoint=path, step=3)["fid"] == record["fid"]
    assert not seen
    # Another seed and another protocol are other work.
    assert again.evaluate(checkpoint=path, step=3, seed=1)["fid"] != record["fid"]
    other = make_evaluator(
        network, generator, work_dir=str(tmp_path / "work"), settings=dict(num_samples=40)
    )
    assert other.evaluate(checkpoint=path, step=3)["num_samples"] == 40


def test_the_same_work_finished_by_another_process_is_taken_from_it(
    network, generator, monkeypatch, tmp_path
):
    path = save(tmp_path, generator, 3)
    mine, other = (
        make_evaluator(network, generator, work_dir=str(tmp_path / "work")) for _ in range(2)
    )
    generated_outputs, records = mine.generated_outputs, []

    def overtaken(**kwargs):
        parts = generated_outputs(**kwargs)
        records.append(other.evaluate(checkpoint=path, step=3))
        return parts

    monkeypatch.setattr(mine, "generated_outputs", overtaken)
    assert mine.evaluate(checkpoint=path, step=3)["time"] == records[0]["time"]


def test_another_run_under_the_same_name_is_scored_anew(network, tmp_path):
    generator = make_generator()
    evaluator = make_evaluator(network, generator, work_dir=str(tmp_path / "work"))
    (before,) = evaluator.evaluate_checkpoint(save(tmp_path, generator, 3))
    generator.to_rgb.bias.assign([0.5] * 3)
    (after,) = evaluator.evaluate_checkpoint(save(tmp_path, generator, 3))
    assert before["checkpoint"] == after["checkpoint"] and before["fid"] != after["fid"]


def test_hosts_share_an_evaluation(
    network, generator, evaluator, small_shards, monkeypatch, tmp_path
):
    path = save(tmp_path, generator, 3)
    expected = evaluator.evaluate(checkpoint=path, step=3)
    hosts = [
        make_evaluator(
            network,
            generator,
            data_dir=str(tmp_path),
            work_dir=str(tmp_path / "work"),
            share=shards.Share(index, 2, timeout=0),
        )
        for index in range(2)
    ]
    seen = [stop_after(monkeypatch, host, 100) for host in hosts]
    with pytest.raises(
        ValueError, match="2 of 4 shards of .* are missing, the first with rows 16 to 31"
    ):
        hosts[0].reference()
    assert hosts[1].evaluate(checkpoint=path, step=3) is None
    record = hosts[0].evaluate(checkpoint=path, step=3)
    assert seen == [[0, 32], [16, 48]]
    assert (record["fid"], record["kid"]) == pytest.approx(
        (expected["fid"], expected["kid"]), rel=1e-9
    )
    assert hosts[1].evaluate(checkpoint=path, step=3)["fid"] == record["fid"]


@pytest.mark.parametrize("index, of", [(2, 2), (-1, 2), (0, 0)])
def test_share_outside_the_hosts_is_refused(index, of):
    with pytest.raises(ValueError, match=f"got {index} of {of}"):
        shards.Share(index, of)


def test_repeats_take_the_next_seeds_and_are_put_together(network, generator, evaluator, tmp_path):
    path = save(tmp_path, generator, 3)
    *single, together = evaluator.evaluate_checkpoint(path, repeats=3)
    assert [record["seed"] for record in single] == [0, 1, 2]
    assert single[1]["fid"] == pytest.approx(
        evaluator.evaluate(checkpoint=path, step=3, seed=1)["fid"]
    )
    fids = [record["fid"] for record in single]
    assert len(set(fids)) == 3
    assert (together["kind"], together["step"], together["repeats"]) == ("aggregate", 3, 3)
    assert together["seeds"] == [0, 1, 2] and "seed" not in together
    assert together["fid"] == pytest.approx(sum(fids) / 3)
    spread = together["scores"]["fid"]
    assert spread["values"] == fids and spread["min"] == min(fids)
    mean = sum(fids) / 3
    assert spread["std"] == pytest.approx(math.sqrt(sum((f - mean) ** 2 for f in fids) / 2))
    assert together["protocol"] == single[0]["protocol"]
    # Found again under another path, it's the same checkpoint all the same.
    elsewhere = history.aggregate([{**single[0], "checkpoint": "elsewhere/ckpt-3"}, single[1]])
    assert elsewhere["checkpoint"] == "elsewhere/ckpt-3" and elsewhere["repeats"] == 2


def test_only_repeats_are_put_together(evaluator):
    record = evaluator.evaluate(checkpoint="", step=0)
    other = {**record, "protocol": {**record["protocol"], "fingerprint": "another"}}
    with pytest.raises(ValueError, match="checkpoint and protocol must be the same"):
        history.aggregate([record, other])


def test_checkpoint_named_is_the_one_that_is_scored_and_is_pinned_meanwhile(
    network, monkeypatch, tmp_path
):
    generator = make_generator()
    first = save(tmp_path, generator, 3)
    generator.to_rgb.bias.assign([0.9] * 3)
    save(tmp_path, generator, 4)
    evaluator = make_evaluator(network, generator)
    evaluate, seen = evaluator.evaluate, []

    def looking(**kwargs):
        seen.append(len(list((tmp_path / "checkpoints").glob("ckpt-3.pin*"))))
        return evaluate(**kwargs)

    monkeypatch.setattr(evaluator, "evaluate", looking)
    (record,) = evaluator.evaluate_checkpoint(first)
    assert record["step"] == 3 and seen == [1]
    np.testing.assert_array_equal(generator.to_rgb.bias, [0, 0, 0])
    assert not list((tmp_path / "checkpoints").glob("*pin*"))


def test_checkpoint_of_another_configuration_names_both_sides(evaluator, tmp_path):
    path = save(tmp_path, make_generator(width=2), 3)
    with pytest.raises(
        ValueError, match=r"dense/kernel: \[8, 32\] in the checkpoint, \[8, 64\] in this config"
    ):
        list(evaluator.evaluate_checkpoint(path))


def test_diverged_generator_is_an_error(network, tmp_path):
    evaluator = make_evaluator(network, work_dir=str(tmp_path / "work"))
    evaluator.generator.to_rgb.bias.assign([math.nan] * 3)
    path = save(tmp_path, evaluator.generator, 9)
    with pytest.raises(
        ValueError, match="ckpt-9: logits has .* values that aren't finite .*has diverged"
    ):
        evaluator.evaluate(checkpoint=path, step=9)
    assert not list((tmp_path / "work").rglob("*.npz"))


def test_fewer_samples_than_asked_for_are_refused(evaluator):
    parts = shards.Shards(None, count=40)
    parts.write((0, 40), {"pool_3": helpers.array(40, 12), "logits": helpers.array(40, 12)})
    with pytest.raises(ValueError, match="asks for 50 samples, but there are 40"):
        scoring.scores(evaluator.reference(), parts, evaluator.protocol)


def watched(evaluator, folder, **kwargs):
    published = []
    watch.evaluate_new_checkpoints(
        evaluator,
        model_dir=str(folder),
        publish=published.append,
        **{**dict(final_step=4, timeout=0.1, poll_seconds=0.05), **kwargs},
    )
    return published


def test_watching_scores_every_checkpoint_once_and_ends_with_training(
    network, generator, evaluator, monkeypatch, tmp_path
):
    save(tmp_path, generator, 0, 2, 4)
    assert [record["step"] for record in watched(evaluator, tmp_path, timeout=1e6)] == [0, 2, 4]
    # Training that never comes to its end.
    assert [record["step"] for record in watched(evaluator, tmp_path, final_step=6)] == [0, 2, 4]
    assert not list((tmp_path / "checkpoints").glob("*pin*"))


def test_watching_goes_on_where_it_was(network, generator, monkeypatch, tmp_path):
    save(tmp_path, generator, 0, 2)
    work = str(tmp_path / "evaluation")
    first = make_evaluator(network, generator, work_dir=work)
    before = watched(first, tmp_path, repeats=2)
    save(tmp_path, generator, 3, 4)
    again = make_evaluator(network, generator, work_dir=work)
    seen = stop_after(monkeypatch, again, 100)
    after = watched(again, tmp_path, repeats=2)
    assert [record["step"] for record in after] == [0, 0, 0, 2, 2, 2, 3, 3, 3, 4, 4, 4]
    assert [history.key_of(record) for record in after[:6]] == [
        history.key_of(record) for record in before
    ]
    assert len({history.key_of(record) for record in after}) == 12
    # Two new checkpoints, two seeds, 50 samples in batches of 16.
    assert len(seen) == 2 * 2 * 4


def test_checkpoints_that_appear_while_one_is_scored_are_pinned(
    network, generator, evaluator, monkeypatch, tmp_path
):
    save(tmp_path, generator, 0)
    restore, pinned = evaluator.restore, []

    def slow(path):
        if not pinned:
            save(tmp_path, generator, 2, 4)
            while (
                len(names := sorted(p.name for p in (tmp_path / "checkpoints").glob("*.pin*"))) < 4
            ):
                pass
            pinned.extend(name.split(".")[0] for name in names)
        restore(path)

    monkeypatch.setattr(evaluator, "restore", slow)
    assert [record["step"] for record in watched(evaluator, tmp_path, timeout=1e6)] == [0, 2, 4]
    assert {"ckpt-2", "ckpt-4"} <= set(pinned)


def test_watching_survives_a_diverged_checkpoint(network, tmp_path):
    generator = make_generator()
    save(tmp_path, generator, 0)
    generator.to_rgb.bias.assign([math.nan] * 3)
    save(tmp_path, generator, 2)
    generator.to_rgb.bias.assign([0] * 3)
    save(tmp_path, generator, 4)
    zero, two, four = watched(make_evaluator(network, generator), tmp_path)
    assert (zero["kind"], two["kind"], four["kind"]) == ("evaluation", "event", "evaluation")
    assert two["step"] == 2 and "diverged" in two["event"]


# Weights and batch norm.


def test_moving_average_of_the_weights_is_scored_when_the_protocol_says_so(network, tmp_path):
    generator, average = (make_generator() for _ in range(2))
    average.to_rgb.bias.assign([0.5] * 3)
    variables = contents.network_variables("generator", generator)
    variables |= contents.network_variables("generator_ema", average)
    variables["step"] = tf.Variable(3, dtype=tf.int64)
    path = checkpoints.Checkpoints(str(tmp_path / "checkpoints"), variables).save()
    raw, ema = (
        make_evaluator(network, generator, settings=dict(weights=weights))
        for weights in ("raw", "ema")
    )
    (of_raw,), (of_ema,) = raw.evaluate_checkpoint(path), ema.evaluate_checkpoint(path)
    np.testing.assert_array_equal(generator.to_rgb.bias, [0.5] * 3)
    assert (of_raw["weights"], of_ema["weights"]) == ("raw", "ema")
    assert of_raw["protocol"]["fingerprint"] != of_ema["protocol"]["fingerprint"]
    expected = make_evaluator(network, average).evaluate(checkpoint="", step=0)["fid"]
    assert of_ema["fid"] == pytest.approx(expected) and of_raw["fid"] != pytest.approx(expected)


def test_moving_average_that_is_not_there_is_refused(network, generator, tmp_path):
    evaluator = make_evaluator(network, generator, settings=dict(weights="ema"))
    with pytest.raises(ValueError, match="ckpt-3 holds no generator_ema/ variables"):
        list(evaluator.evaluate_checkpoint(save(tmp_path, generator, 3)))


def test_standing_statistics_leave_the_generator_as_it_was(network):
    generator = make_generator()
    before = {v.path: v.numpy() for v in generator.variables}
    standing = functools.partial(sampling.StandingStatistics, batches=2, batch_size=8)
    evaluator = make_evaluator(network, generator, settings=dict(batch_norm=standing))
    record = evaluator.evaluate(checkpoint="", step=0)
    assert record["batch_norm"] == "standing statistics of 2 batches of 8"
    for variable in generator.variables:
        np.testing.assert_array_equal(variable, before[variable.path], err_msg=variable.path)
    plain = make_evaluator(network, generator)
    assert plain.evaluate(checkpoint="", step=0)["fid"] != record["fid"]
    assert plain.description["fingerprint"] != evaluator.description["fingerprint"]
    # What is traced afterwards has the moving averages again.
    assert "inference_moments" not in vars(generator.norm)
    assert generator.norm.moments_source is None


# Protocols.


def test_val_50k_is_the_default(network):
    settings = protocol.Protocol()
    assert (settings.num_samples, settings.quantize, settings.weights) == (50_000, True, "raw")
    real = dict(made_fingerprint(network), split="validation", count=50_000)
    moving = sampling.MovingAverages(None)

    def name(protocol_, reference_=real):
        return protocol.describe(protocol_, batch_norm=moving, reference=reference_)["name"]

    assert name(settings) == name(dataclasses.replace(settings, seed=3, batch_size=8)) == "val-50k"
    assert name(dataclasses.replace(settings, num_samples=10_000)) == "custom"
    assert name(dataclasses.replace(settings, labels=protocol.balanced)) == "custom"
    assert name(settings, {**real, "split": "train"}) == "custom"
    assert name(dataclasses.replace(settings, name="mine", quantize=False)) == "mine"


def made_fingerprint(network, **settings):
    return reference.fingerprint(
        made.MadeDataset(),
        network=network(),
        protocol=protocol.Protocol(features=network, **settings),
    )


@pytest.mark.parametrize(
    "changed, same",
    [
        (dict(num_samples=51), False),
        (dict(labels=protocol.balanced), False),
        (dict(truncation=0.5), False),
        (dict(weights="ema"), False),
        (dict(batch_norm=sampling.BatchStatistics), False),
        (dict(quantize=False), False),
        (dict(resize=protocol.half_pixel_bilinear), False),
        (dict(reference_count=60), False),
        (dict(reference_repeated=4), False),
        (dict(seed=1), True),
        (dict(repeats=3), True),
        (dict(batch_size=10), True),
        (dict(name="mine"), True),
    ],
)
def test_fingerprint_is_of_what_decides_the_number(network, generator, evaluator, changed, same):
    other = make_evaluator(network, generator, settings=changed)
    assert (other.description["fingerprint"] == evaluator.description["fingerprint"]) == same


@pytest.mark.parametrize(
    "settings, message",
    [
        (dict(num_samples=1), "num_samples must be at least 2, got 1"),
        (dict(reference_count=1), "reference_count must be at least 2, got 1"),
        (dict(repeats=0), "repeats must be at least 1, got 0"),
        (dict(batch_size=0), "batch_size must be at least 1, got 0"),
        (dict(reference_repeated=-1), "reference_repeated must be at least 0, got -1"),
        (dict(truncation=0), "truncation must be positive .* got 0"),
        (dict(name="my own"), "name must be letters, .* got 'my own'"),
        (dict(weights="best"), "weights must be one of raw, ema, got 'best'"),
    ],
)
def test_settings_without_meaning_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        protocol.Protocol(**settings)


def test_part_without_a_name_is_refused():
    assert protocol.in_words(protocol.train_histogram) == "train histogram"
    with pytest.raises(ValueError, match="give it an attribute `words`"):
        protocol.in_words(functools.partial(protocol.uniform))


def draw_labels(part, dataset, count):
    keys = tf.stack([tf.zeros(count, tf.int32), tf.range(count)], axis=1)
    return tf.function(part(dataset))(tf.range(count), keys).numpy()


def test_balanced_labels_are_equally_often_each():
    np.testing.assert_array_equal(
        np.bincount(draw_labels(protocol.balanced, made.MadeDataset(), 30)), [10, 10, 10]
    )


def test_labels_follow_the_histogram_of_training():
    dataset = made.MadeDataset()
    dataset.labels = np.repeat([0, 1, 2], [6, 24, 34])
    frequencies = np.bincount(draw_labels(protocol.train_histogram, dataset, 3000)) / 3000
    # Five standard deviations.
    np.testing.assert_allclose(
        frequencies, np.array([6, 24, 34]) / 64, atol=5 * np.sqrt(0.25 / 3000)
    )


# The reference.


def test_scores_that_are_missing_are_computed_for_what_has_been_scored(
    network, generator, tmp_path
):
    path = save(tmp_path, generator, 3)
    work_dir = str(tmp_path / "work")
    few, more = (scores.standard,), (scores.standard, scores.infinity)
    first = make_evaluator(network, generator, work_dir=work_dir, settings=dict(scores=few))
    record = first.evaluate(checkpoint=path, step=3)
    assert "fid_infinity" not in record
    richer = make_evaluator(network, generator, work_dir=work_dir, settings=dict(scores=more))
    found = richer.evaluate(checkpoint=path, step=3)
    assert found["fid"] == record["fid"] and np.isfinite(found["fid_infinity"])
    assert found["protocol"] == record["protocol"]
    assert history.key_of(found) != history.key_of(record)
    # The richer record serves both from now on.
    assert first.evaluate(checkpoint=path, step=3)["time"] == found["time"]


def test_reference_is_kept_and_found_again(network, generator, tmp_path):
    first = make_evaluator(network, generator, data_dir=str(tmp_path)).reference()
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npz")}
    second = make_evaluator(network, generator, data_dir=str(tmp_path)).reference()
    np.testing.assert_array_equal(first.features, second.features)
    np.testing.assert_array_equal(first.moments.scatter, second.moments.scatter)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npz")} == stamps
    make_evaluator(
        network, generator, data_dir=str(tmp_path), settings=dict(quantize=False)
    ).reference()
    assert len(list((tmp_path / "reference_features").iterdir())) == 2


def test_reference_of_other_pixels_is_refused_by_field(network, generator, tmp_path):
    folder = make_evaluator(network, generator, data_dir=str(tmp_path)).reference().folder
    same = make_evaluator(network, generator, settings=dict(reference_folder=folder))
    assert same.reference().moments.count == 64
    for settings, message in (
        (dict(quantize=False), "quantize is True there, False here"),
        (
            dict(resize=protocol.half_pixel_bilinear),
            "resize is 'tf1 bilinear' there, 'half pixel bilinear' here",
        ),
        (dict(reference_count=60), "count is 64 there, 60 here"),
    ):
        other = make_evaluator(
            network, generator, settings={**settings, "reference_folder": folder}
        )
        with pytest.raises(ValueError, match=message):
            other.reference()
    larger = make_evaluator(
        network,
        generator,
        dataset=made.MadeDataset(image_size=64),
        settings=dict(reference_folder=folder),
    )
    with pytest.raises(ValueError, match="image_size is 32 there, 64 here"):
        larger.reference()


def real_features(evaluator):
    return evaluator._embedder.network(
        tf.round((made.MadeDataset().images + 1) * 127.5) / 127.5 - 1
    )["pool_3"].numpy()


def test_reference_counts_images_twice_when_asked_to(network, generator, evaluator):
    settings = dict(reference_count=20, reference_repeated=5)
    real = make_evaluator(network, generator, settings=settings).reference()
    expected = real_features(evaluator)[[*range(20), *range(5)]]
    assert real.moments.count == 25
    np.testing.assert_allclose(real.moments.mean, expected.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(real.moments.covariance, np.cov(expected.T), atol=1e-6)
    np.testing.assert_allclose(np.sort(real.features, axis=0), np.sort(expected, axis=0), atol=1e-6)


def test_features_of_a_large_reference_are_a_random_part_of_it(evaluator, monkeypatch):
    monkeypatch.setattr(reference, "MAX_FEATURES", 10)
    real = evaluator._embedder.reference(made.MadeDataset())
    assert real.features.shape == (10, 12) and real.moments.count == 64
    rows = np.abs(real.features[:, None] - real_features(evaluator)).max(axis=2).argmin(axis=1)
    assert len(set(rows)) == 10 and list(rows) != sorted(rows) and rows.max() > 20


def test_interrupted_reference_goes_on(
    network, generator, evaluator, small_shards, monkeypatch, tmp_path
):
    embedder = make_evaluator(network, generator)._embedder
    embed, seen = embedding.Embedder.__call__, []

    def embed_some(self, images):
        seen.append(len(images))
        if len(seen) == 3:
            raise KeyboardInterrupt
        return embed(self, images)

    monkeypatch.setattr(embedding.Embedder, "__call__", embed_some)
    with pytest.raises(KeyboardInterrupt):
        embedder.reference(made.MadeDataset(), data_dir=str(tmp_path))
    (folder,) = (tmp_path / "reference_features").iterdir()
    assert not reference.is_built(folder)
    with pytest.raises(ValueError, match=r"There is no .*reference.npz"):
        reference.load(str(folder))
    real = embedder.reference(made.MadeDataset(), data_dir=str(tmp_path))
    assert len(seen) == 3 + 2
    np.testing.assert_array_equal(real.features, evaluator.reference().features)
    np.testing.assert_allclose(
        real.moments.scatter, evaluator.reference().moments.scatter, rtol=1e-12, atol=1e-12
    )


def test_more_reference_images_than_there_are_is_refused(network):
    with pytest.raises(
        ValueError, match="reference_count is 65, but split 'train' of made has 64 images"
    ):
        made_fingerprint(network, reference_count=65)
    with pytest.raises(ValueError, match="reference_repeated is 21, but there are only 20 images"):
        made_fingerprint(network, reference_count=20, reference_repeated=21)


def test_split_that_ends_early_is_refused(evaluator):
    class Short(made.MadeDataset):
        def num_examples(self, split):
            return 70

    with pytest.raises(ValueError, match="ended after 64 images, but says it has at least 70"):
        evaluator._embedder.reference(Short())


def test_pickled_objects_are_refused(tmp_path):
    np.savez(tmp_path / "reference.npz", fingerprint="{}", count=np.array([object()]))
    with pytest.raises(
        ValueError,
        match=r"reference.npz must be an npz file of plain arrays, without pickled objects",
    ):
        reference.load(str(tmp_path))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut"])
def test_damaged_reference_is_named(tmp_path, content):
    (tmp_path / "reference.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"reference.npz must be an npz file"):
        reference.load(str(tmp_path))


def test_reference_with_moments_that_are_not_symmetric_is_refused(network, generator, tmp_path):
    folder = make_evaluator(network, generator, data_dir=str(tmp_path)).reference().folder
    stored = dict(np.load(f"{folder}/reference.npz"))
    stored["scatter"][0, 1] += 1
    np.savez(f"{folder}/reference.npz", **stored)
    with pytest.raises(ValueError, match="scatter must be symmetric"):
        reference.load(folder)


def test_reference_is_described(network, generator, tmp_path):
    real = make_evaluator(network, generator, data_dir=str(tmp_path)).reference()
    text = reference.describe(real)
    assert real.folder in text
    assert [
        name for name in real.fingerprint if f"{name}: {real.fingerprint[name]}" not in text
    ] == []


def test_factor_is_that_of_the_moments(evaluator):
    real = evaluator.reference()
    expected = metrics.frechet_factor(metrics.Moments.from_features(real_features(evaluator)))
    np.testing.assert_allclose(real.factor.mean, expected.mean, atol=1e-6)
    assert real.factor is evaluator.reference().factor
    json.dumps(real.fingerprint)


def test_neighbours_of_samples_are_sought_in_the_training_split(network, generator, tmp_path):
    dataset = made.MadeDataset(count=100)
    scorer = make_evaluator(
        network, generator, dataset=dataset, data_dir=str(tmp_path), settings={"num_samples": 60}
    )
    result = scorer.compare_with_training(tmp_path / "run", step=7, num_samples=40, num_training=80)
    assert (result["num_generated"], result["num_training"]) == (40, 80)
    record = json.loads((tmp_path / "run" / "neighbours" / "step-00000007.json").read_text())
    # In stored order, whatever order the reference keeps for KID.
    embed = embedding.Embedder(strategy=made.one_device(), protocol=scorer.protocol, progress=False)
    training = np.concatenate(
        [embed(dataset.images[i : i + 16])["pool_3"] for i in range(0, 80, 16)]
    )
    fake = joined(scorer.generated_outputs())["pool_3"][:8]
    distances = np.linalg.norm(fake[:, None].astype(np.float64) - training, axis=2)
    assert [row[0] for row in record["shown"]["indices"]] == distances.argmin(axis=1).tolist()
    np.testing.assert_allclose(
        [row[0] for row in record["shown"]["distances"]], distances.min(axis=1), rtol=1e-4
    )


@pytest.mark.parametrize(
    "counts, told",
    [
        ((64, 65, 65), None),
        ((64, 64, 65), "64 samples are too few for 64 features"),
        ((2048, 50_000, 3), "3 real images are too few for 2,048 features"),
        ((2048, 500, 3), "500 samples and 3 real images are too few for 2,048 features"),
    ],
)
def test_fewer_images_than_features_are_a_caution(counts, told):
    words = scoring.too_few(*counts)
    assert words is None if told is None else words.startswith(told)


def test_a_record_of_too_few_samples_carries_the_caution(network, generator, tmp_path):
    path = save(tmp_path, generator, 3)
    few = make_evaluator(network, generator, settings=dict(num_samples=12))
    record = few.evaluate(checkpoint=path, step=3)
    assert record["caution"].startswith("12 samples are too few for 12 features")
    assert terminal.line_of(record).endswith("none of other counts.")
    enough = make_evaluator(network, generator)
    assert "caution" not in enough.evaluate(checkpoint=path, step=3)
