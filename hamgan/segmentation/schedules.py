"""Learning rates of the published segmentation systems: functions of the step.

A step is the number of steps finished before this one, as in `hamgan.schedules`.
"""

import dataclasses
from collections.abc import Callable

import tensorflow as tf


def _check(kind, name, value, rule, holds):
    if not holds:
        raise ValueError(f"{kind}: {name} must be {rule}, got {value}.")


def _is_count(value):
    return isinstance(value, int) and value >= 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Poly:
    """step (integer tensor) -> float32 rate (initial - final) * (1 - i / steps)^power + final.

    MMSegmentation's: i = step. HamNet's counts from one and keeps a rate for some steps: i is the
    largest multiple of `every` that isn't above step + 1, so that its last step has the rate
    `final`.

    Attributes:
      initial: rate at i = 0.
      steps: i at which the rate is `final`, and stays so.
      power: 0.9 in HamNet, HamNet+ and most of the field, 1 in Light-Ham.
      final: HamNet 0, HamNet+ 1e-4, Light-Ham 0.
      every: None: as MMSegmentation counts. A number: as HamNet, published 10.

    Raises:
      ValueError: a negative rate or power, steps or every that isn't a whole number of at least 1.
    """

    initial: float
    steps: int
    power: float = 0.9
    final: float = 0.0
    every: int | None = None

    def __post_init__(self):
        for name in ("initial", "power", "final"):
            value = getattr(self, name)
            _check("Poly", name, value, "at least 0", value >= 0)
        _check("Poly", "steps", self.steps, "a whole number of at least 1", _is_count(self.steps))
        rule = "None or a whole number of at least 1"
        _check("Poly", "every", self.every, rule, self.every is None or _is_count(self.every))

    def __call__(self, step):
        if self.every is not None:
            step = (step + 1) // self.every * self.every
        # Integers first: float32 has rounding of its own beyond 16 million.
        left = tf.cast(self.steps - tf.minimum(step, self.steps), tf.float32) / self.steps
        return (self.initial - self.final) * left**self.power + self.final


@dataclasses.dataclass(frozen=True, kw_only=True)
class WarmUp:
    """step (integer tensor) -> float32 rate: another schedule's, times a factor that rises to 1.

    MMCV's linear warm-up: factor 1 - (1 - step / steps) * (1 - ratio) while step < steps.

    Attributes:
      schedule: function step -> rate.
      steps: how many steps it takes; Light-Ham 1,500.
      ratio: the factor at step 0; Light-Ham 1e-6.

    Raises:
      ValueError: steps isn't a whole number of at least 1, or ratio isn't in [0, 1].
    """

    schedule: Callable[[tf.Tensor], tf.Tensor]
    steps: int = 1500
    ratio: float = 1e-6

    def __post_init__(self):
        _check("WarmUp", "steps", self.steps, "a whole number of at least 1", _is_count(self.steps))
        _check("WarmUp", "ratio", self.ratio, "in [0, 1]", 0 <= self.ratio <= 1)

    def __call__(self, step):
        done = tf.cast(tf.minimum(step, self.steps), tf.float32) / self.steps
        # Not 1 - (1 - done) * (1 - ratio): the same number, but nothing is lost at step 0.
        return self.schedule(step) * (done + (1 - done) * self.ratio)
