"""Each function of hamgan.evaluation.scores puts the right number under the right name."""

import types

import numpy as np
import prdc
import pytest
import tensorflow as tf

from hamgan import tfgan
from hamgan.evaluation import metrics, scores
from hamgan.evaluation.protocol import Protocol


@pytest.fixture(scope="module")
def data():
    """(real, features, logits) with fewer samples than TF-GAN puts into a block of KID."""
    rng = np.random.default_rng(0)
    real = rng.standard_normal((300, 6)).astype(np.float32)
    features = (1.2 * rng.standard_normal((250, 6)) + 0.3).astype(np.float32)
    factor = metrics.frechet_factor(metrics.Moments.from_features(real))
    logits = 3 * rng.standard_normal((250, 5)).astype(np.float32)
    return types.SimpleNamespace(factor=factor, features=real), features, logits


def test_standard_scores_are_tf_gans(data):
    real, features, logits = data
    found = scores.standard(*data)
    fid = tfgan.frechet_classifier_distance_from_activations(
        tf.constant(real.features), tf.constant(features)
    )
    kid = tfgan.kernel_classifier_distance_from_activations(
        tf.constant(real.features), tf.constant(features)
    )
    assert found["fid"] == pytest.approx(float(fid), rel=1e-5)
    assert found["fid_mean_term"] + found["fid_trace_term"] == pytest.approx(
        found["fid"], rel=1e-12
    )
    assert found["fid_mean_term"] == pytest.approx(
        np.square(np.float64(real.features).mean(0) - np.float64(features).mean(0)).sum()
    )
    assert found["fid_smallest_eigenvalue"] > 0
    assert found["kid"] == pytest.approx(float(kid), rel=1e-4)
    assert found["inception_score"] == pytest.approx(
        float(tfgan.classifier_score_from_logits(tf.constant(logits)))
    )


def test_intervals_hold_their_scores(data):
    standard, found = scores.standard(*data), scores.intervals(*data)
    assert set(found) == {"fid_interval", "inception_score_interval"}
    for name, (low, high) in found.items():
        score = standard[name.removesuffix("_interval")]
        assert low < score < high < low + score


def test_more_samples_would_have_a_lower_fid(data):
    found = scores.infinity(*data)
    assert 0 < found["fid_infinity"] < scores.standard(*data)["fid"]
    assert found["fid_infinity_stderr"] > 0


def test_subsets_of_everything_are_the_plain_estimate(data):
    real, features, logits = data
    found = scores.kid_subsets(
        types.SimpleNamespace(features=real.features[:250]), features, logits
    )
    expected, _ = metrics.kernel_distance(real.features[:250], features)
    assert found["kid_subsets"] == pytest.approx(expected, rel=1e-9)
    assert found["kid_subsets_std"] == pytest.approx(0, abs=1e-9)


def test_quality_and_variety_are_prdcs(data):
    real, features, logits = data
    found = scores.quality_and_variety(*data)
    threes = prdc.compute_prdc(real.features, features, nearest_k=3)
    fives = prdc.compute_prdc(real.features, features, nearest_k=5)
    expected = {name: threes[name] for name in ("precision", "recall")}
    expected.update({name: fives[name] for name in ("density", "coverage")})
    assert found == pytest.approx(expected)


def test_protocol_without_fid_is_refused():
    with pytest.raises(ValueError, match="scores must have scores.standard among them.*infinity"):
        Protocol(scores=(scores.infinity,))


def test_direction_of_a_score_is_one_of_two():
    with pytest.raises(ValueError, match="better must be 'lower' or 'higher', got 'more'"):
        scores.Score(name="x", title="X", better="more")


def test_no_two_scores_have_one_name_and_those_of_the_functions_are_shown(data):
    names = [score.name for score in scores.SCORES]
    assert len(set(names)) == len(names)
    computed = scores.standard(*data) | scores.infinity(*data) | scores.kid_subsets(*data)
    computed |= scores.quality_and_variety(*data)
    assert set(names) <= set(computed)
    assert scores.HEADLINE in scores.LEADING
