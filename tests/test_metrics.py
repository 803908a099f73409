"""FID, IS and KID against TF-GAN, SciPy, POT, scikit-learn and closed forms."""

import math

import numpy as np
import pytest
import scipy.linalg
import tensorflow as tf
from sklearn.metrics.pairwise import polynomial_kernel

from hamgan import tfgan
from hamgan.evaluation import metrics
from hamgan.evaluation.metrics import Moments


def _features(num_samples, width, *, seed, scale=1.0, shift=0.0):
    """Correlated features whose standard deviations span a factor of 20, as a network's do."""
    rng = np.random.default_rng(seed)
    spectrum = np.geomspace(1, 0.05, width)[:, None]
    mixing = spectrum * np.linalg.qr(np.random.default_rng(width).normal(size=(width, width)))[0]
    stretch = rng.uniform(0.8, 1.2, size=width)
    return scale * (rng.normal(size=(num_samples, width)) @ mixing * stretch + shift)


def _moments(mean, covariance, count=100):
    return Moments.from_arrays(
        count=count, mean=mean, scatter=np.asarray(covariance, np.float64) * (count - 1)
    )


def _frechet(reference, moments):
    return metrics.frechet_distance(metrics.frechet_factor(reference), moments)


def _frechet_from_singular_values(x, y):
    """FID by Tr sqrt(S1 S2) = |X^T Y|_* of the centred features: exact at any rank."""
    mean_x, mean_y = x.mean(axis=0), y.mean(axis=0)
    x = (x - mean_x) / np.sqrt(len(x) - 1)
    y = (y - mean_y) / np.sqrt(len(y) - 1)
    nuclear = np.linalg.svd(x @ y.T, compute_uv=False).sum()
    return np.sum((mean_x - mean_y) ** 2) + np.sum(x**2) + np.sum(y**2) - 2 * nuclear


def _assert_moments_equal(moments, features, rtol=1e-12):
    assert moments.count == len(features)
    np.testing.assert_allclose(moments.mean, features.mean(axis=0), rtol=rtol)
    covariance = np.cov(features, rowvar=False, ddof=1)
    tolerance = rtol * np.abs(covariance).max()
    np.testing.assert_allclose(moments.covariance, covariance, rtol=0, atol=tolerance)
    np.testing.assert_array_equal(moments.scatter, moments.scatter.T)


# Moments


def test_moments_of_batches_equal_numpy(monkeypatch):
    # A small chunk, so that one update takes several with a remainder.
    monkeypatch.setattr(metrics, "_CHUNK", 37)
    features = _features(500, 16, seed=0, shift=0.3)
    moments = Moments(16)
    for start, end in [(0, 1), (1, 1), (1, 65), (65, 500)]:
        moments.update(features[start:end])
    _assert_moments_equal(moments, features)
    _assert_moments_equal(Moments.from_features(features), features)


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (1, 0, 3, 2)])
def test_merging_in_any_order_equals_all_at_once(order):
    features = _features(400, 12, seed=1, shift=-0.2)
    # One shard of a single vector and one of none: replicas need not be equally full.
    shards = [
        Moments.from_features(part)
        for part in (features[:1], features[1:1], features[1:150], features[150:])
    ]
    merged = Moments(12)
    for index in order:
        merged.merge(shards[index])
    _assert_moments_equal(merged, features)

    left, right = Moments(12), Moments(12)
    left.merge(shards[order[0]])
    left.merge(shards[order[1]])
    right.merge(shards[order[2]])
    right.merge(shards[order[3]])
    left.merge(right)
    _assert_moments_equal(left, features)


def test_merge_leaves_the_other_moments_alone():
    features = _features(60, 4, seed=2)
    moments, other = Moments(4), Moments.from_features(features[:30])
    moments.merge(other)
    moments.update(features[30:])
    _assert_moments_equal(other, features[:30])


def test_moments_survive_an_offset_that_cancels_raw_second_moments():
    features = _features(1000, 8, seed=3)
    moments = Moments(8)
    for part in np.split(features + 1e6, 10):
        moments.update(part)
    # The inputs themselves are rounded to 1e-10.
    covariance = np.cov(features, rowvar=False)
    np.testing.assert_allclose(moments.covariance, covariance, rtol=0, atol=1e-8)


def test_float32_features_are_accumulated_in_float64():
    features = (_features(3000, 6, seed=4, shift=20.0)).astype(np.float32)
    _assert_moments_equal(Moments.from_features(features), features.astype(np.float64))


def test_moments_round_trip_through_arrays_that_are_copied():
    moments = Moments.from_features(_features(50, 5, seed=5))
    copy = Moments.from_arrays(count=moments.count, mean=moments.mean, scatter=moments.scatter)
    copy.update(np.ones([1, 5]))
    assert (moments.count, copy.count) == (50, 51)
    _assert_moments_equal(moments, _features(50, 5, seed=5))


@pytest.mark.parametrize(
    "arrays, message",
    [
        ({"scatter": np.eye(4)}, r"scatter \[D, D\], got \[3\] and \[4, 4\]"),
        ({"mean": np.zeros((3, 1))}, r"got \[3, 1\] and \[3, 3\]"),
        ({"mean": np.zeros(0), "scatter": np.zeros((0, 0))}, r"got \[0\] and \[0, 0\]"),
        ({"count": -1}, "count must be a number of vectors, got -1"),
        ({"count": 2.5}, "got 2.5"),
        ({"mean": np.array([0, np.nan, 0])}, "must be finite"),
        ({"scatter": np.diag([1, np.inf, 1])}, "must be finite"),
        ({"scatter": np.eye(3) + np.eye(3, k=1)}, "must be symmetric, .* differ by 1 "),
    ],
)
def test_from_arrays_refuses_damaged_moments(arrays, message):
    good = {"count": 5, "mean": np.zeros(3), "scatter": np.eye(3)}
    Moments.from_arrays(**good)
    with pytest.raises(ValueError, match=message):
        Moments.from_arrays(**{**good, **arrays})


@pytest.mark.parametrize(
    "features, message",
    [
        (np.zeros((4, 2)), r"width of these moments \(3\), got \[4, 2\]"),
        (np.zeros(3), r"matrix \[N, D\], got the shape \[3\]"),
        (np.diag([1, np.nan, 1]), "in 1 of 3 rows, the first in row 1"),
        (
            np.diag([np.nan, 1, -np.inf]),
            "1 NaN and 1 infinite values in 2 of 3 rows, the first in row 0",
        ),
    ],
)
def test_refused_update_adds_nothing(features, message):
    before = _features(20, 3, seed=6)
    moments = Moments.from_features(before)
    with pytest.raises(ValueError, match=message):
        moments.update(features)
    _assert_moments_equal(moments, before)


def test_moments_refuse_other_widths_and_too_few_vectors():
    with pytest.raises(ValueError, match="one width can be merged, got 3 and 4"):
        Moments(3).merge(Moments(4))
    with pytest.raises(ValueError, match="width must be .* at least 1, got 0"):
        Moments(0)
    for count in (0, 1):
        with pytest.raises(ValueError, match=f"at least 2 feature vectors, got {count}"):
            _ = Moments.from_features(np.ones((count, 3))).covariance


# FID


@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0])
@pytest.mark.parametrize(
    "num_real, num_fake, width",
    [(300, 200, 16), (400, 500, 128), (40, 50, 128), (30, 400, 128), (400, 30, 128), (2, 2, 8)],
)
def test_fid_equals_tf_gan(num_real, num_fake, width, scale):
    real = _features(num_real, width, seed=0, scale=scale)
    fake = _features(num_fake, width, seed=1, scale=scale, shift=0.1)
    expected = tfgan.frechet_classifier_distance_from_activations(real, fake).numpy()
    assert expected.dtype == np.float64
    result = metrics.frechet_distance_from_features(real, fake)
    assert isinstance(result, float)
    np.testing.assert_allclose(result, expected, rtol=1e-6)


def test_fid_equals_tf_gan_below_its_root_floor():
    # The eigenvalues of the product are about 1e-12: most of them are not rooted.
    real, fake = _features(60, 8, seed=0, scale=1e-3), _features(70, 8, seed=1, scale=1e-3)
    expected = tfgan.frechet_classifier_distance_from_activations(real, fake).numpy()
    assert expected > 1.5 * _frechet_from_singular_values(real, fake)
    result = metrics.frechet_distance_from_features(real, fake)
    np.testing.assert_allclose(result, expected, rtol=1e-6)


def test_fid_of_float32_features_equals_tf_gan_in_float64():
    real = _features(200, 32, seed=0).astype(np.float32)
    fake = _features(150, 32, seed=1, shift=0.1).astype(np.float32)
    expected = tfgan.frechet_classifier_distance_from_activations(
        tf.cast(real, tf.float64), tf.cast(fake, tf.float64)
    )
    result = metrics.frechet_distance_from_features(real, fake)
    np.testing.assert_allclose(result, expected, rtol=1e-6)


@pytest.mark.parametrize(
    "num_real, num_fake, width", [(400, 500, 128), (40, 50, 128), (30, 400, 128), (400, 30, 128)]
)
def test_fid_equals_the_singular_values_of_the_features(num_real, num_fake, width):
    real, fake = _features(num_real, width, seed=2), _features(num_fake, width, seed=3, shift=0.1)
    expected = _frechet_from_singular_values(real, fake)
    result = metrics.frechet_distance_from_features(real, fake)
    np.testing.assert_allclose(result, expected, rtol=1e-8)


def test_fid_equals_scipy_sqrtm():
    real, fake = _features(300, 64, seed=4), _features(400, 64, seed=5, shift=-0.1)
    s1, s2 = np.cov(real, rowvar=False), np.cov(fake, rowvar=False)
    root = scipy.linalg.sqrtm(s1 @ s2)
    difference = real.mean(axis=0) - fake.mean(axis=0)
    expected = difference @ difference + np.trace(s1 + s2 - 2 * root.real)
    result = metrics.frechet_distance_from_features(real, fake)
    np.testing.assert_allclose(result, expected, rtol=1e-8)


def test_fid_equals_pot_bures_wasserstein():
    ot = pytest.importorskip("ot", reason="POT is not installed (python -m pip install POT)")
    real, fake = _features(300, 48, seed=6), _features(250, 48, seed=7, shift=0.2)
    distance = ot.gaussian.bures_wasserstein_distance(
        real.mean(axis=0),
        fake.mean(axis=0),
        np.cov(real, rowvar=False),
        np.cov(fake, rowvar=False),
    )
    result = metrics.frechet_distance_from_features(real, fake)
    np.testing.assert_allclose(result, distance**2, rtol=1e-8)


def test_fid_of_shifted_unit_gaussians_is_the_squared_shift():
    width = 24
    result = _frechet(
        _moments(np.zeros(width), np.eye(width)), _moments(np.ones(width), np.eye(width))
    )
    np.testing.assert_allclose(result, width, rtol=1e-12)


def test_fid_of_diagonal_gaussians():
    rng = np.random.default_rng(0)
    mean = rng.normal(size=(2, 20))
    deviation = rng.uniform(0.1, 3, size=(2, 20))
    # A direction without spread on either side, on one side only.
    deviation[:, 0] = 0
    deviation[1, 1] = 0
    expected = np.sum((mean[0] - mean[1]) ** 2 + (deviation[0] - deviation[1]) ** 2)
    first, second = (_moments(m, np.diag(s**2)) for m, s in zip(mean, deviation, strict=True))
    np.testing.assert_allclose(_frechet(first, second), expected, rtol=1e-12)
    np.testing.assert_allclose(_frechet(second, first), expected, rtol=1e-12)


def test_fid_of_disjoint_subspaces_is_the_sum_of_the_traces():
    # The product is zero up to rounding, which must not pass for a corrupt covariance.
    basis = np.linalg.qr(np.random.default_rng(1).normal(size=(40, 40)))[0]
    variance = np.r_[np.full(20, 1e4), np.zeros(20)]
    first, second = (
        _moments(np.zeros(40), (basis * v) @ basis.T) for v in (variance, 1e4 - variance)
    )
    np.testing.assert_allclose(_frechet(first, second), 4e5, rtol=1e-6)


def test_terms_of_diagonal_gaussians():
    rng = np.random.default_rng(3)
    mean = rng.normal(size=(2, 12))
    deviation = rng.uniform(0.5, 2, size=(2, 12))
    first, second = (_moments(m, np.diag(s**2)) for m, s in zip(mean, deviation, strict=True))
    terms = metrics.frechet_terms(metrics.frechet_factor(first), second)
    np.testing.assert_allclose(terms.mean_term, np.sum((mean[0] - mean[1]) ** 2), rtol=1e-12)
    np.testing.assert_allclose(
        terms.trace_term, np.sum((deviation[0] - deviation[1]) ** 2), rtol=1e-10
    )
    np.testing.assert_allclose(
        terms.smallest_eigenvalue, np.min(deviation[0] ** 2 * deviation[1] ** 2), rtol=1e-10
    )
    assert terms.distance == terms.mean_term + terms.trace_term == _frechet(first, second)


def test_terms_equal_scipy_and_tf_gan():
    real, fake = _features(300, 24, seed=17), _features(250, 24, seed=18, shift=0.3)
    terms = metrics.frechet_terms(
        metrics.frechet_factor(Moments.from_features(real)), Moments.from_features(fake)
    )
    s1, s2 = np.cov(real, rowvar=False), np.cov(fake, rowvar=False)
    trace = np.trace(s1 + s2)
    np.testing.assert_allclose(
        terms.trace_term, trace - 2 * np.trace(scipy.linalg.sqrtm(s1 @ s2).real), rtol=1e-8
    )
    np.testing.assert_allclose(
        terms.trace_term, trace - 2 * tfgan.trace_sqrt_product(s1, s2), rtol=1e-6
    )
    np.testing.assert_allclose(
        terms.mean_term, np.sum((real.mean(axis=0) - fake.mean(axis=0)) ** 2), rtol=1e-10
    )
    smallest = scipy.linalg.eigvals(s1 @ s2).real.min()
    np.testing.assert_allclose(terms.smallest_eigenvalue, smallest, rtol=1e-6)


@pytest.mark.parametrize("num_real, num_fake", [(20, 500), (500, 20)])
def test_smallest_eigenvalue_is_zero_where_a_covariance_is_singular(num_real, num_fake):
    real, fake = _features(num_real, 32, seed=19), _features(num_fake, 32, seed=20)
    factor = metrics.frechet_factor(Moments.from_features(real))
    assert (
        abs(metrics.frechet_terms(factor, Moments.from_features(fake)).smallest_eigenvalue) < 1e-12
    )


@pytest.mark.parametrize("num_samples", [500, 20])
def test_fid_of_features_with_themselves_is_zero(num_samples):
    moments = Moments.from_features(_features(num_samples, 64, seed=8))
    assert abs(_frechet(moments, moments)) < 1e-8 * np.trace(moments.covariance)


def test_fid_of_constant_features_is_the_distance_of_the_means():
    first, second = np.full((10, 4), 3.0), np.full((12, 4), 5.0)
    np.testing.assert_allclose(metrics.frechet_distance_from_features(first, second), 16)


def test_fid_is_symmetric_and_the_factor_is_reusable():
    real, fake = _features(90, 32, seed=9), _features(80, 32, seed=10, shift=0.1)
    first, second = Moments.from_features(real), Moments.from_features(fake)
    factor = metrics.frechet_factor(first)
    result = metrics.frechet_distance(factor, second)
    # What the moments see later must not reach a factor already made.
    first.update(np.full((5, 32), 100.0))
    assert metrics.frechet_distance(factor, second) == result
    np.testing.assert_allclose(
        result, metrics.frechet_distance_from_features(fake, real), rtol=1e-8
    )


def test_factor_times_its_transpose_is_the_covariance():
    moments = Moments.from_features(_features(200, 32, seed=11))
    factor = metrics.frechet_factor(moments)
    covariance = moments.covariance
    np.testing.assert_allclose(factor.factor @ factor.factor.T, covariance, rtol=0, atol=1e-12)
    np.testing.assert_allclose(factor.trace, np.trace(covariance), rtol=1e-12)


def test_fid_of_merged_shards_equals_tf_gan():
    real, fake = _features(300, 32, seed=12), _features(280, 32, seed=13, shift=0.1)
    merged = Moments(32)
    for part in np.array_split(fake, 7)[::-1]:
        merged.merge(Moments.from_features(part))
    result = _frechet(Moments.from_features(real), merged)
    expected = tfgan.frechet_classifier_distance_from_activations(real, fake)
    np.testing.assert_allclose(result, expected, rtol=1e-6)


def test_clearly_negative_eigenvalues_are_refused():
    good = _moments(np.zeros(8), np.eye(8))
    corrupt = _moments(np.zeros(8), np.diag([1.0] * 7 + [-1e-4]))
    with pytest.raises(ValueError, match="reference's covariance must be positive semi-definite"):
        metrics.frechet_factor(corrupt)
    with pytest.raises(ValueError, match="product of the covariances .* eigenvalue -0.0001"):
        _frechet(good, corrupt)


def test_negative_eigenvalue_within_rounding_enters_with_its_sign():
    # -5e-6 beside 1e4 may be rounding; TF-GAN's singular vectors carry its sign.
    first = _moments(np.zeros(3), np.eye(3))
    second = _moments(np.zeros(3), np.diag([1e4, 1, -5e-6]))
    expected = 3 + (1e4 + 1 - 5e-6) - 2 * (100 + 1 - math.sqrt(5e-6))
    np.testing.assert_allclose(_frechet(first, second), expected, rtol=1e-9)


def test_covariance_accumulated_in_float32_is_refused_when_singular():
    features = _features(40, 128, seed=14).astype(np.float32)
    centred = features - features.mean(axis=0)
    damaged = Moments.from_arrays(
        count=40, mean=features.mean(axis=0), scatter=(centred.T @ centred)
    )
    with pytest.raises(ValueError, match="accumulated in less than float64"):
        metrics.frechet_factor(damaged)
    metrics.frechet_factor(Moments.from_features(features))


def test_fid_refuses_what_is_not_finite():
    good = Moments.from_features(_features(20, 4, seed=15))
    factor = metrics.frechet_factor(good)
    for attribute in ("mean", "scatter"):
        damaged = Moments.from_features(_features(20, 4, seed=15))
        getattr(damaged, attribute)[0] = np.nan
        with pytest.raises(ValueError, match="covariance of reference must be finite"):
            metrics.frechet_factor(damaged)
        with pytest.raises(ValueError, match="covariance of moments must be finite"):
            metrics.frechet_distance(factor, damaged)


def test_fid_refuses_too_few_vectors_and_other_widths():
    factor = metrics.frechet_factor(Moments.from_features(_features(20, 4, seed=16)))
    with pytest.raises(ValueError, match="at least 2 feature vectors, got 1"):
        metrics.frechet_factor(Moments.from_features(np.ones((1, 4))))
    with pytest.raises(ValueError, match="at least 2 feature vectors, got 0"):
        metrics.frechet_distance(factor, Moments(4))
    with pytest.raises(ValueError, match=r"reference's width \(4\), got 5"):
        metrics.frechet_distance(factor, Moments.from_features(_features(20, 5, seed=16)))
    with pytest.raises(ValueError, match=r"got \[9, 4\] and \[9, 5\]"):
        metrics.frechet_distance_from_features(np.ones((9, 4)), np.ones((9, 5)))
    with pytest.raises(ValueError, match="fake must be finite"):
        metrics.frechet_distance_from_features(np.ones((9, 4)), np.full((9, 4), np.nan))


# Inception score


@pytest.mark.parametrize("spread", [0.1, 3.0, 50.0])
def test_inception_score_equals_tf_gan(monkeypatch, spread):
    monkeypatch.setattr(metrics, "_CHUNK", 64)
    logits = np.random.default_rng(0).normal(scale=spread, size=(300, 100))
    expected = tfgan.classifier_score_from_logits(logits).numpy()
    assert expected.dtype == np.float64
    np.testing.assert_allclose(metrics.inception_score(logits), expected, rtol=1e-10)


def test_inception_score_of_splits_is_tf_gan_s_mean_over_the_parts():
    logits = np.random.default_rng(1).normal(scale=2, size=(103, 20))
    bounds = [0, 25, 51, 77, 103]
    parts = [
        tfgan.classifier_score_from_logits(logits[start:end]).numpy()
        for start, end in zip(bounds[:-1], bounds[1:], strict=True)
    ]
    result = metrics.inception_score(logits, splits=4)
    np.testing.assert_allclose(result, np.mean(parts), rtol=1e-10)
    assert abs(result - metrics.inception_score(logits)) > 0.1


def test_inception_score_of_equal_predictions_is_one():
    logits = np.tile(np.random.default_rng(2).normal(size=(1, 10)), (50, 1))
    np.testing.assert_allclose(metrics.inception_score(logits), 1, rtol=1e-12)


def test_inception_score_of_balanced_certain_predictions_is_the_number_of_classes():
    # exp(-1e4) underflows: a class that others exclude must not give log(0).
    logits = 1e4 * np.tile(np.eye(10), (6, 1))
    np.testing.assert_allclose(metrics.inception_score(logits), 10, rtol=1e-12)
    unused = np.concatenate([logits, np.full((60, 3), -1e4)], axis=1)
    np.testing.assert_allclose(metrics.inception_score(unused), 10, rtol=1e-12)


def test_inception_score_of_float32_logits_is_float64():
    logits = np.random.default_rng(3).normal(scale=3, size=(200, 50)).astype(np.float32)
    expected = metrics.inception_score(logits.astype(np.float64))
    assert metrics.inception_score(logits) == expected


@pytest.mark.parametrize(
    "logits, splits, message",
    [
        (np.zeros((10, 3)), 0, "splits must be at least 1, got 0"),
        (np.zeros((10, 3)), 6, "at least 2 rows in each of the 6 splits, got 10"),
        (np.zeros((0, 3)), 1, "2 rows in each of the 1 splits, got 0"),
        (np.zeros((1, 3)), 1, "2 rows in each of the 1 splits, got 1"),
        (np.zeros(10), 1, r"matrix \[N, D\], got the shape \[10\]"),
        (np.diag([1, 1, np.nan]), 1, "logits must be finite, .* 1 of 3 rows, the first in row 2"),
    ],
)
def test_inception_score_refuses(logits, splits, message):
    with pytest.raises(ValueError, match=message):
        metrics.inception_score(logits, splits=splits)


# KID


@pytest.mark.parametrize(
    "num_real, num_fake, max_block_size",
    [(96, 96, 32), (100, 131, 32), (131, 100, 32), (64, 64, 64), (65, 60, 64), (9, 8, 3)],
)
def test_kid_equals_tf_gan(num_real, num_fake, max_block_size):
    real, fake = _features(num_real, 24, seed=0), _features(num_fake, 24, seed=1, shift=0.2)
    expected, expected_stderr = tfgan.kernel_classifier_distance_and_std_from_activations(
        tf.constant(real), tf.constant(fake), max_block_size=max_block_size
    )
    kid, stderr = metrics.kernel_distance(real, fake, max_block_size=max_block_size)
    np.testing.assert_allclose(kid, expected, rtol=1e-9, atol=1e-12)
    # NaN on both sides where there is one block.
    np.testing.assert_allclose(stderr, expected_stderr, rtol=1e-9, atol=1e-12)
    assert math.isnan(stderr) == (max(num_real, num_fake) <= max_block_size)


def test_kid_blocks_are_at_most_1024_by_default():
    real, fake = _features(1100, 4, seed=2), _features(1030, 4, seed=3)
    expected = tfgan.kernel_classifier_distance_from_activations(
        tf.constant(real), tf.constant(fake)
    )
    kid, stderr = metrics.kernel_distance(real, fake)
    np.testing.assert_allclose(kid, expected, rtol=1e-9, atol=1e-12)
    assert stderr > 0


def test_kid_equals_scikit_learn_s_kernel():
    real, fake = _features(40, 16, seed=4), _features(33, 16, seed=5, shift=0.3)
    # gamma=None means 1 / D.
    k_rr, k_ff, k_rf = (
        polynomial_kernel(x, y, degree=3, gamma=None, coef0=1)
        for x, y in [(real, real), (fake, fake), (real, fake)]
    )
    expected = (
        k_rr[~np.eye(40, dtype=bool)].mean()
        + k_ff[~np.eye(33, dtype=bool)].mean()
        - 2 * k_rf.mean()
    )
    kid, _ = metrics.kernel_distance(real, fake)
    np.testing.assert_allclose(kid, expected, rtol=1e-10)


def _unbiased_kernel_distance(real, fake):
    """By scikit-learn: of all samples at once."""
    k_rr, k_ff, k_rf = (
        polynomial_kernel(x, y, degree=3, coef0=1)
        for x, y in [(real, real), (fake, fake), (real, fake)]
    )
    off_diagonal = [k[~np.eye(len(k), dtype=bool)].mean() for k in (k_rr, k_ff)]
    return sum(off_diagonal) - 2 * k_rf.mean()


def _by_class(num_samples, *, seed):
    """Two classes far apart, one after the other."""
    features = _features(num_samples, 6, seed=seed)
    features[num_samples // 2 :] += 3
    return features


def test_kid_of_ordered_classes_needs_shuffling():
    real, fake = _by_class(400, seed=7), _by_class(400, seed=8)[::-1]
    expected = _unbiased_kernel_distance(real, fake)
    ordered, _ = metrics.kernel_distance(real, fake, max_block_size=40)
    shuffled, stderr = metrics.kernel_distance(real, fake, max_block_size=40, shuffle_seed=0)
    assert abs(shuffled - expected) < 4 * stderr < 0.2 * abs(ordered - expected)
    # Shuffled, not drawn with replacement: one block has every sample once.
    np.testing.assert_allclose(
        metrics.kernel_distance(real, fake, shuffle_seed=0)[0], expected, rtol=1e-9
    )
    assert metrics.kernel_distance(real, fake, max_block_size=40, shuffle_seed=0) == (
        shuffled,
        stderr,
    )
    assert metrics.kernel_distance(real, fake, max_block_size=40, shuffle_seed=1)[0] != shuffled


def test_kid_subsets_of_all_samples_equal_scikit_learn():
    real, fake = _features(40, 16, seed=4), _features(40, 16, seed=5, shift=0.3)
    kid, deviation = metrics.kernel_distance_of_subsets(real, fake, num_subsets=3, subset_size=40)
    np.testing.assert_allclose(kid, _unbiased_kernel_distance(real, fake), rtol=1e-10)
    np.testing.assert_allclose(deviation, 0, atol=1e-12)


def test_kid_subsets_are_unbiased_at_any_order_and_size():
    real, fake = _by_class(60, seed=9), _by_class(50, seed=10)[::-1] + 0.2
    # The mean over all subsets is the estimate from all samples; drawn with replacement it would be
    # larger.
    expected = _unbiased_kernel_distance(real, fake)
    for subset_size in (40, 10):
        kid, deviation = metrics.kernel_distance_of_subsets(
            real, fake, num_subsets=800, subset_size=subset_size
        )
        assert 0 < abs(kid - expected) < 4 * deviation / math.sqrt(800)


def test_kid_subsets_are_a_hundred_of_a_thousand_different_samples(monkeypatch):
    drawn, bars = [], []

    def progress(iterable, description, total):
        bars.append((description, total))
        return iterable

    def estimate(x, y):
        drawn.append((len(np.unique(x)), len(np.unique(y))))
        return 0.5

    monkeypatch.setattr(metrics, "_kernel_estimate", estimate)
    real, fake = np.arange(1200.0)[:, None], np.arange(1100.0)[:, None]
    assert metrics.kernel_distance_of_subsets(real, fake, progress=progress) == (0.5, 0)
    assert drawn == [(1000, 1000)] * 100 and bars == [("KID subsets", 100)]


def test_kid_progress_covers_the_blocks():
    bars = []

    def progress(iterable, description, total):
        bars.append((description, total, 0))
        for number, item in enumerate(iterable, start=1):
            bars[-1] = (description, total, number)
            yield item

    metrics.kernel_distance(
        _features(50, 3, seed=0), _features(40, 3, seed=1), max_block_size=10, progress=progress
    )
    assert bars == [("KID blocks", 5, 5)]


def test_kid_subsets_deviation_is_that_of_the_estimates():
    real, fake = _features(30, 4, seed=13), _features(30, 4, seed=14)
    sizes = dict(subset_size=10, seed=5)
    first, alone = metrics.kernel_distance_of_subsets(real, fake, num_subsets=1, **sizes)
    mean, deviation = metrics.kernel_distance_of_subsets(real, fake, num_subsets=2, **sizes)
    assert math.isnan(alone)
    np.testing.assert_allclose(deviation, abs(first - mean) * math.sqrt(2), rtol=1e-9)
    assert (
        metrics.kernel_distance_of_subsets(real, fake, num_subsets=2, subset_size=10, seed=6)[0]
        != mean
    )


@pytest.mark.parametrize(
    "real, fake, sizes, message",
    [
        (
            np.ones((9, 3)),
            np.ones((8, 3)),
            {},
            "got 1000 for 9 real and 8 fake; use more samples",
        ),
        (np.ones((9, 3)), np.ones((8, 3)), {"subset_size": 9}, "got 9 for 9 real and 8 fake"),
        (np.ones((9, 3)), np.ones((8, 3)), {"subset_size": 1}, "between 2 and .* got 1 for"),
        (
            np.ones((9, 3)),
            np.ones((8, 3)),
            {"num_subsets": 0},
            "num_subsets must be at least 1, got 0",
        ),
        (np.ones((9, 3)), np.ones((8, 2)), {}, r"got \[9, 3\] and \[8, 2\]"),
        (
            np.ones((9, 3)),
            np.full((8, 3), np.nan),
            {},
            "fake must be finite, .* 8 of 8 rows, the first in row 0",
        ),
        (np.full((9, 3), -np.inf), np.ones((8, 3)), {}, "real must be finite, .* 9 of 9 rows"),
    ],
)
def test_kid_subsets_refuse(real, fake, sizes, message):
    with pytest.raises(ValueError, match=message):
        metrics.kernel_distance_of_subsets(real, fake, **sizes)


def test_kid_of_constant_features_in_closed_form():
    # x = 0 and y = 1: kernels 1, 8 and 1, hence 1 + 8 - 2.
    kid, stderr = metrics.kernel_distance(np.zeros((12, 5)), np.ones((12, 5)), max_block_size=4)
    np.testing.assert_allclose([kid, stderr], [7, 0], atol=1e-12)


def test_kid_of_one_distribution_is_unbiased():
    kid, stderr = metrics.kernel_distance(
        _features(2000, 8, seed=6)[:1000], _features(2000, 8, seed=6)[1000:], max_block_size=50
    )
    assert abs(kid) < 4 * stderr
    assert stderr < 0.01


@pytest.mark.parametrize(
    "real, fake, block, message",
    [
        (np.ones((4, 3)), np.ones((4, 2)), 1024, r"got \[4, 3\] and \[4, 2\]"),
        (
            np.ones((1, 3)),
            np.ones((4, 3)),
            1024,
            "2 rows in each of the 1 blocks, got 1 and 4",
        ),
        (np.ones((4, 3)), np.ones((0, 3)), 1024, "got 4 and 0"),
        (
            np.ones((90, 3)),
            np.ones((5, 3)),
            30,
            "2 rows in each of the 3 blocks, got 90 and 5",
        ),
        (np.ones((3, 3)), np.ones((3, 3)), 2, "2 rows in each of the 2 blocks"),
        (np.ones((4, 3)), np.ones((4, 3)), 1, "max_block_size must be at least 2, got 1"),
        (np.full((4, 3), np.nan), np.ones((4, 3)), 1024, "real must be finite"),
        (np.ones((4, 3)), np.full((4, 3), np.inf), 1024, "fake must be finite"),
        (np.ones(4), np.ones((4, 3)), 1024, r"real must be a matrix"),
    ],
)
def test_kid_refuses(real, fake, block, message):
    with pytest.raises(ValueError, match=message):
        metrics.kernel_distance(real, fake, max_block_size=block)
