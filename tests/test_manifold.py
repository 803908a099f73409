"""Precision, recall, density and coverage against prdc and closed forms."""

import tracemalloc

import numpy as np
import pytest

from hamgan.evaluation import manifold
from hamgan.evaluation.manifold import ManifoldScores, manifold_scores


def _features(num_samples, width, *, seed, scale=1.0, shift=0.0):
    return scale * np.random.default_rng(seed).normal(size=(num_samples, width)) + shift


def _column(*values):
    return np.array(values, np.float64)[:, None]


@pytest.mark.parametrize(
    "num_real, num_fake, width, scale, shift",
    [
        (200, 200, 5, 1.0, 0.3),
        (130, 210, 16, 0.8, 0.2),
        (210, 60, 3, 1.5, 0.0),
        (40, 50, 200, 1.0, 0.1),
    ],
)
@pytest.mark.parametrize("block", [64, 10_000])
def test_scores_equal_prdc(monkeypatch, block, num_real, num_fake, width, scale, shift):
    prdc = pytest.importorskip("prdc", reason="prdc is not installed (python -m pip install prdc)")
    monkeypatch.setattr(manifold, "_BLOCK", block)
    real, fake = (
        _features(num_real, width, seed=0),
        _features(num_fake, width, seed=1, scale=scale, shift=shift),
    )
    few, many = (prdc.compute_prdc(real, fake, nearest_k=k) for k in (3, 5))
    expected = ManifoldScores(few["precision"], few["recall"], many["density"], many["coverage"])
    assert 0 < expected.precision < 1 and 0 < expected.recall < 1
    scores = manifold_scores(real, fake)
    for name in ("precision", "recall", "density", "coverage"):
        np.testing.assert_allclose(
            getattr(scores, name), getattr(expected, name), rtol=1e-12, err_msg=name
        )

    # The other way round, with numbers of neighbours in the other order.
    few, many = (prdc.compute_prdc(fake, real, nearest_k=k) for k in (2, 7))
    scores = manifold_scores(fake, real, precision_neighbors=7, density_neighbors=2)
    expected = (many["precision"], many["recall"], few["density"], few["coverage"])
    got = (scores.precision, scores.recall, scores.density, scores.coverage)
    np.testing.assert_allclose(got, expected, rtol=1e-12)


def test_scores_by_hand():
    # k = 1. Radii of the real ones: 1, 1, 2, 6; of the generated ones: 0.5, 0.5, 11.
    real, fake = _column(0, 1, 3, 9), _column(0.5, 1, 12)
    scores = manifold_scores(real, fake, precision_neighbors=1, density_neighbors=1)
    # 0.5 lies in the balls of 0 and 1; 1 in that of 1, on the spheres of 0 and 3, which are
    # outside; 12 in that of 9.
    assert scores.precision == 3 / 3
    assert scores.density == 4 / 3
    assert scores.coverage == 3 / 4
    # 0 lies on the sphere around 0.5, 1 in the balls around 1 and (|1 - 12| = 11) on that around
    # 12; 3 and 9 within 11.
    assert scores.recall == 3 / 4


def test_point_is_no_neighbour_of_its_own():
    # Were it one, the radius at k = 1 would be 0 and nothing inside.
    real, fake = _column(0, 1, 2), _column(0.25, 0.75, 1.25)
    scores = manifold_scores(real, fake, precision_neighbors=1, density_neighbors=1)
    assert scores.precision == 1 and scores.coverage == 1


@pytest.mark.parametrize("block", [7, 64, 1000])
@pytest.mark.parametrize("shift", [0.0, 1e4])
def test_samples_against_themselves_have_density_one(monkeypatch, block, shift):
    # Every ball has its centre and k - 1 others inside and the k-th on its sphere, whatever the
    # rounding.
    monkeypatch.setattr(manifold, "_BLOCK", block)
    real = _features(150, 40, seed=2, shift=shift)
    order = np.random.default_rng(3).permutation(150)
    assert manifold_scores(real, real[order]) == ManifoldScores(
        precision=1, recall=1, density=1, coverage=1
    )


def test_offset_and_scale_change_nothing():
    real, fake = _features(120, 8, seed=4), _features(110, 8, seed=5, shift=0.4)
    expected = manifold_scores(real, fake)
    assert 0 < expected.recall < 1
    assert manifold_scores(real + 1e4, fake + 1e4) == expected
    assert manifold_scores(1e-6 * real, 1e-6 * fake) == expected


def test_disjoint_samples_score_zero():
    scores = manifold_scores(_features(50, 4, seed=6), _features(60, 4, seed=7, shift=100))
    assert scores == ManifoldScores(precision=0, recall=0, density=0, coverage=0)


def test_collapsed_generator_is_precise_without_recall():
    real = _features(100, 4, seed=8)
    fake = np.repeat(real[:1], 80, axis=0)
    scores = manifold_scores(real, fake)
    # Balls around equal points have radius 0, and nothing is inside, not even what is equal.
    assert scores.precision == 1 and scores.recall == 0
    # All generated samples lie in the same real balls.
    assert scores.density == pytest.approx(scores.coverage * 100 / 5) and scores.coverage < 0.3


def test_float32_features_are_compared_in_float64():
    real, fake = (_features(90, 6, seed=s, shift=50.0).astype(np.float32) for s in (9, 10))
    assert manifold_scores(real, fake) == manifold_scores(
        real.astype(np.float64), fake.astype(np.float64)
    )


def test_memory_does_not_grow_with_the_matrix_of_distances(monkeypatch):
    monkeypatch.setattr(manifold, "_BLOCK", 64)
    real, fake = _features(1500, 3, seed=11), _features(1500, 3, seed=12)
    tracemalloc.start()
    try:
        manifold_scores(real, fake)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1500 * 1500 * 8 / 10


def test_progress_covers_every_block(monkeypatch):
    monkeypatch.setattr(manifold, "_BLOCK", 10)
    bars = []

    def progress(iterable, description, total):
        bars.append([description, total, 0])
        for item in iterable:
            bars[-1][2] += 1
            yield item

    manifold_scores(_features(25, 2, seed=13), _features(40, 2, seed=14), progress=progress)
    assert bars == [
        ["real neighbours", 6, 6],
        ["fake neighbours", 10, 10],
        ["real to fake", 12, 12],
    ]


@pytest.mark.parametrize(
    "real, fake, neighbors, message",
    [
        (np.ones((9, 3)), np.ones((8, 2)), {}, r"got \[9, 3\] and \[8, 2\]"),
        (np.ones(9), np.ones((8, 2)), {}, "real must be a matrix"),
        (
            np.diag([1, np.nan, 1, np.inf]),
            np.ones((8, 4)),
            {},
            "real must be finite, .* 2 of 4 rows, the first in row 1",
        ),
        (np.ones((9, 3)), np.full((8, 3), np.inf), {}, "fake must be finite, .* 8 of 8 rows"),
        (
            np.ones((9, 3)),
            np.ones((5, 3)),
            {},
            "density_neighbors .* got 5 for 9 real and 5 fake",
        ),
        (
            np.ones((3, 3)),
            np.ones((9, 3)),
            {},
            "precision_neighbors .* got 3 for 3 real and 9 fake",
        ),
        (np.ones((0, 3)), np.ones((9, 3)), {}, "for 0 real and 9 fake"),
        (np.ones((1, 3)), np.ones((9, 3)), {"precision_neighbors": 1}, "for 1 real and 9 fake"),
        (
            np.ones((9, 3)),
            np.ones((9, 3)),
            {"precision_neighbors": 0},
            "precision_neighbors must be at least 1",
        ),
        (
            np.ones((9, 3)),
            np.ones((9, 3)),
            {"density_neighbors": 0},
            "density_neighbors must be at least 1",
        ),
    ],
)
def test_scores_refuse(real, fake, neighbors, message):
    with pytest.raises(ValueError, match=message):
        manifold_scores(real, fake, **neighbors)
