"""Which numbers an evaluation consists of: functions (real, features, logits) -> {name in the
record: value}.

`real` is a `reference.Reference`; features [N, D] and logits [N, C], float32, are those of the
generated samples. A protocol lists the functions (`Protocol.scores`), which may be anybody's own.
Costs are for 50,000 samples of 2048 features on one core.
"""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from hamgan.evaluation import manifold, metrics, uncertainty


@dataclasses.dataclass(frozen=True, kw_only=True)
class Score:
    """How a number of an evaluation is shown and compared.

    Attributes:
      name: its key in records; its interval has the key NAME_interval, its standard error
        NAME_stderr.
      title: as people write it.
      short: in the columns of a terminal; empty: the title.
      better: 'lower' or 'higher'.
      digits: decimals in a line of text.
      leading: one of the few that are shown first.
    """

    name: str
    title: str
    short: str = ""
    better: str = "lower"
    digits: int = 3
    leading: bool = False

    def __post_init__(self):
        if self.better not in ("lower", "higher"):
            raise ValueError(f"Score: better must be 'lower' or 'higher', got {self.better!r}.")
        if not self.short:
            object.__setattr__(self, "short", self.title)

    @property
    def error(self) -> str:
        """The key of its standard error."""
        return f"{self.name}_stderr"

    @property
    def best(self) -> Callable:
        """`min` or `max`."""
        return min if self.better == "lower" else max


# All that is shown by name, in this order. A new score is added here and as a function below.
SCORES = (
    Score(name="fid", title="FID", leading=True),
    Score(
        name="inception_score",
        title="Inception score",
        short="IS",
        better="higher",
        leading=True,
    ),
    Score(name="kid", title="KID", digits=5, leading=True),
    Score(name="fid_infinity", title="FID, infinitely many samples"),
    Score(name="kid_subsets", title="KID of subsets", digits=5),
    Score(name="precision", title="Precision", better="higher"),
    Score(name="recall", title="Recall", better="higher"),
    Score(name="density", title="Density", better="higher"),
    Score(name="coverage", title="Coverage", better="higher"),
)
LEADING = tuple(score for score in SCORES if score.leading)
# The score that chooses the best checkpoint. (A collapse is told by FID, as `loop.Schedule` says.)
HEADLINE = SCORES[0]

# Of segmentation, whose records `hamgan.segmentation.evaluation` makes.
SEGMENTATION_SCORES = (
    Score(name="mean_iou", title="mIoU", better="higher", digits=4, leading=True),
    Score(name="pixel_accuracy", title="Pixel accuracy", better="higher", leading=True),
    Score(name="mean_accuracy", title="Mean accuracy", better="higher", leading=True),
    Score(name="weighted_iou", title="Weighted IoU", better="higher"),
)
MEAN_IOU = SEGMENTATION_SCORES[0]

ALL_SCORES = SCORES + SEGMENTATION_SCORES


def headline_of(record: dict[str, Any]) -> Score:
    """The score that chooses the best checkpoint, by what an evaluation's record holds."""
    return MEAN_IOU if MEAN_IOU.name in record else HEADLINE


# Single numbers, and intervals [low, high].
Numbers = dict[str, float | list[float]]


def standard(real: Any, features: np.ndarray, logits: np.ndarray) -> Numbers:
    """FID with its two terms, Inception Score and KID in TF-GAN's blocks; seconds."""
    terms = metrics.frechet_terms(real.factor, metrics.Moments.from_features(features))
    kid, kid_stderr = metrics.kernel_distance(real.features, features)
    return {
        "fid": terms.distance,
        "fid_mean_term": terms.mean_term,
        "fid_trace_term": terms.trace_term,
        "fid_smallest_eigenvalue": terms.smallest_eigenvalue,
        "inception_score": metrics.inception_score(logits),
        "kid": kid,
        "kid_stderr": kid_stderr,
    }


def intervals(real: Any, features: np.ndarray, logits: np.ndarray) -> Numbers:
    """95 % bootstrap intervals of FID and Inception Score; about half a minute."""
    found = {
        "fid": uncertainty.frechet_interval(real.factor, features),
        "inception_score": uncertainty.inception_score_interval(logits),
    }
    return {f"{name}_interval": [interval.low, interval.high] for name, interval in found.items()}


def infinity(real: Any, features: np.ndarray, logits: np.ndarray) -> Numbers:
    """FID extrapolated to infinitely many samples."""
    del logits
    found = uncertainty.frechet_infinity(real.factor, features)
    return {"fid_infinity": found.value, "fid_infinity_stderr": found.stderr}


def kid_subsets(real: Any, features: np.ndarray, logits: np.ndarray) -> Numbers:
    """KID as most papers have it, over 100 subsets of 1000; half a minute."""
    del logits
    size = min(1000, len(real.features), len(features))
    kid, std = metrics.kernel_distance_of_subsets(real.features, features, subset_size=size)
    return {"kid_subsets": kid, "kid_subsets_std": std}


def quality_and_variety(real: Any, features: np.ndarray, logits: np.ndarray) -> Numbers:
    """Improved precision and recall, density and coverage; a quarter of an hour."""
    del logits
    found = manifold.manifold_scores(real.features, features)
    names = ("precision", "recall", "density", "coverage")
    return {name: getattr(found, name) for name in names}


# How few real images and samples a score can do with, where that isn't 2: the five neighbours of
# density and coverage beside the image itself; fifteen sizes that differ.
_LEAST = {"quality_and_variety": (6, 6), "infinity": (2, 16)}


def least(functions: Iterable[Callable]) -> tuple[int, int]:
    """How many real images and how many samples these scores need at least; 2 of each, a
    covariance's.
    """
    # A configuration hands over functions in wrappers, which keep the name.
    needs = [_LEAST.get(function.__name__, (2, 2)) for function in functions]
    return max(real for real, _ in needs), max(samples for _, samples in needs)
