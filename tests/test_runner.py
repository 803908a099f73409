import functools
import math

import helpers
import made
import numpy as np
import pytest
import tensorflow as tf
from test_features import Network

from hamgan import checkpoints, tfgan
from hamgan.evaluation import features, protocol, reference, runner


class Pooled(Network):
    """16 features of 32x32 images: means over patches, so that they vary smoothly."""

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


def make_evaluator(network, *, strategy=None, data_dir=None, dataset=None, **kwargs):
    trainer = made.small_trainer(strategy or made.one_device())
    made.open_gates(trainer)
    settings = protocol.Protocol(**{**dict(num_samples=50, batch_size=16, features=network), **kwargs})
    return runner.Evaluator(
        generator=trainer.generator,
        strategy=trainer.strategy,
        dataset=dataset or made.MadeDataset(),
        protocol=settings,
        data_dir=data_dir,
        progress=False,
    )


def test_record_says_how_the_number_came_about(network):
    evaluator = make_evaluator(network, seed=4)
    record = evaluator.evaluate(checkpoint="somewhere/ckpt-12", step=12)
    assert (record["kind"], record["step"], record["checkpoint"]) == ("evaluation", 12, "somewhere/ckpt-12")
    assert (record["num_samples"], record["seed"]) == (50, 4)
    assert record["features"]["digest"] == evaluator.network.digest
    assert record["reference"]["dataset"] == "made" and record["reference"]["count"] == 64


def test_scores_are_tf_gans(network):
    evaluator = make_evaluator(network, quantize=False)
    record = evaluator.evaluate(checkpoint="", step=0)
    generated = evaluator.generated_outputs()
    real = evaluator.network(made.MadeDataset().images)["pool_3"]
    expected = tfgan.frechet_classifier_distance_from_activations(real, tf.constant(generated["pool_3"]))
    assert record["fid"] == pytest.approx(float(expected), rel=1e-5)
    assert record["inception_score"] == pytest.approx(
        float(tfgan.classifier_score_from_logits(tf.constant(generated["logits"]))), rel=1e-5
    )


def test_exactly_n_samples_whatever_the_batch_size_and_replicas(network):
    expected = make_evaluator(network).generated_outputs()
    assert expected["pool_3"].shape == (50, 12)
    for strategy, batch_size in ((made.one_device(), 64), (helpers.two_replicas(), 7)):
        got = make_evaluator(network, strategy=strategy, batch_size=batch_size).generated_outputs()
        for name, value in expected.items():
            # Rounding to 8 bits can move a pixel by a whole level.
            np.testing.assert_allclose(got[name], value, atol=1e-3, err_msg=name)


def test_quantize_rounds_to_eight_bits(network):
    evaluator = make_evaluator(network)
    images = np.full([2, 32, 32, 3], 0.1234, np.float32)
    level = round((0.1234 + 1) * 127.5)
    np.testing.assert_allclose(evaluator._embed(images)["pool_3"], level / 127.5 - 1, atol=1e-6)


def test_reference_is_kept_and_checked(network, tmp_path):
    first = make_evaluator(network, data_dir=str(tmp_path)).reference()
    (path,) = (tmp_path / "reference_features").iterdir()
    stamp = path.stat().st_mtime_ns
    second = make_evaluator(network, data_dir=str(tmp_path)).reference()
    np.testing.assert_array_equal(first.features, second.features)
    assert path.stat().st_mtime_ns == stamp
    make_evaluator(network, data_dir=str(tmp_path), quantize=False).reference()
    assert len(list((tmp_path / "reference_features").iterdir())) == 2


def test_reference_of_other_settings_is_refused_by_field(network, tmp_path):
    made_for = make_evaluator(network, data_dir=str(tmp_path))
    made_for.reference()
    (path,) = (tmp_path / "reference_features").iterdir()
    fingerprint = {**made_for.reference().fingerprint, "split": "validation"}
    with pytest.raises(ValueError, match="split is 'train' there, 'validation' here"):
        reference._read(str(path), fingerprint)


def test_reference_count_takes_the_first_images(network):
    evaluator = make_evaluator(network, reference_count=20)
    assert evaluator.reference().features.shape == (20, 12)
    whole = make_evaluator(network).reference().features
    np.testing.assert_allclose(evaluator.reference().features, whole[:20], atol=1e-6)


def test_more_reference_images_than_there_are_is_refused(network):
    with pytest.raises(ValueError, match="reference_count is 65, but split 'train' of made has 64 images"):
        make_evaluator(network, reference_count=65).reference()


@pytest.mark.parametrize("name", ["num_samples", "reference_count"])
def test_one_sample_is_refused(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 2, got 1"):
        protocol.Protocol(**{name: 1})


def test_diverged_generator_is_an_error(network):
    evaluator = make_evaluator(network)
    evaluator._sampler.generator.to_rgb.bias.assign([math.nan] * 3)
    with pytest.raises(ValueError, match="pool_3 of ckpt-9 has .* values that aren't finite"):
        evaluator.evaluate(checkpoint="ckpt-9", step=9)


def test_watching_scores_every_checkpoint_once_and_ends_with_training(network, tmp_path):
    evaluator = make_evaluator(network)
    generator = evaluator._sampler.generator
    variables = checkpoints.network_variables("generator", generator)
    step = tf.Variable(0, dtype=tf.int64)
    saved = checkpoints.Checkpoints(str(tmp_path / "checkpoints"), {**variables, "step": step}, max_to_keep=None)
    for number in (0, 2, 4):
        step.assign(number)
        saved.save()
    scored = []
    runner.evaluate_new_checkpoints(
        evaluator, variables, model_dir=str(tmp_path), publish=scored.append, done=[0], final_step=4
    )
    assert [record["step"] for record in scored] == [2, 4]
    scored.clear()
    runner.evaluate_new_checkpoints(
        evaluator,
        variables,
        model_dir=str(tmp_path),
        publish=scored.append,
        final_step=6,
        timeout=0.1,
        poll_seconds=0.05,
    )
    assert [record["step"] for record in scored] == [0, 2, 4]
