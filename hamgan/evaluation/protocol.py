"""What a score was computed from and how: without it no two numbers can be compared."""

import dataclasses

from hamgan.evaluation.features import FeatureNetwork


@dataclasses.dataclass(frozen=True, kw_only=True)
class Protocol:
    """Settings of an evaluation; every record repeats them.

    Attributes:
      num_samples: generated images, exactly as many.
      seed: of noise, labels and initial bases; sample i is a function of (seed, i).
      reference_split: split of real images to compare with; None: the data set's own `reference_split`.
      reference_count: how many of them, in stored order; None: all.
      quantize: round images to 8 bits first, as a file would.
      batch_size: images per call over all replicas; has no influence on the result.
      features: constructor of the feature network.
    """

    num_samples: int = 50_000
    seed: int = 0
    reference_split: str | None = None
    reference_count: int | None = None
    quantize: bool = True
    batch_size: int = 256
    features: type = FeatureNetwork

    def __post_init__(self):
        for name in ("num_samples", "reference_count"):
            value = getattr(self, name)
            if value is not None and value < 2:
                raise ValueError(f"Protocol: {name} must be at least 2, got {value}: a covariance needs two samples.")
