"""Precision, recall, density and coverage of generated features: NumPy, float64, no TensorFlow.

  precision, recall  https://arxiv.org/abs/1904.06991 (Kynkaanniemi et al. 2019, "improved")
  density, coverage  https://arxiv.org/abs/2002.09797 (Naeem et al. 2020)

All four ask which samples of one kind lie in the balls around samples of the other, a ball's radius
being the distance to the k-th nearest neighbour among samples of its own kind. Conventions:

  - The point itself is no neighbour of its own.
  - A sample on the sphere is outside: distances are compared with a strict <, as in the package
    `prdc`. Kynkaanniemi's code takes <=; the two differ at ties only.
  - Distances that differ by less than their rounding are ties, so that the result depends neither
    on the size of the blocks that they are computed in nor on the linear algebra library.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from hamgan.evaluation.metrics import Progress, as_matrix, check_widths

# Samples in a block of the matrix of distances: 32 MiB in float64, of which a handful are alive at
# a time.
_BLOCK = 2048

# Rounding of |x|^2 + |y|^2 - 2 x.y over |x|^2 + |y|^2: 2048 features could at the worst sum up to
# 5e-13.
_ROUNDING = 1e-12


@dataclasses.dataclass(frozen=True)
class ManifoldScores:
    """How real and generated samples cover each other.

    Attributes:
      precision: share of the generated samples that lie in a ball around a real one.
      recall: share of the real samples that lie in a ball around a generated one.
      density: real balls that a generated sample lies in, over k, on average; may be above 1.
      coverage: share of the real samples with a generated one in their ball.
    """

    precision: float
    recall: float
    density: float
    coverage: float


def manifold_scores(
    real: np.ndarray,
    fake: np.ndarray,
    *,
    precision_neighbors: int = 3,
    density_neighbors: int = 5,
    progress: Progress | None = None,
) -> ManifoldScores:
    """Precision, recall, density and coverage, from one pass over all distances.

    Every score depends on both numbers of samples and on k: only equal ones can be compared. The
    papers take as many generated samples as real ones. Work grows with (N1 + N2)^2 D: 50,000 of
    2048 features on each side take a quarter of an hour of processor time. Memory grows with N1 +
    N2.

    Args:
      real: [N1, D].
      fake: [N2, D].
      precision_neighbors: k of precision and recall; the paper's is 3.
      density_neighbors: k of density and coverage; the paper's is 5.
      progress: function (iterable, description, total) -> iterable that draws a progress bar.

    Raises:
      ValueError: when the widths differ, a value is not finite, or k is not between 1 and the
        smaller number of samples less one.
    """
    real = as_matrix("real", real)
    fake = as_matrix("fake", fake)
    check_widths(real, fake)
    most = min(len(real), len(fake)) - 1
    for name, k in (
        ("precision_neighbors", precision_neighbors),
        ("density_neighbors", density_neighbors),
    ):
        if not 1 <= k <= most:
            raise ValueError(
                f"{name} must be at least 1 and less than the number of samples, got {k} for "
                f"{len(real)} real "
                f"and {len(fake)} fake."
            )
    # Distances don't change, and their rounding is less, around a common centre.
    centre = real.mean(axis=0, dtype=np.float64)
    num_neighbors = max(precision_neighbors, density_neighbors)
    real_nearest = _nearest(real, centre, num_neighbors, "real neighbours", progress)
    fake_nearest = _nearest(fake, centre, num_neighbors, "fake neighbours", progress)

    precise = np.zeros(len(fake), bool)
    recalled = np.zeros(len(real), bool)
    covered = np.zeros(len(real), bool)
    num_inside = 0
    pairs = [(rows, columns) for rows in _blocks(len(real)) for columns in _blocks(len(fake))]
    for rows, columns in progress(pairs, "real to fake", len(pairs)) if progress else pairs:
        # [b, c], rounded up: below a ball's radius means clearly inside.
        distances, rounding = _squared_distances(real[rows] - centre, fake[columns] - centre)
        distances += rounding
        real_radii = real_nearest[rows]
        precise[columns] |= (distances < real_radii[:, precision_neighbors - 1, None]).any(axis=0)
        recalled[rows] |= (distances < fake_nearest[columns, precision_neighbors - 1]).any(axis=1)
        inside = distances < real_radii[:, density_neighbors - 1, None]
        num_inside += int(np.count_nonzero(inside))
        covered[rows] |= inside.any(axis=1)
    return ManifoldScores(
        precision=float(precise.mean()),
        recall=float(recalled.mean()),
        density=float(num_inside / (density_neighbors * len(fake))),
        coverage=float(covered.mean()),
    )


def _nearest(x, centre, num_neighbors, description, progress):
    """Squared distances of each row of x [N, D] to its nearest other rows, in order, [N,
    num_neighbors].
    """
    nearest = np.full((len(x), num_neighbors), np.inf)

    def offer(rows, distances):
        known = np.concatenate([nearest[rows], distances], axis=1)
        nearest[rows] = np.partition(known, num_neighbors - 1, axis=1)[:, :num_neighbors]

    # Each pair of blocks once: it serves the rows of both.
    blocks = _blocks(len(x))
    pairs = [(rows, columns) for i, rows in enumerate(blocks) for columns in blocks[i:]]
    for rows, columns in progress(pairs, description, len(pairs)) if progress else pairs:
        distances, _ = _squared_distances(x[rows] - centre, x[columns] - centre)
        if rows == columns:
            np.fill_diagonal(distances, np.inf)
        else:
            offer(columns, distances.T)
        offer(rows, distances)
    return np.sort(nearest, axis=1)


def _blocks(count):
    return [slice(start, min(start + _BLOCK, count)) for start in range(0, count, _BLOCK)]


def _squared_distances(x, y):
    """Between the rows of x [b, D] and y [c, D]: ([b, c], bound on their rounding [b, c])."""
    squares = np.square(x).sum(axis=1)[:, None] + np.square(y).sum(axis=1)
    return squares - 2 * (x @ y.T), _ROUNDING * squares
