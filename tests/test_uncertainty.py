"""Intervals against derivatives, resampling by brute force and simulation; FID-infinity against
known truths.
"""

import math

import numpy as np
import pytest
import scipy.linalg
import scipy.special
import scipy.stats

from hamgan import tfgan
from hamgan.evaluation import metrics, uncertainty
from hamgan.evaluation.metrics import Moments
from hamgan.evaluation.uncertainty import (
    frechet_infinity,
    frechet_interval,
    inception_score_interval,
)


class Gaussians:
    """A reference whose moments are exact, a generator of another Gaussian, and the FID between
    them in closed form.
    """

    def __init__(self, width, *, shift=0.3, stretch=1.5):
        rng = np.random.default_rng(width)
        self._basis = np.linalg.qr(rng.normal(size=(width, width)))[0]
        real = np.geomspace(1, 0.2, width)
        self._deviation = real * np.linspace(1, stretch, width)
        self._shift = np.full(width, shift)
        covariance = (self._basis * real**2) @ self._basis.T
        self.factor = metrics.frechet_factor(
            Moments.from_arrays(
                count=1000, mean=np.zeros(width), scatter=999 * (covariance + covariance.T) / 2
            )
        )
        self.distance = np.sum(self._shift**2) + np.sum((real - self._deviation) ** 2)

    def features(self, num_samples, *, seed):
        normal = np.random.default_rng([1, seed]).normal(size=(num_samples, len(self._shift)))
        return (normal * self._deviation) @ self._basis.T + self._shift


def _logits(num_samples, classes, *, seed):
    rng = np.random.default_rng([2, seed])
    return (
        rng.normal(size=(num_samples, classes))
        + 4 * np.eye(classes)[rng.integers(classes, size=num_samples)]
    )


def _weighted_frechet(factor, features, weights):
    """FID of weighted samples by singular values, which holds at any rank."""
    count = len(features)
    mean = weights @ features
    spread = np.sqrt(weights * count / (count - 1))[:, None] * (features - mean)
    nuclear = np.linalg.svd(spread @ factor.factor, compute_uv=False).sum()
    return np.sum((mean - factor.mean) ** 2) + np.sum(spread**2) + factor.trace - 2 * nuclear


def _weighted_log_score(logits, weights):
    p = scipy.special.softmax(logits, axis=1)
    return weights @ scipy.stats.entropy(p, weights @ p, axis=1)


def _derivatives(function, count, step):
    """Of a function of weights that sum to 1, towards all the weight on one sample."""
    equal = np.full(count, 1 / count)
    directions = np.eye(count) - equal
    return np.array(
        [(function(equal + step * d) - function(equal - step * d)) / (2 * step) for d in directions]
    )


# What a sample contributes


@pytest.mark.parametrize("num_samples, width", [(60, 5), (30, 24), (20, 32)])
def test_influence_on_fid_is_the_derivative(monkeypatch, num_samples, width):
    monkeypatch.setattr(uncertainty, "_CHUNK", 7)
    gaussians = Gaussians(width)
    features = gaussians.features(num_samples, seed=0)
    moments = Moments.from_features(features)
    influence = uncertainty._frechet_influence(gaussians.factor, moments, features)
    # Small beside the weights, and large enough for the rounding.
    expected = _derivatives(
        lambda w: _weighted_frechet(gaussians.factor, features, w), num_samples, 1e-6
    )
    np.testing.assert_allclose(influence, expected, rtol=0, atol=1e-6 * np.abs(expected).max())


def test_influence_on_the_score_is_the_derivative(monkeypatch):
    monkeypatch.setattr(uncertainty, "_CHUNK", 7)
    logits = _logits(40, 6, seed=0)
    divergences = uncertainty._divergences(logits)
    np.testing.assert_allclose(
        np.exp(divergences.mean()), tfgan.classifier_score_from_logits(logits), rtol=1e-10
    )
    expected = _derivatives(lambda w: _weighted_log_score(logits, w), 40, 1e-5)
    np.testing.assert_allclose(
        divergences - divergences.mean(), expected, rtol=0, atol=1e-6 * np.abs(expected).max()
    )


def test_certain_predictions_have_finite_influence():
    logits = np.concatenate([1e4 * np.tile(np.eye(4), (5, 1)), np.full((20, 2), -1e4)], axis=1)
    np.testing.assert_allclose(uncertainty._divergences(logits), math.log(4), rtol=1e-12)


# Intervals


def test_values_are_the_scores_themselves():
    gaussians = Gaussians(8)
    features, logits = gaussians.features(100, seed=1), _logits(100, 8, seed=1)
    expected = metrics.frechet_distance(gaussians.factor, Moments.from_features(features))
    assert frechet_interval(gaussians.factor, features).value == expected
    assert inception_score_interval(logits).value == metrics.inception_score(logits)


def _brute_force(score, samples, *, num_resamples=1500):
    """Scores of real resamples, shifted to surround the score of the samples: their bias taken
    off.
    """
    rng = np.random.default_rng(0)
    scores = [
        score(samples[rng.integers(len(samples), size=len(samples))]) for _ in range(num_resamples)
    ]
    return np.array(scores) - np.mean(scores) + score(samples)


def _check_against_brute_force(interval, resampled):
    np.testing.assert_allclose(interval.stderr, resampled.std(), rtol=0.1)
    low, high = np.quantile(resampled, [0.05, 0.95])
    np.testing.assert_allclose(
        [interval.low, interval.high], [low, high], atol=0.25 * interval.stderr
    )


def test_fid_interval_equals_resampling_by_brute_force():
    gaussians = Gaussians(5)
    features = gaussians.features(500, seed=2)

    def score(x):
        return metrics.frechet_distance(gaussians.factor, Moments.from_features(x))

    interval = frechet_interval(gaussians.factor, features, level=0.9, num_resamples=4000)
    _check_against_brute_force(interval, _brute_force(score, features))


def test_score_interval_equals_resampling_by_brute_force():
    logits = _logits(500, 5, seed=2)
    interval = inception_score_interval(logits, level=0.9, num_resamples=4000)
    _check_against_brute_force(interval, _brute_force(metrics.inception_score, logits))


def test_real_resamples_lie_above_the_fid_that_they_should_surround():
    gaussians = Gaussians(60)
    features = gaussians.features(150, seed=3)
    interval = frechet_interval(gaussians.factor, features)
    rng = np.random.default_rng(0)
    resampled = [
        metrics.frechet_distance(
            gaussians.factor, Moments.from_features(features[rng.integers(150, size=150)])
        )
        for _ in range(50)
    ]
    assert min(resampled) > interval.high > interval.value > interval.low


def _coverage(intervals):
    """How many of the intervals hold the mean of their values, and their stderr over the values'
    deviation.
    """
    values = np.array([interval.value for interval in intervals])
    covered = np.mean([interval.low < values.mean() < interval.high for interval in intervals])
    return covered, np.mean([interval.stderr for interval in intervals]) / values.std(ddof=1)


def test_fid_intervals_hold_the_mean_over_samples_of_that_size():
    gaussians = Gaussians(10)
    covered, ratio = _coverage(
        [
            frechet_interval(gaussians.factor, gaussians.features(400, seed=s), num_resamples=200)
            for s in range(250)
        ]
    )
    assert 0.9 <= covered <= 0.99
    assert 0.9 < ratio < 1.15


def test_fid_intervals_are_too_wide_rather_than_too_narrow_near_zero():
    gaussians = Gaussians(10, shift=0.0, stretch=1.0)
    covered, ratio = _coverage(
        [
            frechet_interval(gaussians.factor, gaussians.features(400, seed=s), num_resamples=200)
            for s in range(150)
        ]
    )
    assert covered >= 0.95
    assert 1 < ratio < 2


def test_score_intervals_hold_the_mean_over_samples_of_that_size():
    covered, ratio = _coverage(
        [inception_score_interval(_logits(400, 6, seed=s), num_resamples=200) for s in range(250)]
    )
    assert 0.9 <= covered <= 0.99
    assert 0.9 < ratio < 1.1


def test_level_cuts_as_much_below_as_above():
    logits = _logits(2000, 4, seed=4)
    for level in (0.5, 0.95):
        interval = inception_score_interval(logits, level=level, num_resamples=4000)
        width = scipy.stats.norm.ppf((1 + level) / 2) * interval.stderr
        assert interval.level == level
        np.testing.assert_allclose(interval.high - interval.value, width, rtol=0.1)
        np.testing.assert_allclose(interval.value - interval.low, width, rtol=0.1)


def test_intervals_repeat_with_their_seed():
    gaussians = Gaussians(4)
    features, logits = gaussians.features(50, seed=5), _logits(50, 4, seed=5)
    for interval in (lambda seed: frechet_interval(gaussians.factor, features, seed=seed),) + (
        lambda seed: inception_score_interval(logits, seed=seed),
    ):
        assert interval(3) == interval(3)
        assert interval(3).low != interval(4).low


def test_equal_predictions_have_an_interval_of_no_width():
    interval = inception_score_interval(np.tile([[1.0, 2.0, 3.0]], (20, 1)))
    np.testing.assert_allclose([interval.value, interval.low, interval.high], 1, rtol=1e-12)


# FID-infinity


def test_line_equals_scipy_s_regression():
    gaussians = Gaussians(6)
    result = frechet_infinity(gaussians.factor, gaussians.features(600, seed=6), num_sizes=7)
    expected = scipy.stats.linregress(1 / np.array(result.sizes), result.distances)
    np.testing.assert_allclose(
        [result.value, result.slope], [expected.intercept, expected.slope], rtol=1e-9
    )
    residuals = result.distances - expected.intercept - expected.slope / np.array(result.sizes)
    np.testing.assert_allclose(result.residual, np.sqrt(np.mean(residuals**2)), rtol=1e-7)


def test_fit_of_an_exact_line_has_no_error():
    sizes = np.array([10, 25, 40, 100])
    result = uncertainty._fit(sizes, 7 + 30 / sizes)
    np.testing.assert_allclose([result.value, result.slope], [7, 30], rtol=1e-10)
    np.testing.assert_allclose([result.residual, result.stderr], 0, atol=1e-9)


def test_subsets_are_nested_from_a_tenth_to_all():
    gaussians = Gaussians(6)
    features = gaussians.features(1003, seed=7)
    updates = []

    def progress(sizes, description, total):
        updates.append((description, total))
        return sizes

    result = frechet_infinity(gaussians.factor, features, progress=progress)
    assert updates == [("FID-infinity", 15)]
    assert result.sizes[0] == 100 and result.sizes[-1] == 1003 and len(result.sizes) == 15
    assert set(np.diff(result.sizes)) <= {64, 65}
    everything = metrics.frechet_distance(gaussians.factor, Moments.from_features(features))
    np.testing.assert_allclose(result.distances[-1], everything, rtol=1e-9)
    smallest = frechet_infinity(gaussians.factor, features, num_sizes=3, smallest=result.sizes[7])
    assert smallest.sizes[0] == result.sizes[7]
    # The same random order: the subsets of both runs are beginnings of one another.
    np.testing.assert_allclose(smallest.distances[0], result.distances[7], rtol=1e-9)
    # Of sorted features the beginning is not what the whole is.
    ordered = features[np.argsort(features[:, 0])]
    beginning = metrics.frechet_distance(gaussians.factor, Moments.from_features(ordered[:100]))
    assert frechet_infinity(gaussians.factor, ordered).distances[0] < 2 * everything < beginning


def test_infinity_is_the_truth_where_fid_is_not():
    gaussians = Gaussians(30, shift=0.1, stretch=1.3)
    results = [
        frechet_infinity(gaussians.factor, gaussians.features(1500, seed=s)) for s in range(200)
    ]
    values = np.array([result.value for result in results])
    finite = np.array([result.distances[-1] for result in results])
    deviation = values.std(ddof=1)
    of_the_mean = deviation / math.sqrt(len(values))
    # Chong and Forsyth: FID of N samples is too large by b / N; the line's value isn't.
    assert finite.mean() - gaussians.distance > 10 * of_the_mean
    assert abs(values.mean() - gaussians.distance) < 3 * of_the_mean
    np.testing.assert_allclose(
        np.mean([result.slope for result in results]) / 1500,
        finite.mean() - gaussians.distance,
        rtol=0.1,
    )
    # And its standard error is that; the regression's own takes the subsets for independent.
    errors = np.array([result.stderr for result in results])
    assert 0.85 < errors.mean() / deviation < 1.15
    assert np.mean(np.abs(values - gaussians.distance) < 2 * errors) > 0.88
    regressions = [
        scipy.stats.linregress(1 / np.array(result.sizes), result.distances) for result in results
    ]
    assert np.mean([regression.intercept_stderr for regression in regressions]) < deviation / 2


def test_infinity_repeats_with_its_seed():
    gaussians = Gaussians(4)
    features = gaussians.features(100, seed=8)
    assert frechet_infinity(gaussians.factor, features, seed=1) == frechet_infinity(
        gaussians.factor, features, seed=1
    )
    assert (
        frechet_infinity(gaussians.factor, features, seed=1).value
        != frechet_infinity(gaussians.factor, features, seed=2).value
    )


# Bad input


@pytest.mark.parametrize(
    "features, arguments, message",
    [
        (np.ones((1, 4)), {}, "at least 2 feature vectors, got 1"),
        (np.ones((0, 4)), {}, "at least 2 feature vectors, got 0"),
        (np.ones((9, 5)), {}, r"reference's width \(4\), got 5"),
        (
            np.diag([1, np.nan, 1, 1]),
            {},
            "features must be finite, .* 1 of 4 rows, the first in row 1",
        ),
        (np.ones(4), {}, "features must be a matrix"),
        (np.ones((9, 4)), {"level": 1.0}, "level must be between 0 and 1, got 1.0"),
        (np.ones((9, 4)), {"level": 0}, "level must be between 0 and 1, got 0"),
        (np.ones((9, 4)), {"num_resamples": 1}, "num_resamples must be at least 2, got 1"),
    ],
)
def test_fid_interval_refuses(features, arguments, message):
    with pytest.raises(ValueError, match=message):
        frechet_interval(Gaussians(4).factor, features, **arguments)


@pytest.mark.parametrize(
    "logits, arguments, message",
    [
        (np.ones((1, 4)), {}, "at least 2 rows .* got 1"),
        (np.diag([1, np.inf]), {}, "logits must be finite, .* 1 of 2 rows, the first in row 1"),
        (np.ones((9, 4)), {"level": 95}, "level must be between 0 and 1, got 95"),
        (np.ones((9, 4)), {"num_resamples": 0}, "num_resamples must be at least 2, got 0"),
    ],
)
def test_score_interval_refuses(logits, arguments, message):
    with pytest.raises(ValueError, match=message):
        inception_score_interval(logits, **arguments)


@pytest.mark.parametrize(
    "features, arguments, message",
    [
        (np.ones((15, 4)), {}, "15 sizes from 2 .* got 15; use more samples or fewer sizes"),
        (np.ones((0, 4)), {}, "15 sizes from 2 .* got 0"),
        (np.ones((100, 4)), {"smallest": 1}, "sizes from 1 .at least 2. upwards"),
        (np.ones((100, 4)), {"smallest": 90}, "15 sizes from 90 .* got 100"),
        (np.ones((100, 4)), {"num_sizes": 2}, "num_sizes must be at least 3, .* got 2"),
        (np.ones((100, 5)), {}, r"reference's width \(4\), got 5"),
        (np.full((100, 4), np.nan), {}, "features must be finite, .* 100 of 100 rows"),
    ],
)
def test_infinity_refuses(features, arguments, message):
    with pytest.raises(ValueError, match=message):
        frechet_infinity(Gaussians(4).factor, features, **arguments)
