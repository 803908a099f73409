"""Whether a whole evaluation set-up can be trusted: real images through it, on this device, before
any model is.
"""

import dataclasses
import sys
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from hamgan.evaluation import metrics

BATCH_SIZES = (1, 7, 64)


@dataclasses.dataclass(frozen=True, kw_only=True)
class KnownScore:
    """What the Inception Score of real images is known to be: a wrong resize or range of pixels
    falls out of it.

    Attributes:
      num_logits: of the network.
      dataset: name, with the `split` and the number of images `count` that the score was measured
        on.
      image_size: of the data set.
      low: smallest value that is right.
      high: largest.
    """

    num_logits: int
    dataset: str
    split: str
    count: int
    image_size: int
    low: float
    high: float


KNOWN_SCORES = (
    # Inception of 2015 at 128x128, as published evaluations report it.
    KnownScore(
        num_logits=1008,
        dataset="imagenet2012",
        split="validation",
        count=50_000,
        image_size=128,
        low=159.0,
        high=166.0,
    ),
    # Measured with data_prep/digits_features.py and four seeds: 9.89 to 9.92, and 9.66 to 9.71.
    KnownScore(
        num_logits=10,
        dataset="digits",
        split="train",
        count=1497,
        image_size=32,
        low=9.8,
        high=10.0,
    ),
    KnownScore(
        num_logits=10, dataset="digits", split="test", count=300, image_size=32, low=9.55, high=9.85
    ),
)


@dataclasses.dataclass(frozen=True)
class Check:
    """One line of the result; `passed` is None where there is nothing to judge by."""

    name: str
    passed: bool | None
    text: str

    def __str__(self):
        verdict = {True: "ok", False: "FAILED", None: "not judged"}[self.passed]
        return f"{self.name}: {verdict} ({self.text})"


def checks(
    *,
    embedder: Callable,
    strategy: tf.distribute.Strategy,
    dataset,
    split: str | None = None,
    batch_size: int = 256,
    known: Sequence[KnownScore] = KNOWN_SCORES,
    batch_tolerance: float = 1e-4,
    device_tolerance: float = 1e-2,
    progress: bool = True,
) -> Iterator[Check]:
    """Runs the checks, the quick ones first, and yields each as it is done.

    Args:
      embedder: function (strategy, batch_size) -> function from at most `batch_size` images [n, S,
        S, 3] to their features {'pool_3': [n, D], 'logits': [n, C]}, as evaluations compute them.
      strategy: what evaluations compute on.
      dataset: a `hamgan.data.ImageDataset`.
      split: of the real images; None: the data set's `reference_split`.
      batch_size: images per call of the long check.
      known: what scores are known.
      batch_tolerance: largest difference of features between batch sizes, relative to the largest
        feature.
      device_tolerance: the same between the device and a CPU in float32; matrix units round inputs
        to bfloat16 or TF32.
      progress: draw a progress bar.

    Yields:
      `Check`s.
    """
    split = split or dataset.reference_split
    count = max(BATCH_SIZES)
    images = next(dataset.reference_batches(split=split, batch_size=count).as_numpy_iterator())[
        "image"
    ]
    outputs = {size: _in_batches(embedder(strategy, size), images, size) for size in BATCH_SIZES}
    difference = max(_difference(of_size, outputs[count]) for of_size in outputs.values())
    yield Check(
        f"features in batches of {', '.join(map(str, BATCH_SIZES))} agree",
        difference <= batch_tolerance,
        f"largest relative difference {difference:.2g}, at most {batch_tolerance:g}",
    )

    on_cpu = embedder(tf.distribute.OneDeviceStrategy("/cpu:0"), count)
    difference = _difference(outputs[count], _in_batches(on_cpu, images, count))
    device = tf.DeviceSpec.from_string(strategy.extended.worker_devices[0]).device_type
    yield Check(
        f"features of the {device} agree with a CPU in float32",
        difference <= device_tolerance,
        f"largest relative difference {difference:.2g}, at most {device_tolerance:g}",
    )

    embed = embedder(strategy, batch_size)
    batches = dataset.reference_batches(split=split, batch_size=batch_size).as_numpy_iterator()
    bar = tqdm(
        batches,
        "real images",
        -(-dataset.num_examples(split) // batch_size),
        unit="batch",
        disable=not progress,
        mininterval=0.1 if sys.stderr.isatty() else 15,
    )
    logits = np.concatenate([embed(batch["image"])["logits"] for batch in bar])
    score = metrics.inception_score(logits)
    right = _known(known, dataset, split, logits)
    yield Check(
        f"Inception Score of {len(logits):,} real images of {dataset.name}, split {split}",
        right.low <= score <= right.high if right else None,
        f"{score:.4g}, "
        + (f"known to be {right.low:g} to {right.high:g}" if right else "no known range"),
    )


def _in_batches(embed, images, size):
    parts = [embed(images[first : first + size]) for first in range(0, len(images), size)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _difference(outputs, expected):
    """The largest difference of any output, relative to its largest value."""
    return max(
        float(np.abs(outputs[name].astype(np.float64) - value).max() / np.abs(value).max())
        for name, value in expected.items()
    )


def _known(known, dataset, split, logits):
    facts = (logits.shape[1], dataset.name, split, len(logits), dataset.image_size)
    for score in known:
        if facts == (score.num_logits, score.dataset, score.split, score.count, score.image_size):
            return score
    return None
