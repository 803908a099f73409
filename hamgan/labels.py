"""Where the labels of generated training images come from, when not from a uniform draw.

A part is a function (keys, real_labels) -> labels: keys int32 [B, 2], one per example; real_labels
int32 [B], those of real images of the same step; labels int32 [B].
"""

import dataclasses

import numpy as np
import tensorflow as tf

from hamgan import arguments, stateless


def of_data(keys, real_labels):
    """The labels of the real images: classes are as frequent among generated images as in the
    data.
    """
    del keys
    return tf.identity(real_labels)


@arguments.take(weights=arguments.each(arguments.number(0)))
@dataclasses.dataclass(frozen=True, kw_only=True)
class Weighted:
    """Labels drawn by given weights.

    Attributes:
      weights: one number for each class, in proportion to its frequency: a histogram will do.

    Raises:
      ValueError: a weight is negative, or none is positive.
    """

    weights: tuple

    def __post_init__(self):
        weights = np.asarray(self.weights, np.float64)
        if weights.ndim != 1 or not np.all(weights >= 0) or not 0 < weights.sum() < np.inf:
            raise ValueError(
                f"Weighted: weights must be a list of numbers >= 0, not all 0; got {self.weights}."
            )

    def __call__(self, keys, real_labels):
        del real_labels
        weights = np.asarray(self.weights, np.float64)
        # Upper limits of each class's part of [0, 1); without the last, so that rounding leads
        # nowhere outside.
        limits = np.float32(np.cumsum(weights)[:-1] / weights.sum())
        return tf.searchsorted(limits, stateless.uniform([], keys), side="right")
