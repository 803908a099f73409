"""Images from a generator: sample i is a function of (seed, i) alone."""

import contextlib
import math
import threading

import numpy as np
import tensorflow as tf

from hamgan import arguments, distribution, normalization, stateless
from hamgan.layers import layers_of
from hamgan.run import contents

# Where checkpoints hold the generator's weights, and their exponential moving average.
PREFIXES = {"raw": "generator", "ema": "generator_ema"}


def check_weights(weights):
    """ValueError unless `weights` is one of PREFIXES."""
    if not isinstance(weights, str) or weights not in PREFIXES:
        raise ValueError(f"weights must be one of {', '.join(PREFIXES)}, got {weights!r}.")


def check_truncation(truncation):
    """ValueError unless `truncation` is None or positive."""
    kind = arguments.optional(arguments.number(above=0))
    try:
        kind.convert(truncation)
    except (ValueError, TypeError):
        raise ValueError(
            f"truncation must be positive (None: the whole normal distribution), got "
            f"{truncation!r}."
        ) from None


def restore(generator, path, *, weights="raw"):
    """Reads a generator's weights from a checkpoint.

    Args:
      generator: a `hamgan.networks.Generator`.
      path: the checkpoint.
      weights: 'raw', or 'ema' for their moving average.

    Raises:
      ValueError: the checkpoint has no such weights, or is of another configuration: both sides are
        named.
    """
    check_weights(weights)
    prefix = PREFIXES[weights]
    if weights == "ema" and not any(
        name.startswith(prefix) for name, _ in tf.train.list_variables(path)
    ):
        raise ValueError(
            f"weights is 'ema', but {path} holds no {prefix}/ variables: it was trained without a "
            "moving average. "
            "Use weights 'raw'."
        )
    contents.restore(path, contents.network_variables(prefix, generator), partial=True)


class Sampler:
    """Draws images on all replicas of a strategy.

    The generator runs in inference mode (moving averages). The result depends neither on the batch
    size nor on the number of replicas.

    Args:
      generator: a `hamgan.networks.Generator`.
      strategy: the strategy in whose scope it was made.
      batch_size: images per call over all replicas.
      seed: of noise, labels and initial bases.
      truncation: components of the noise are drawn from N(0, 1) within plus or minus this (Brock et
        al. 2019); None: from all of it.
      labels: function (indices [B], keys [B, 2]) -> int32 [B], in `tf.function`; None: uniform.

    Raises:
      ValueError: the batch size isn't divisible by the number of replicas, or `truncation` isn't
        positive.
    """

    def __init__(self, generator, *, strategy, batch_size=64, seed=0, truncation=None, labels=None):
        check_truncation(truncation)
        self.generator = generator
        self.batch_size = batch_size
        self.strategy = strategy
        self._seed = seed
        self._truncation = truncation
        self._labels = labels
        self._replica_batch_size = distribution.per_replica_batch_size(
            batch_size, strategy.num_replicas_in_sync
        )

    def with_batch_size(self, batch_size):
        """A sampler of the same samples in other batches."""
        return Sampler(
            self.generator,
            strategy=self.strategy,
            batch_size=batch_size,
            seed=self._seed,
            truncation=self._truncation,
            labels=self._labels,
        )

    def of_replica(self, first, labels=None, seed=None):
        """Images of this replica for the batch that begins with sample `first`; to be called in
        `strategy.run`.

        Args:
          first: integer tensor, may be negative.
          labels: int32 [batch_size] of the whole batch; None: the sampler's own.
          seed: integer tensor; None: the sampler's own.

        Returns:
          (images [b, S, S, 3] float32, labels [b] int32), b the replica's share of the batch.
        """
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        offset = replica * self._replica_batch_size
        indices = first + offset + tf.range(self._replica_batch_size)
        parent = stateless.key(self._seed if seed is None else seed, stateless.EVALUATION)
        z, drawn, keys = stateless.generator_inputs(
            parent,
            indices,
            latent_dim=self.generator.latent_dim,
            num_classes=self.generator.num_classes,
        )
        if self._truncation is not None:
            keys_of_noise = stateless.example_keys(stateless.fold(parent, stateless.NOISE), indices)
            z = _truncated_normal([self.generator.latent_dim], keys_of_noise, self._truncation)
        if labels is not None:
            drawn = tf.slice(labels, [offset], [self._replica_batch_size])
        elif self._labels is not None:
            keys_of_labels = stateless.example_keys(
                stateless.fold(parent, stateless.LABELS), indices
            )
            drawn = self._labels(indices, keys_of_labels)
        return self.generator(z, drawn, training=False, keys=keys), drawn

    @tf.function
    def _batch(self, first, labels):
        images, drawn = self.strategy.run(self.of_replica, args=(first, labels))
        return distribution.gather(self.strategy, images), distribution.gather(self.strategy, drawn)

    def batches(self, count, labels=None):
        """Yields (images, labels) as NumPy arrays until exactly `count` samples are drawn.

        Args:
          count: number of samples.
          labels: [count] integers; None: the sampler's own.
        """
        if labels is not None:
            labels = np.asarray(labels, np.int32)
            bad = labels[(labels < 0) | (labels >= self.generator.num_classes)]
            if bad.size:
                raise ValueError(
                    f"Label {bad[0]} is outside the classes of this generator, 0 to "
                    f"{self.generator.num_classes - 1}."
                )
        for first in range(0, count, self.batch_size):
            size = min(self.batch_size, count - first)
            part = None
            if labels is not None:
                part = tf.constant(np.resize(labels[first : first + size], self.batch_size))
            images, drawn = self._batch(tf.constant(first), part)
            yield images.numpy()[:size], drawn.numpy()[:size]

    def sample(self, count, labels=None):
        """(images [count, S, S, 3] float32 in [-1, 1], labels [count] int32)."""
        images, drawn = zip(*self.batches(count, labels), strict=True)
        return np.concatenate(images), np.concatenate(drawn)


def _truncated_normal(shape, keys, bound):
    """N(0, 1) within [-bound, bound], float32 [B, *shape]; row i is a function of keys[i] alone."""
    # The distribution function turned round; half a step of the uniform numbers, so that none is at
    # an end.
    u = stateless.uniform(shape, keys) + 2**-25
    return math.sqrt(2) * tf.math.erfinv((2 * u - 1) * math.erf(bound / math.sqrt(2)))


class MovingAverages:
    """Batch norm with the moving averages of training."""

    words = "moving averages"

    def __init__(self, sampler):
        del sampler

    @contextlib.contextmanager
    def applied(self, seed):
        """Sampling within has these moments; `seed` is that of the samples."""
        yield


class BatchStatistics:
    """Batch norm with the moments of each batch, over all replicas, as in training.

    A sample then depends on the others of its batch: such a number holds for one batch size only.
    """

    def __init__(self, sampler):
        self._layers = _batch_norms(sampler.generator)
        self.words = f"the moments of each batch of {sampler.batch_size}"

    @contextlib.contextmanager
    def applied(self, seed):
        """As `MovingAverages.applied`."""
        with normalization.moments_from(
            self._layers, [normalization.global_moments] * len(self._layers)
        ):
            yield


@arguments.take(batches=arguments.whole(1), batch_size=arguments.whole(1))
class StandingStatistics:
    """Batch norm with moments that belong to the weights: the plain mean over the moments of some
    generated batches.

    They are kept in variables of their own; the generator's moving averages stay as they are.
    (Brock et al. 2019)

    Args:
      sampler: the `Sampler` whose generator it is; labels, truncation and seed are those of its
        samples.
      batches: how many.
      batch_size: samples in each, over all replicas.
    """

    def __init__(self, sampler, *, batches=16, batch_size=256):
        batches, batch_size = arguments.check(
            "StandingStatistics", type(self).ARGUMENTS, batches=batches, batch_size=batch_size
        ).values()
        self._sampler = sampler.with_batch_size(batch_size)
        self._batches = batches
        self._layers = _batch_norms(sampler.generator)
        self.words = f"standing statistics of {batches} batches of {batch_size}"
        with sampler.strategy.scope():
            self._moments = [
                [
                    tf.Variable(
                        tf.zeros(layer.moving_mean.shape), trainable=False, aggregation=_FIRST
                    )
                    for _ in range(2)
                ]
                for layer in self._layers
            ]

    @contextlib.contextmanager
    def applied(self, seed):
        """As `MovingAverages.applied`; computes the moments first, from the samples before sample
        0.
        """
        batches = [
            self._of_batch(tf.constant(-(batch + 1) * self._sampler.batch_size), seed)
            for batch in range(self._batches)
        ]
        for variables, moments in zip(self._moments, zip(*batches, strict=True), strict=True):
            for variable, values in zip(variables, zip(*moments, strict=True), strict=True):
                variable.assign(np.mean(values, axis=0, dtype=np.float64))
        functions = [
            lambda x, of=of: tuple(tf.convert_to_tensor(v) for v in of) for of in self._moments
        ]
        with normalization.moments_from(self._layers, functions):
            yield

    @tf.function
    def _of_batch(self, first, seed):
        """The moments of every layer in one batch, [[mean, variance], ...]."""
        # By thread: a mirrored strategy traces the replicas in threads that take turns at each
        # reduction.
        seen = {}

        def record(index):
            def moments(x):
                seen[threading.get_ident(), index] = normalization.global_moments(x)
                return seen[threading.get_ident(), index]

            return moments

        def of_replica(first, seed):
            self._sampler.of_replica(first, seed=seed)
            return [list(seen[threading.get_ident(), index]) for index in range(len(self._layers))]

        with normalization.moments_from(
            self._layers, [record(index) for index in range(len(self._layers))]
        ):
            moments = self._sampler.strategy.run(of_replica, args=(first, seed))
        # The same on all replicas.
        return tf.nest.map_structure(
            lambda value: self._sampler.strategy.experimental_local_results(value)[0], moments
        )


_FIRST = tf.VariableAggregation.ONLY_FIRST_REPLICA


def _batch_norms(generator):
    layers = layers_of(generator, normalization.BatchNorm)
    if not layers:
        raise ValueError(
            "The generator has no hamgan.normalization.BatchNorm: take sampling.MovingAverages for "
            "its batch norm."
        )
    return layers
