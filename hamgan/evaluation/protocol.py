"""What a score was computed from and how: without it no two numbers can be compared."""

import dataclasses
import hashlib
import inspect
import json
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from hamgan import arguments, sampling, stateless
from hamgan.evaluation import scores
from hamgan.evaluation.features import FeatureNetwork


def tf1_bilinear(images: tf.Tensor, size: int) -> tf.Tensor:
    """TF1's bilinear kernel, of the published numbers: corners not aligned, no half-pixel shift, no
    antialias.
    """
    return tf.compat.v1.image.resize_bilinear(
        images, [size, size], align_corners=False, half_pixel_centers=False
    )


def half_pixel_bilinear(images: tf.Tensor, size: int) -> tf.Tensor:
    """The kernel of `tf.image.resize`: sampled at pixel centres."""
    return tf.image.resize(images, [size, size])


def uniform(dataset) -> Callable:
    """Each class equally likely for each sample."""
    return lambda indices, keys: stateless.labels(dataset.num_classes, keys)


def balanced(dataset) -> Callable:
    """Each class equally often: sample i is of class i mod the number of classes."""
    return lambda indices, keys: tf.math.floormod(indices, dataset.num_classes)


def train_histogram(dataset) -> Callable:
    """Each class as likely as in the training split, whose labels are read for it once."""
    split, batch_size = dataset.train_split, 10_000
    batches = dataset.label_batches(split=split, batch_size=batch_size).as_numpy_iterator()
    total = -(-dataset.num_examples(split) // batch_size)
    counts = np.zeros(dataset.num_classes, np.int64)
    for labels in tqdm(batches, "labels", total, leave=False, delay=2):
        counts += np.bincount(labels, minlength=dataset.num_classes)
    bounds = tf.constant(np.cumsum(counts), tf.int32)
    # A training image drawn at random, and its class.
    return lambda indices, keys: tf.searchsorted(
        bounds, stateless.labels(int(counts.sum()), keys), side="right"
    )


@arguments.take(
    name=arguments.optional(arguments.text()),
    num_samples=arguments.whole(2),
    seed=arguments.seed(),
    repeats=arguments.whole(1),
    reference_split=arguments.optional(arguments.text()),
    reference_count=arguments.optional(arguments.whole(2)),
    reference_repeated=arguments.whole(0),
    reference_folder=arguments.optional(arguments.text()),
    resize=arguments.function("@protocol.half_pixel_bilinear"),
    labels=arguments.function("@protocol.balanced"),
    truncation=arguments.optional(arguments.number(above=0)),
    weights=arguments.one_of(*sampling.PREFIXES),
    batch_norm=arguments.constructor("@sampling.StandingStatistics"),
    batch_size=arguments.whole(1),
    features=arguments.constructor("@features.FeatureNetwork"),
    scores=arguments.each(arguments.function("@scores.standard")),
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Protocol:
    """Settings of an evaluation; every record repeats them. Shipped ones: configs/protocols/*.gin.

    Parts may be replaced by functions or classes of one's own with the same signature; records call
    them by their attribute `words` or else by their name, so a part that computes something else
    needs another name.

    Attributes:
      name: what records call it; None: 'val-50k' if it is that one, else 'custom'.
      num_samples: generated images, exactly as many.
      seed: of noise, labels and initial bases; sample i is a function of (seed, i).
      repeats: evaluations of each checkpoint, with the seeds seed, seed + 1, ...
      reference_split: split of real images to compare with; None: the data set's own
        `reference_split`.
      reference_count: how many of them, in stored order; None: all.
      reference_repeated: so many of the first count twice.
      reference_folder: a built reference; None: it is kept in data_dir, and built there when it is
        needed.
      quantize: round images to 8 bits first, as a file would.
      resize: function (images [B, S, S, 3], size) -> [B, size, size, 3], to the input of the
        feature network.
      labels: function (dataset) -> function (indices [B], keys [B, 2]) -> labels [B]; `uniform`,
        `balanced` or `train_histogram`.
      truncation: components of the noise stay within plus or minus this; None: all of N(0, 1).
      weights: 'raw', or 'ema' for their moving average.
      batch_norm: constructor of where batch norm has its moments from:
        `hamgan.sampling.MovingAverages`, `StandingStatistics` or `BatchStatistics`.
      batch_size: images per call over all replicas; has no influence on the result, except with
        `BatchStatistics`.
      features: constructor of the feature network.
      scores: functions of `hamgan.evaluation.scores`, which numbers a record has.
    """

    name: str | None = None
    num_samples: int = 50_000
    seed: int = 0
    repeats: int = 1
    reference_split: str | None = None
    reference_count: int | None = None
    reference_repeated: int = 0
    reference_folder: str | None = None
    quantize: bool = True
    resize: Callable = tf1_bilinear
    labels: Callable = uniform
    truncation: float | None = None
    weights: str = "raw"
    batch_norm: type = sampling.MovingAverages
    batch_size: int = 256
    features: type = FeatureNetwork
    scores: tuple = (scores.standard, scores.intervals)

    def __post_init__(self):
        # What can be told better than a table does.
        sampling.check_truncation(self.truncation)
        sampling.check_weights(self.weights)
        arguments.check_fields(self)
        if self.name is not None and not re.fullmatch(r"[\w.-]+", self.name):
            raise ValueError(
                "Protocol: name must be letters, digits, '_', '.' and '-', as of a file; got "
                f"{self.name!r}."
            )
        # A configuration hands over functions in wrappers.
        if scores.standard not in map(inspect.unwrap, self.scores):
            raise ValueError(
                "Protocol: scores must have scores.standard among them, since checkpoints are "
                "compared by FID; got "
                f"{[in_words(function) for function in self.scores]}."
            )
        _check_reserved(self)


def _settings(**settings):
    # What the published protocols share, and what one of them has of its own.
    shared = dict(
        reference_repeated=0,
        quantize=True,
        resize=tf1_bilinear,
        labels=uniform,
        truncation=None,
        weights="raw",
        batch_norm=sampling.MovingAverages,
    )
    return {**shared, **settings}


# Names that mean these settings, wherever a record has them; the files in configs/protocols say the
# same.
RESERVED = {
    "paper": _settings(
        num_samples=50_176,
        reference_split="validation",
        reference_count=50_000,
        reference_repeated=176,
        quantize=False,
    ),
    "val-50k": _settings(num_samples=50_000, reference_split="validation", reference_count=50_000),
    "train-full": _settings(num_samples=50_000, reference_split="train", reference_count=1_281_167),
}


def _setting(value):
    """A setting as it is compared: gin hands over wrappers of functions and classes."""
    named = hasattr(value, "__qualname__")
    return f"{value.__module__}.{value.__qualname__}" if named else value


def _check_reserved(protocol):
    wanted = RESERVED.get(protocol.name, {})
    differing = {n: v for n, v in wanted.items() if _setting(getattr(protocol, n)) != _setting(v)}
    if differing:
        raise ValueError(
            f"Protocol: the name {protocol.name!r} means "
            + ", ".join(
                f"{name} {in_words(value) if callable(value) else value}"
                for name, value in differing.items()
            )
            + "; got "
            + ", ".join(
                f"{name} {in_words(value) if callable(value) else value}"
                for name, value in ((name, getattr(protocol, name)) for name in differing)
            )
            + ". Give it a name of its own."
        )


# Neither changes what is measured: the seed stands beside the protocol in records, the rest is
# about the how.
NOT_DECIDING = ("name", "seed", "repeats", "reference_folder", "batch_size", "features", "scores")


def describe(protocol: Protocol, *, batch_norm, reference: dict[str, Any]) -> dict[str, Any]:
    """How records name a protocol.

    Args:
      protocol: a `Protocol`.
      batch_norm: its `batch_norm`, constructed.
      reference: the fingerprint of its reference (see `hamgan.evaluation.reference`).

    Returns:
      {'name', 'fingerprint', 'truncation', 'resize', 'words'}; the fingerprint is of all that
      decides the number but the checkpoint and the seed, the words are for people.
    """
    decides = {
        "num_samples": protocol.num_samples,
        "labels": in_words(protocol.labels),
        "truncation": protocol.truncation,
        "weights": protocol.weights,
        "batch_norm": batch_norm.words,
        # With quantisation, resize and network, as of both sides. The data's digest stands beside
        # it in records: those of earlier versions lack it, and keep their fingerprint.
        "reference": {name: part for name, part in reference.items() if name != "content"},
    }
    fingerprint = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:16]
    noise = "" if protocol.truncation is None else f", noise within {protocol.truncation:g}"
    repeated = (
        f", the first {reference['repeated']:,} of them twice," if reference["repeated"] else ""
    )
    return {
        "name": protocol.name or _implied_name(protocol, reference),
        "fingerprint": fingerprint,
        "truncation": protocol.truncation,
        "resize": reference["resize"],
        "words": (
            f"{protocol.num_samples:,} samples, {decides['labels']} labels{noise}, "
            f"{protocol.weights} weights, batch "
            f"norm with {batch_norm.words}, against {reference['count']:,} images{repeated} of "
            f"{reference['dataset']} "
            f"{reference['version']} {reference['split']}; "
            f"{'8-bit' if protocol.quantize else 'float'} pixels, "
            f"resized to {reference['network_size']} by {reference['resize']}"
        ),
    }


def _implied_name(protocol, reference):
    """What a protocol without a name is called: 'val-50k' is the default of every field on 50,000
    validation images.
    """
    default = Protocol(
        reference_split=protocol.reference_split, reference_count=protocol.reference_count
    )

    def setting(of, name):
        value = getattr(of, name)
        return getattr(value, "words", getattr(value, "__name__", value))

    names = [field.name for field in dataclasses.fields(Protocol) if field.name not in NOT_DECIDING]
    same = all(setting(protocol, name) == setting(default, name) for name in names)
    return (
        "val-50k"
        if same and (reference["split"], reference["count"]) == ("validation", 50_000)
        else "custom"
    )


def in_words(part: Any) -> str:
    """How records name a part of a protocol."""
    name = getattr(part, "words", None) or getattr(part, "__name__", None)
    if not name:
        raise ValueError(
            f"Records can't name {part}: give it an attribute `words`, or make it a function with "
            "a name."
        )
    return name.replace("_", " ")
