"""What decides a number decides where it is kept: an evaluation, a reference, a shard, a record."""

import dataclasses
import functools
import json
import pathlib
import shutil
import time
from concurrent.futures import ThreadPoolExecutor

import made
import numpy as np
import pytest
import tensorflow as tf
from test_runner import Pooled, make_evaluator, make_generator, save

from hamgan import context, sampling
from hamgan.evaluation import features, protocol, reference, settings, shards, watch
from hamgan.run import checkpoints, contents, history, identity, records
from hamgan.run.log import Log


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("network"))
    module = Pooled()
    tf.saved_model.save(module, path, signatures={"serving_default": module.__call__})
    return functools.partial(features.FeatureNetwork, handle=path, size=32)


@pytest.fixture(scope="module")
def generator():
    return make_generator()


def ham_evaluator(network, steps, tmp_path):
    strategy = made.one_device()
    ham = functools.partial(context.Hamburger, rank=2, eval_steps=steps)
    with strategy.scope():
        generator = made.small_generator(context=ham)
    generator.context.gate.assign(0.7)
    return make_evaluator(network, generator, strategy=strategy, work_dir=str(tmp_path / "work"))


def test_other_settings_of_the_generator_have_their_own_number(network, tmp_path):
    one = ham_evaluator(network, 1, tmp_path)
    path = save(tmp_path, one.generator, 3)
    (first,) = one.evaluate_checkpoint(path)
    (other,) = ham_evaluator(network, 6, tmp_path).evaluate_checkpoint(path)
    (again,) = ham_evaluator(network, 1, tmp_path).evaluate_checkpoint(path)
    assert first["fid"] != other["fid"] and again["time"] == first["time"]
    assert first["generator"]["digest"] != other["generator"]["digest"]
    assert history.key_of(first) != history.key_of(other)
    assert history.measured_under(first) != history.measured_under(other)


def test_precision_is_a_setting_of_the_generator():
    digests = {
        settings.digest_of(made.small_generator(dtype=dtype))
        for dtype in ("float32", "mixed_bfloat16", "float32")
    }
    assert len(digests) == 2


def rewriting(monkeypatch, evaluator, folder, after):
    """Rewrites ckpt-3 with other weights after so many evaluations; returns their digests."""
    scored, evaluate = [], evaluator.evaluate

    def evaluate_and_rewrite(**kwargs):
        record = evaluate(**kwargs)
        scored.append(record["checkpoint_digest"])
        if len(scored) == after:
            other = make_generator()
            other.to_rgb.bias.assign([0.5] * 3)
            save(folder, other, 3)
        return record

    monkeypatch.setattr(evaluator, "evaluate", evaluate_and_rewrite)
    return scored


@pytest.mark.parametrize("after", [1, 2])
def test_checkpoint_that_is_rewritten_between_repeats_is_scored_again(
    network, monkeypatch, tmp_path, after
):
    generator = make_generator()
    evaluator = make_evaluator(network, generator, work_dir=str(tmp_path / "work"))
    path = save(tmp_path, generator, 3)
    before = contents.digest(path)
    scored = rewriting(monkeypatch, evaluator, tmp_path, after)
    *found, whole = evaluator.evaluate_checkpoint(path, repeats=2)
    now = contents.digest(path)
    assert scored == [before] * after + [now] * 2 and now != before
    assert [record["seed"] for record in found[-2:]] == [0, 1]
    assert whole["checkpoint_digest"] == now and whole["kind"] == "aggregate"
    # Each number is that of the weights whose digest it has.
    expected = make_evaluator(network, make_generator())
    for record in found[-2:]:
        expected.restore(path)
        fresh = expected.evaluate(checkpoint=path, step=3, seed=record["seed"])
        assert fresh["fid"] == pytest.approx(record["fid"], rel=1e-9)


def test_watching_scores_a_rewritten_checkpoint_again(network, monkeypatch, tmp_path):
    generator = make_generator()
    evaluator = make_evaluator(network, generator, work_dir=str(tmp_path / "work"))
    path = save(tmp_path, generator, 3)
    found = []

    def publish(record):
        found.append(record["checkpoint_digest"])
        if len(found) == 1:
            generator.to_rgb.bias.assign([0.5] * 3)
            save(tmp_path, generator, 3)
        if len(found) == 2:
            save(tmp_path, generator, 9)

    watch.evaluate_new_checkpoints(
        evaluator,
        model_dir=str(tmp_path),
        publish=publish,
        final_step=9,
        timeout=20,
        poll_seconds=0.1,
    )
    assert len(found) == 3 and found[0] != found[1] == contents.digest(path)


def test_checkpoint_of_a_name_of_ones_own_is_scored_at_its_step(network, generator, tmp_path):
    path = save(tmp_path, generator, 7)
    for end in (".index", ".data-00000-of-00001"):
        shutil.copy(path + end, f"{tmp_path}/checkpoints/best-fid{end}")
    named = checkpoints.find(str(tmp_path), "best-fid")
    (record,) = make_evaluator(network, generator).evaluate_checkpoint(named)
    assert record["step"] == 7 and record["checkpoint"].endswith("checkpoints/best-fid")


def test_other_images_under_the_same_name_are_refused(network, generator, tmp_path):
    of_run = identity.Identity(data={**made.MadeDataset().identity(), "content": "records:0"})
    step = tf.Variable(3, dtype=tf.int64)
    variables = {**contents.network_variables("generator", generator), "step": step}
    path = checkpoints.Checkpoints(str(tmp_path / "checkpoints"), variables, identity=of_run).save()
    with pytest.raises(ValueError, match="trained on other images.*\n.*records:0 there"):
        list(make_evaluator(network, generator).evaluate_checkpoint(path))


def test_reference_of_other_images_is_built_anew(network, generator, tmp_path):
    before = make_evaluator(network, generator, data_dir=str(tmp_path)).reference()
    other = made.MadeDataset()
    other.images = -other.images
    now = make_evaluator(network, generator, dataset=other, data_dir=str(tmp_path)).reference()
    assert now.folder != before.folder
    assert not np.allclose(now.moments.mean, before.moments.mean)


def test_reference_of_an_earlier_version_is_read_while_the_data_is_older(
    network, generator, monkeypatch, tmp_path
):
    evaluator = make_evaluator(network, generator, data_dir=str(tmp_path))
    built = evaluator.reference()
    stored = dict(np.load(f"{built.folder}/reference.npz"))
    del stored["sha256"]
    wanted = reference.without_content(built.fingerprint)
    stored["fingerprint"] = np.array(json.dumps(wanted))
    np.savez(f"{built.folder}/reference.npz", **stored)
    old = reference.folder_of(str(tmp_path), wanted)
    shutil.move(built.folder, old)
    for part in pathlib.Path(old).glob("0*.npz"):
        arrays = dict(np.load(part))
        np.savez(part, pool_3=arrays["pool_3"])
    again = make_evaluator(network, generator, data_dir=str(tmp_path)).reference()
    assert again.folder == old and len(again.features) == 64
    monkeypatch.setattr(made.MadeDataset, "last_change", lambda self, split: time.time() + 10)
    assert make_evaluator(network, generator, data_dir=str(tmp_path)).reference().folder != old


def test_file_that_holds_something_else_is_refused(tmp_path):
    parts = shards.Shards(str(tmp_path), count=3, about={"seed": 0})
    parts.write((0, 3), {"pool_3": np.ones([3, 2])})
    with pytest.raises(ValueError, match='holds something else.*"seed": 0.*"seed": 1'):
        list(shards.Shards(str(tmp_path), count=3, about={"seed": 1}).read("pool_3"))
    (path,) = tmp_path.glob("*.npz")
    arrays = dict(np.load(path))
    arrays["pool_3"][1, 1] = 2
    np.savez(path, **arrays)
    with pytest.raises(ValueError, match="was changed since it was written"):
        list(parts.read("pool_3"))


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(mean=1.0), "mean and scatter"),
        (dict(scatter=1.0), "mean and scatter"),
        (dict(count=1), "moments are of 65"),
    ],
)
def test_parts_of_a_reference_are_checked_against_each_other(
    network, generator, tmp_path, change, message
):
    folder = make_evaluator(network, generator, data_dir=str(tmp_path)).reference().folder
    stored = dict(np.load(f"{folder}/reference.npz"))
    for name, by in change.items():
        # Of one feature alone: of the scatter its place on the diagonal.
        place = () if name == "count" else (0, 0)[: stored[name].ndim]
        stored[name][place] += by if name == "count" else by * np.abs(stored[name]).max()
    del stored["sha256"]
    np.savez(f"{folder}/reference.npz", **stored)
    with pytest.raises(ValueError, match=message):
        _ = reference.load(folder).features


@pytest.mark.parametrize("name", ["paper", "val-50k", "train-full"])
def test_reserved_names_mean_their_settings(name):
    kept = protocol.Protocol(name=name, repeats=7, seed=3, **protocol.RESERVED[name])
    for changed in (
        dict(num_samples=100),
        dict(truncation=0.5),
        dict(labels=protocol.balanced),
        dict(batch_norm=sampling.BatchStatistics),
        dict(reference_split="test"),
    ):
        (field,) = changed
        with pytest.raises(ValueError, match=f"the name '{name}' means {field} .*; got {field} "):
            dataclasses.replace(kept, **changed)
        assert dataclasses.replace(kept, **changed, name="mine").name == "mine"


def test_two_evaluations_at_once_write_each_record_once(tmp_path):
    record = {
        "kind": "evaluation",
        "step": 3,
        "seed": 0,
        "checkpoint_digest": "d",
        "protocol": {"name": "mine", "fingerprint": "f"},
        "fid": 1.0,
    }
    logs = [Log(str(tmp_path)) for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda log: [log.write({**record, "seed": s}) for s in range(5)], logs))
    seeds = [of["seed"] for of in records.read(tmp_path / "metrics.jsonl")]
    assert sorted(seeds) == [0, 1, 2, 3, 4]
    # A record that was left behind is no reason to leave the same one out.
    logs[0].write({"kind": "event", "step": 2, "event": "abandoned", "from": 3, "to": 3})
    logs[1].write(record)
    assert len(records.read(tmp_path / "metrics.jsonl")) == 7
