"""Learning rates that change: functions of the step. A constant one is a number."""

import dataclasses

import tensorflow as tf

from hamgan import arguments


@arguments.take(
    initial=arguments.number(0),
    end=arguments.whole(1),
    start=arguments.whole(0),
    final=arguments.number(0),
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearDecay:
    """step (integer tensor, steps finished before this one) -> float32 rate: constant, then falling
    along a line.

    Attributes:
      initial: rate until step `start`.
      end: from this step on the rate is `final`.
      start: where it begins to fall.
      final: what it falls to.

    Raises:
      ValueError: start isn't in [0, end), one of them isn't an integer, or a rate is negative.
    """

    initial: float
    end: int
    start: int = 0
    final: float = 0.0

    def __post_init__(self):
        for name in ("start", "end"):
            if not isinstance(getattr(self, name), int):
                raise ValueError(
                    f"LinearDecay: {name} must be a whole number like 1_000_000, got "
                    f"{getattr(self, name)}."
                )
        if not 0 <= self.start < self.end:
            raise ValueError(
                f"LinearDecay: start must be in [0, end), got start {self.start} and end "
                f"{self.end}."
            )
        for name in ("initial", "final"):
            if getattr(self, name) < 0:
                raise ValueError(
                    f"LinearDecay: {name} must not be negative, got {getattr(self, name)}."
                )

    def __call__(self, step):
        # Integers first: float32 doesn't hold every step beyond 16 million.
        past = tf.cast(tf.clip_by_value(step - self.start, 0, self.end - self.start), tf.float32)
        share = past / (self.end - self.start)
        return self.initial * (1 - share) + self.final * share
