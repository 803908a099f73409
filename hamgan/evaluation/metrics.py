"""FID, Inception Score and KID of features and logits: NumPy, float64, no TensorFlow.

The definitions are TF-GAN's (`tensorflow_gan/python/eval/classifier_metrics.py`), the ones behind
the published numbers:

  FID  https://arxiv.org/abs/1706.08500  Frechet distance of two Gaussians fitted to the features
  IS   https://arxiv.org/abs/1606.03498  exp(mean KL(p(y|x) || p(y)))
  KID  https://arxiv.org/abs/1801.01401  unbiased squared MMD, cubic kernel, averaged over blocks

Features come in as [N, D] arrays of any float type, logits as [N, C]; all arithmetic is float64,
because a covariance accumulated in float32 is off by more than the differences between models.
Precision, recall, density and coverage are in `manifold`, intervals and FID-infinity in
`uncertainty`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable

import numpy as np
import scipy.linalg
import scipy.special

# (iterable, description, total) -> iterable: what draws a progress bar around a loop.
Progress = Callable[[Iterable, str, int], Iterable]

# TF-GAN keeps singular values below this as they are instead of taking their root.
_ROOT_FLOOR = 1e-10

# Rounding makes the zero eigenvalues of a singular covariance negative by 1e-12 of the largest at
# most (2048 features), float32 accumulation by 1e-7: between the two lies corruption.
_NEGATIVE_TOLERANCE = 1e-9

# Rows converted to float64 at a time: 128 MiB at 2048 features.
_CHUNK = 8192


class Moments:
    """Mean and covariance of feature vectors, accumulated in batches, shards or both.

    Attributes:
      count: number of vectors seen.
      mean: float64 [D].
      scatter: float64 [D, D], the sum of (x - mean)(x - mean)^T. Sums of squares around the mean do
        not cancel as raw second moments do.
    """

    def __init__(self, width: int):
        if width < 1:
            raise ValueError(f"width must be the number of features, at least 1, got {width}.")
        self.count = 0
        self.mean = np.zeros(width)
        self.scatter = np.zeros((width, width))

    @classmethod
    def from_features(cls, features: np.ndarray) -> Moments:
        """The moments of `features` [N, D]; ValueError as `update`."""
        features = as_matrix("features", features)
        moments = cls(features.shape[1])
        moments.update(features)
        return moments

    @classmethod
    def from_arrays(cls, *, count: int, mean: np.ndarray, scatter: np.ndarray) -> Moments:
        """Moments with stored `count`, `mean` [D] and `scatter` [D, D].

        Raises:
          ValueError: when the shapes disagree, a value is not finite or `scatter` is not symmetric.
        """
        mean = np.array(mean, np.float64)
        scatter = np.array(scatter, np.float64)
        if mean.ndim != 1 or mean.size < 1 or scatter.shape != 2 * mean.shape:
            raise ValueError(
                f"mean must have shape [D] and scatter [D, D], got {list(mean.shape)} and "
                f"{list(scatter.shape)}."
            )
        if count < 0 or int(count) != count:
            raise ValueError(f"count must be a number of vectors, got {count}.")
        if not (np.isfinite(mean).all() and np.isfinite(scatter).all()):
            raise ValueError("mean and scatter must be finite; the stored moments are damaged.")
        asymmetry = np.abs(scatter - scatter.T).max()
        if asymmetry > _NEGATIVE_TOLERANCE * np.abs(scatter).max():
            raise ValueError(
                f"scatter must be symmetric, got entries that differ by {asymmetry:.3g} from "
                "their transposed ones; the stored moments are damaged."
            )
        moments = cls(mean.size)
        moments.count = int(count)
        moments.mean = mean
        moments.scatter = scatter
        return moments

    @property
    def width(self) -> int:
        """The number of features, D."""
        return self.mean.size

    @property
    def covariance(self) -> np.ndarray:
        """The unbiased covariance (ddof = 1), float64 [D, D]; ValueError below two vectors."""
        if self.count < 2:
            raise ValueError(f"A covariance needs at least 2 feature vectors, got {self.count}.")
        return self.scatter / (self.count - 1)

    def update(self, features: np.ndarray) -> None:
        """Adds the rows of `features` [N, D]; N may be 0.

        Raises:
          ValueError: when the shape is another or a value is not finite; nothing is added then.
        """
        features = as_matrix("features", features)
        if features.shape[1] != self.width:
            raise ValueError(
                f"features must have the width of these moments ({self.width}), got "
                f"{list(features.shape)}."
            )
        for start in range(0, len(features), _CHUNK):
            chunk = features[start : start + _CHUNK].astype(np.float64)
            batch = Moments(self.width)
            batch.count = len(chunk)
            batch.mean = chunk.mean(axis=0)
            chunk -= batch.mean
            batch.scatter = chunk.T @ chunk
            self.merge(batch)

    def merge(self, other: Moments) -> None:
        """Adds what `other` has seen (Chan, Golub and LeVeque 1979); `other` stays as it is.

        Raises:
          ValueError: when `other` has another width.
        """
        if other.width != self.width:
            raise ValueError(
                f"Only moments of one width can be merged, got {self.width} and {other.width}."
            )
        if other.count == 0:
            return
        total = self.count + other.count
        delta = other.mean - self.mean
        # The root goes to both factors, so that the scatter stays exactly symmetric.
        between = delta * np.sqrt(self.count * other.count / total)
        self.scatter += other.scatter
        self.scatter += np.outer(between, between)
        self.mean = self.mean + delta * (other.count / total)
        self.count = total


@dataclasses.dataclass(frozen=True, eq=False)
class ReferenceFactor:
    """What `frechet_distance` needs of the reference; worth keeping, it costs half of an FID.

    Attributes:
      mean: float64 [D].
      factor: float64 [D, D], F with F F^T = S, the reference's covariance.
      trace: Tr S.
    """

    mean: np.ndarray
    factor: np.ndarray
    trace: float


def frechet_factor(reference: Moments) -> ReferenceFactor:
    """The part of the Frechet distance that depends on the reference alone.

    Raises:
      ValueError: when `reference` holds fewer than two vectors, a value that is not finite, or a
        covariance with a clearly negative eigenvalue.
    """
    covariance = _finite_covariance("reference", reference)
    trace = float(np.trace(covariance))
    # [D], [D, D]
    w, v = scipy.linalg.eigh(covariance, driver="evd", overwrite_a=True, check_finite=False)
    _refuse_negative(w, scale=w[-1], where="The reference's covariance")
    return ReferenceFactor(mean=reference.mean, factor=v * _signed_root(w), trace=trace)


@dataclasses.dataclass(frozen=True)
class FrechetTerms:
    """A Frechet distance and what it is made of.

    Attributes:
      mean_term: |m1 - m2|^2.
      trace_term: Tr S1 + Tr S2 - 2 Tr sqrt(S1^1/2 S2 S1^1/2).
      smallest_eigenvalue: of S1^1/2 S2 S1^1/2. Around zero, of either sign, where a covariance is
        singular.
    """

    mean_term: float
    trace_term: float
    smallest_eigenvalue: float

    @property
    def distance(self) -> float:
        """FID, the sum of both terms."""
        return self.mean_term + self.trace_term


def frechet_distance(reference: ReferenceFactor, moments: Moments) -> float:
    """FID; arguments and errors as `frechet_terms`, whose sum it is."""
    return frechet_terms(reference, moments).distance


def frechet_terms(reference: ReferenceFactor, moments: Moments) -> FrechetTerms:
    """FID in its terms: |m1 - m2|^2, and Tr S1 + Tr S2 - 2 Tr sqrt(S1^1/2 S2 S1^1/2).

    The value is TF-GAN's to rounding. F^T S2 F has the eigenvalues of S1^1/2 S2 S1^1/2, so one
    symmetric eigenvalue problem takes the place of TF-GAN's two singular value decompositions.
    TF-GAN's floor of 1e-10 under the roots is absolute: directions in which the features' standard
    deviation is below about 0.003 count as if the distributions had nothing in common there, so
    features on that scale get too large a distance. Between equal distributions rounding can leave
    the result slightly below zero; it is not clipped.

    Args:
      reference: `frechet_factor` of the real images' moments.
      moments: the generated images' moments. Fewer vectors than features are allowed, as in TF-GAN,
        but FID is biased upwards by few samples: compare only equal numbers.

    Raises:
      ValueError: when the widths differ, `moments` holds fewer than two vectors or a value that is
        not finite, or a covariance is clearly not positive semi-definite.
    """
    product = frechet_product(reference, moments)
    # Bounds the norm of the product before cancellation, and with it the rounding of its zeros.
    scale = np.square(reference.factor).sum(axis=0).max() * np.linalg.norm(moments.covariance)
    eigenvalues = scipy.linalg.eigvalsh(product, overwrite_a=True, check_finite=False)
    _refuse_negative(eigenvalues, scale=scale, where="The product of the covariances")
    difference = moments.mean - reference.mean
    trace = reference.trace + np.trace(moments.covariance)
    return FrechetTerms(
        mean_term=float(difference @ difference),
        trace_term=float(trace - 2 * _signed_root(eigenvalues).sum()),
        smallest_eigenvalue=float(eigenvalues[0]),
    )


def frechet_product(reference: ReferenceFactor, moments: Moments) -> np.ndarray:
    """F^T S2 F, float64 [D, D], which has the eigenvalues of S1^1/2 S2 S1^1/2; ValueError as
    `frechet_terms`.
    """
    width = reference.mean.size
    if moments.width != width:
        raise ValueError(
            f"moments must have the reference's width ({width}), got {moments.width}: both "
            "must come from the same output of the same feature network."
        )
    product = reference.factor.T @ (_finite_covariance("moments", moments) @ reference.factor)
    return (product + product.T) / 2


def frechet_distance_from_features(real: np.ndarray, fake: np.ndarray) -> float:
    """FID of two arrays of features, [N1, D] and [N2, D]; ValueError as `frechet_distance`."""
    real = as_matrix("real", real)
    fake = as_matrix("fake", fake)
    check_widths(real, fake)
    return frechet_distance(
        frechet_factor(Moments.from_features(real)), Moments.from_features(fake)
    )


def inception_score(logits: np.ndarray, *, splits: int = 1) -> float:
    """exp(mean_i KL(p_i || mean p)) with p = softmax(logits): between 1 and C.

    Args:
      logits: [N, C]. TF-GAN's Inception gives 1008, all of which count.
      splits: the score is averaged over this many consecutive parts of nearly equal size. TF-GAN
        takes 1, OpenAI's code 10; fewer samples to a part lower the score, so a result is to be
        reported with this number. Above 1 the samples must be in random order.

    Raises:
      ValueError: when a value is not finite, `splits` is below 1 or a part has fewer than two
        samples.
    """
    logits = as_matrix("logits", logits)
    num_samples = len(logits)
    if splits < 1:
        raise ValueError(f"splits must be at least 1, got {splits}.")
    if num_samples < 2 * splits:
        raise ValueError(
            f"logits must have at least 2 rows in each of the {splits} splits, got "
            f"{num_samples}; "
            "use more samples or fewer splits."
        )
    bounds = [num_samples * i // splits for i in range(splits + 1)]
    scores = [
        _inception_score(logits[start:end])
        for start, end in zip(bounds[:-1], bounds[1:], strict=True)
    ]
    return float(np.mean(scores))


def _inception_score(logits):
    # mean_i sum p log p - sum q log q is the mean divergence, needs each chunk of p only once and
    # has no log(0) where all samples give a class a probability that underflows.
    negentropy = 0.0
    q = np.zeros(logits.shape[1])
    for start in range(0, len(logits), _CHUNK):
        log_p = scipy.special.log_softmax(logits[start : start + _CHUNK].astype(np.float64), axis=1)
        p = np.exp(log_p)
        q += p.sum(axis=0)
        negentropy += np.vdot(p, log_p)
    q /= len(logits)
    return np.exp(negentropy / len(logits) - scipy.special.xlogy(q, q).sum())


def kernel_distance(
    real: np.ndarray,
    fake: np.ndarray,
    *,
    max_block_size: int = 1024,
    shuffle_seed: int | None = None,
    progress: Progress | None = None,
) -> tuple[float, float]:
    """KID over blocks, as TF-GAN takes it, and its standard error, with the kernel (x.y / D + 1)^3.

    The samples are cut into consecutive blocks, so both arrays must be in random order: class after
    class gives wrong values.

    Args:
      real: [N1, D].
      fake: [N2, D].
      max_block_size: the larger array is cut into ceil(N / max_block_size) blocks whose sizes
        differ by at most one, the other into as many.
      shuffle_seed: of a random order that the rows of each array are taken in; None: as they are.
      progress: function (iterable, description, total) -> iterable that draws a progress bar.

    Returns:
      The mean of the blocks' unbiased estimates, which may be negative, and
      sqrt(variance / blocks), NaN with a single block.

    Raises:
      ValueError: when the widths differ, a value is not finite, or a block has fewer than two
        samples.
    """
    real = as_matrix("real", real)
    fake = as_matrix("fake", fake)
    check_widths(real, fake)
    if max_block_size < 2:
        raise ValueError(f"max_block_size must be at least 2, got {max_block_size}.")
    num_blocks = max(1, -(-max(len(real), len(fake)) // max_block_size))
    if min(len(real), len(fake)) < 2 * num_blocks:
        raise ValueError(
            f"real and fake must have at least 2 rows in each of the {num_blocks} blocks, got "
            f"{len(real)} and {len(fake)}; use more samples or a larger max_block_size "
            f"({max_block_size})."
        )
    orders = [np.arange(len(x)) for x in (real, fake)]
    if shuffle_seed is not None:
        rng = np.random.default_rng(shuffle_seed)
        orders = [rng.permutation(order) for order in orders]
    blocks: Iterable = zip(*(_blocks(order, num_blocks) for order in orders), strict=True)
    if progress:
        blocks = progress(blocks, "KID blocks", num_blocks)
    estimates = np.array([_kernel_estimate(real[rows], fake[columns]) for rows, columns in blocks])
    if num_blocks == 1:
        return float(estimates[0]), float("nan")
    return float(estimates.mean()), float(np.sqrt(estimates.var(ddof=1) / num_blocks))


def kernel_distance_of_subsets(
    real: np.ndarray,
    fake: np.ndarray,
    *,
    num_subsets: int = 100,
    subset_size: int = 1000,
    seed: int = 0,
    progress: Progress | None = None,
) -> tuple[float, float]:
    """KID over random subsets, as StyleGAN's code and others take it, and the standard deviation
    over them.

    Each subset is drawn without replacement from all samples, so their order has no effect; subsets
    overlap, so their deviation is that of one estimate from `subset_size` samples, not of the mean.

    Args:
      real: [N1, D].
      fake: [N2, D].
      num_subsets: how many pairs of subsets the unbiased estimate is averaged over.
      subset_size: samples of each array in a subset.
      seed: of the drawing.
      progress: function (iterable, description, total) -> iterable that draws a progress bar.

    Returns:
      The mean of the subsets' estimates, which may be negative, and their standard deviation
      (ddof = 1), NaN with a single subset.

    Raises:
      ValueError: when the widths differ, a value is not finite, or an array has fewer samples than
        a subset.
    """
    real = as_matrix("real", real)
    fake = as_matrix("fake", fake)
    check_widths(real, fake)
    if num_subsets < 1:
        raise ValueError(f"num_subsets must be at least 1, got {num_subsets}.")
    if not 2 <= subset_size <= min(len(real), len(fake)):
        raise ValueError(
            f"subset_size must be between 2 and the number of samples, got {subset_size} for "
            f"{len(real)} "
            f"real and {len(fake)} fake; use more samples or smaller subsets."
        )
    rng = np.random.default_rng(seed)
    subsets: Iterable = range(num_subsets)
    if progress:
        subsets = progress(subsets, "KID subsets", num_subsets)
    estimates = np.array(
        [
            _kernel_estimate(
                *(x[rng.choice(len(x), subset_size, replace=False)] for x in (real, fake))
            )
            for _ in subsets
        ]
    )
    return float(estimates.mean()), float(estimates.std(ddof=1)) if num_subsets > 1 else float(
        "nan"
    )


def _blocks(x, num_blocks):
    """Consecutive parts of nearly equal size, the larger ones last, as TF-GAN cuts them."""
    size, num_larger = divmod(len(x), num_blocks)
    sizes = [size] * (num_blocks - num_larger) + [size + 1] * num_larger
    return np.split(x, np.cumsum(sizes)[:-1])


def _kernel_estimate(x, y):
    x, y = x.astype(np.float64), y.astype(np.float64)
    m, n = len(x), len(y)
    k_xx, k_yy, k_xy = ((a @ b.T / x.shape[1] + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))
    return (
        (k_xx.sum() - np.trace(k_xx)) / (m * (m - 1))
        + (k_yy.sum() - np.trace(k_yy)) / (n * (n - 1))
        - 2 * k_xy.mean()
    )


def _signed_root(s):
    """The root of a symmetric matrix's eigenvalues that TF-GAN gets from its singular values.

    There the sign of a negative eigenvalue goes to the singular vectors, hence sign(s) f(|s|) with
    f(a) = a below the floor: rounding noise around zero stays noise, and mostly cancels.
    """
    size = np.abs(s)
    return np.sign(s) * np.where(size < _ROOT_FLOOR, size, np.sqrt(size))


def _refuse_negative(eigenvalues, *, scale, where):
    smallest = eigenvalues.min()
    if smallest < -_NEGATIVE_TOLERANCE * abs(scale):
        raise ValueError(
            f"{where} must be positive semi-definite, got one with the eigenvalue "
            f"{smallest:.6g} (scale {scale:.6g}): the moments are corrupt or were accumulated in "
            "less than float64. Recompute them from the features."
        )


def _finite_covariance(name, moments):
    covariance = moments.covariance
    if not (np.isfinite(moments.mean).all() and np.isfinite(covariance).all()):
        raise ValueError(
            f"The mean and covariance of {name} must be finite, got NaN or infinite values; "
            "the features overflowed or the moments are damaged."
        )
    return covariance


def check_widths(real: np.ndarray, fake: np.ndarray) -> None:
    """ValueError when two arrays of features [N, D] differ in D."""
    if real.shape[1] != fake.shape[1]:
        raise ValueError(
            f"real and fake must have the same number of features, got {list(real.shape)} and "
            f"{list(fake.shape)}."
        )


def as_matrix(name: str, value: np.ndarray) -> np.ndarray:
    """`value` as an array [N, D] with finite values; ValueError, which calls it `name`, if it isn't
    one.
    """
    value = np.asarray(value)
    if value.ndim != 2 or value.shape[1] < 1:
        raise ValueError(f"{name} must be a matrix [N, D], got the shape {list(value.shape)}.")
    finite = np.isfinite(value).all(axis=1)
    if not finite.all():
        bad = value[~finite]
        raise ValueError(
            f"{name} must be finite, got {np.isnan(bad).sum()} NaN and {np.isinf(bad).sum()} "
            "infinite values in "
            f"{len(bad)} of {len(value)} rows, the first in row {np.argmin(finite)}: what computed "
            "them overflowed."
        )
    return value
