"""How far scores of N samples can be trusted: intervals of FID and IS, and FID-infinity. NumPy,
float64, no TensorFlow.

Two different questions:

  interval      How much would FID or IS move with other samples of the same generator, as many as
                these? The bootstrap (Efron 1979): the samples are drawn anew with replacement, and
                the interval is cut from the percentiles of the scores.
  FID-infinity  What would FID be with infinitely many generated samples? FID of N samples is too
                large by about b / N; Chong and Forsyth 2020 (https://arxiv.org/abs/1911.07023) fit
                that line and take its value at 1 / N = 0.

The bootstrap is of the scores' linear part: a resampled score is the score plus the mean of what
each drawn sample contributes to it (its influence: the derivative with respect to the sample's
weight). Scores of real resamples would be wrong here, not only dear: to a resample, the samples are
the truth, so that each of its scores has the bias of N samples once more, and with many features
all of them lie above the FID that they should surround. Close to FID 0, where the linear part
vanishes, the interval is too wide rather than too narrow.

The reference is taken as it is: its own sampling is in none of these numbers.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import scipy.linalg
import scipy.special

from hamgan.evaluation import metrics
from hamgan.evaluation.metrics import Moments, Progress, ReferenceFactor, as_matrix

# Rows converted to float64 at a time.
_CHUNK = 8192


@dataclasses.dataclass(frozen=True)
class Interval:
    """A score and the percentile interval of its bootstrap.

    Attributes:
      value: the score of all samples.
      stderr: standard deviation (ddof = 1) of the resampled scores.
      low, high: between them lies the share `level` of the resampled scores, with as many below as
        above.
      level: between 0 and 1.
    """

    value: float
    stderr: float
    low: float
    high: float
    level: float


def frechet_interval(
    reference: ReferenceFactor,
    features: np.ndarray,
    *,
    level: float = 0.95,
    num_resamples: int = 1000,
    seed: int = 0,
    progress: Progress | None = None,
) -> Interval:
    """FID of `features` [N, D] with its bootstrap interval.

    Costs the moments of the features, an FID, one eigenvalue problem with vectors and one product
    [N, D] [D, D]: half a minute of processor time for 50,000 of 2048 features, and the resamples
    hardly anything.

    Args:
      reference: `metrics.frechet_factor` of the real images' moments.
      features: of the generated images.
      level: share of the resampled scores in the interval.
      num_resamples: how many times N samples are drawn.
      seed: of the drawing.
      progress: function (iterable, description, total) -> iterable that draws a progress bar.

    Raises:
      ValueError: as `metrics.frechet_terms`; when a feature is not finite; when `level` is not
        between 0 and 1 or `num_resamples` below 2.
    """
    _check_resampling(level, num_resamples)
    features = as_matrix("features", features)
    moments = Moments.from_features(features)
    value = metrics.frechet_distance(reference, moments)
    influence = _frechet_influence(reference, moments, features, progress)
    means = _resampled_means(influence, num_resamples=num_resamples, seed=seed)
    return _interval(value, value + means, level)


def inception_score_interval(
    logits: np.ndarray, *, level: float = 0.95, num_resamples: int = 1000, seed: int = 0
) -> Interval:
    """IS of `logits` [N, C], in one split, with its bootstrap interval.

    A sample's influence on log IS is its own KL(p(y|x) || p(y)) less the mean of all.

    Args:
      logits: of the generated images; two samples at least.
      level, num_resamples, seed: as in `frechet_interval`.

    Raises:
      ValueError: as `metrics.inception_score`; when `level` is not between 0 and 1 or
        `num_resamples` below 2.
    """
    _check_resampling(level, num_resamples)
    value = metrics.inception_score(logits)
    divergences = _divergences(as_matrix("logits", logits))
    means = _resampled_means(
        divergences - divergences.mean(), num_resamples=num_resamples, seed=seed
    )
    return _interval(value, value * np.exp(means), level)


@dataclasses.dataclass(frozen=True)
class Extrapolation:
    """The line `value` + `slope` / N through the FIDs of growing numbers of samples.

    Attributes:
      value: FID-infinity, the line at 1 / N = 0.
      stderr: standard error of `value`. It allows for the subsets having samples in common, which
        makes their FIDs lie closer to a line than independent ones would.
      slope: b of the bias b / N.
      residual: root mean square distance of the FIDs from the line.
      sizes: the numbers of samples.
      distances: the FID of each.
    """

    value: float
    stderr: float
    slope: float
    residual: float
    sizes: tuple[int, ...]
    distances: tuple[float, ...]


def frechet_infinity(
    reference: ReferenceFactor,
    features: np.ndarray,
    *,
    num_sizes: int = 15,
    smallest: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Extrapolation:
    """FID-infinity of `features` [N, D]: extrapolated from nested random subsets.

    The subsets are the beginnings of one random order of the samples, so that every sample enters
    the moments once. Costs `num_sizes` FIDs with a cached factor. The line holds where the smallest
    subset has several times as many samples as features.

    Args:
      reference: `metrics.frechet_factor` of the real images' moments.
      features: of the generated images.
      num_sizes: how many subsets, evenly spaced in size up to N; Chong and Forsyth take 15.
      smallest: samples in the smallest subset, at least 2; None: a tenth of N, as theirs.
      seed: of the random order.
      progress: function (iterable, description, total) -> iterable that draws a progress bar.

    Raises:
      ValueError: as `metrics.frechet_terms`; when a feature is not finite; when `num_sizes` is
        below 3, or there are too few samples for sizes that differ.
    """
    features = as_matrix("features", features)
    count = len(features)
    if num_sizes < 3:
        raise ValueError(
            f"num_sizes must be at least 3, which tell a line from noise, got {num_sizes}."
        )
    smallest = max(2, count // 10) if smallest is None else smallest
    if smallest < 2 or count - smallest < num_sizes - 1:
        raise ValueError(
            f"features must have enough rows for {num_sizes} sizes from {smallest} (at least 2) "
            "upwards, got "
            f"{count}; use more samples or fewer sizes."
        )
    # Rounded, so that the last is N.
    sizes = np.rint(np.linspace(smallest, count, num_sizes)).astype(int)
    order = np.random.default_rng(seed).permutation(count)
    moments = Moments(features.shape[1])
    distances = []
    for size in progress(sizes, "FID-infinity", num_sizes) if progress else sizes:
        moments.update(features[order[moments.count : size]])
        distances.append(metrics.frechet_distance(reference, moments))
    return _fit(sizes, np.array(distances))


def _fit(sizes, distances):
    design = np.stack([np.ones(len(sizes)), 1 / sizes], axis=1)
    solve = np.linalg.pinv(design)  # [2, sizes], ordinary least squares
    value, slope = solve @ distances
    residual = np.sqrt(np.mean((distances - design @ [value, slope]) ** 2))
    # The noise of FID is, in its linear part, a mean over the samples: s^2 / n, and s^2 / max(n, m)
    # between the first n and the first m. Hence n FID(n) grows from size to size by independent
    # amounts, whose spread tells s^2.
    steps = np.diff(sizes)
    rates = np.diff(sizes * distances) / steps
    variance = np.sum(steps * (rates - np.average(rates, weights=steps)) ** 2) / (len(steps) - 1)
    covariance = variance / np.maximum(sizes[:, None], sizes)
    return Extrapolation(
        value=float(value),
        stderr=float(np.sqrt(solve[0] @ covariance @ solve[0])),
        slope=float(slope),
        residual=float(residual),
        sizes=tuple(sizes.tolist()),
        distances=tuple(distances.tolist()),
    )


def _frechet_influence(reference, moments, features, progress=None):
    """The derivative of FID as weight goes from all samples, 1 together, to each of them, float64
    [N].
    """
    # d Tr sqrt(F^T S F) = Tr(M^-1/2 F^T dS F) / 2 with M = F^T S F. No weights leave the samples'
    # span, outside of which M is singular: there the inverse root doesn't matter.
    eigenvalues, vectors = scipy.linalg.eigh(
        metrics.frechet_product(reference, moments),
        driver="evd",
        overwrite_a=True,
        check_finite=False,
    )
    kept = eigenvalues > max(eigenvalues[-1], 0) * moments.width * np.finfo(np.float64).eps
    # [D, rank]
    projection = reference.factor @ (vectors[:, kept] * eigenvalues[kept] ** -0.25)
    difference = moments.mean - reference.mean
    influence = np.empty(len(features))
    starts = range(0, len(features), _CHUNK)
    for start in progress(starts, "influence on FID", len(starts)) if progress else starts:
        centred = features[start : start + _CHUNK] - moments.mean
        spread = np.square(centred).sum(axis=1) - np.square(centred @ projection).sum(axis=1)
        influence[start : start + _CHUNK] = 2 * (centred @ difference) + spread * (
            moments.count / (moments.count - 1)
        )
    return influence - influence.mean()


def _divergences(logits):
    """KL(p_i || mean p) of p = softmax(logits), float64 [N]."""
    # In logarithms, which are finite where probabilities underflow.
    sums = [scipy.special.logsumexp(log_p, axis=0) for log_p in _log_softmax(logits)]
    log_q = scipy.special.logsumexp(sums, axis=0) - np.log(len(logits))
    return np.concatenate(
        [np.sum(np.exp(log_p) * (log_p - log_q), axis=1) for log_p in _log_softmax(logits)]
    )


def _log_softmax(logits):
    for start in range(0, len(logits), _CHUNK):
        yield scipy.special.log_softmax(logits[start : start + _CHUNK].astype(np.float64), axis=1)


def _resampled_means(values, *, num_resamples, seed):
    """The means of as many values as there are, drawn with replacement, `num_resamples` times."""
    rng = np.random.default_rng(seed)
    return np.array(
        [values[rng.integers(len(values), size=len(values))].mean() for _ in range(num_resamples)]
    )


def _interval(value, resampled, level):
    low, high = np.quantile(resampled, [(1 - level) / 2, (1 + level) / 2])
    return Interval(
        value=value,
        stderr=float(resampled.std(ddof=1)),
        low=float(low),
        high=float(high),
        level=float(level),
    )


def _check_resampling(level, num_resamples):
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, got {level}.")
    if num_resamples < 2:
        raise ValueError(f"num_resamples must be at least 2, got {num_resamples}.")
