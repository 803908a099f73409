"""The numbers of an evaluation, and what to beware of in them."""

from typing import Any

import numpy as np

from hamgan.evaluation import reference, shards
from hamgan.evaluation.protocol import Protocol


def too_few(num_features: int, num_samples: int, num_real: int) -> str | None:
    """What to beware of where a covariance has no full rank, as a sentence; None: nothing."""
    counts = {"samples": num_samples, "real images": num_real}
    few = [f"{count:,} {what}" for what, count in counts.items() if count <= num_features]
    if not few:
        return None
    return (
        f"{' and '.join(few)} are too few for {num_features:,} features: the covariance is "
        "rank-deficient, and this FID depends on their number. Compare it with none of other "
        "counts."
    )


def scores(
    real: reference.Reference, generated: shards.Shards, protocol: Protocol
) -> dict[str, Any]:
    """The numbers of an evaluation, those of `protocol.scores`.

    Args:
      real: a `reference.Reference`.
      generated: `shards.Shards` of 'pool_3' and 'logits', in the order of the samples.
      protocol: the `Protocol`.

    Returns:
      {name: number or [low, high]}.

    Raises:
      ValueError: fewer samples than `protocol.num_samples`.
    """
    features = np.concatenate(list(generated.read("pool_3")))
    logits = np.concatenate(list(generated.read("logits")))
    if len(features) != protocol.num_samples:
        raise ValueError(
            f"The protocol asks for {protocol.num_samples} samples, but there are {len(features)}."
        )
    found = {}
    for function in protocol.scores:
        found.update(function(real, features, logits))
    return found
