"""Which numbers an evaluation consists of: functions (real, features, logits) -> {name in the
record: value}.

`real` is a `reference.Reference`; features [N, D] and logits [N, C], float32, are those of the
generated samples. A protocol lists the functions (`Protocol.scores`), which may be anybody's own.
Costs are for 50,000 samples of 2048 features on one core.
"""

from hamgan.evaluation import manifold, metrics, uncertainty


def standard(real, features, logits):
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


def intervals(real, features, logits):
    """95 % bootstrap intervals of FID and Inception Score; about half a minute."""
    found = {
        "fid": uncertainty.frechet_interval(real.factor, features),
        "inception_score": uncertainty.inception_score_interval(logits),
    }
    return {f"{name}_interval": [interval.low, interval.high] for name, interval in found.items()}


def infinity(real, features, logits):
    """FID extrapolated to infinitely many samples."""
    del logits
    found = uncertainty.frechet_infinity(real.factor, features)
    return {"fid_infinity": found.value, "fid_infinity_stderr": found.stderr}


def kid_subsets(real, features, logits):
    """KID as most papers have it, over 100 subsets of 1000; half a minute."""
    del logits
    size = min(1000, len(real.features), len(features))
    kid, std = metrics.kernel_distance_of_subsets(real.features, features, subset_size=size)
    return {"kid_subsets": kid, "kid_subsets_std": std}


def quality_and_variety(real, features, logits):
    """Improved precision and recall, density and coverage; a quarter of an hour."""
    del logits
    found = manifold.manifold_scores(real.features, features)
    names = ("precision", "recall", "density", "coverage")
    return {name: getattr(found, name) for name in names}
