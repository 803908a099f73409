"""Images from a generator: sample i is a function of (seed, i) alone."""

import contextlib
import threading

import numpy as np
import tensorflow as tf
import tqdm

from hamgan import arguments, choices, distribution, normalization, stateless
from hamgan.layers import layers_of
from hamgan.run import contents

PREFIXES = choices.WEIGHTS


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


def check_psi(psi):
    """ValueError unless `psi` is finite and not negative."""
    try:
        arguments.number(0).convert(psi)
    except (ValueError, TypeError):
        raise ValueError(f"psi must be a number of at least 0, got {psi!r}.") from None


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
            "moving average. Use weights 'raw'."
        )
    contents.restore(path, contents.network_variables(prefix, generator), partial=True)


class Sampler:
    """Draws images on all replicas of a strategy.

    The generator runs in inference mode (moving averages). The result depends neither on the batch
    size nor on the number of replicas: up to rounding, and to the last bit where the batch of a
    replica is the same, since batches are always filled up.

    Args:
      generator: a `hamgan.networks.Generator`.
      strategy: the strategy in whose scope it was made.
      batch_size: images per call over all replicas.
      seed: of noise, labels and initial bases.
      truncation: components of the noise are drawn from N(0, 1) within plus or minus this (Brock et
        al. 2019); None: from all of it.
      psi: the noise is multiplied by this, towards its mean, 0; 1: as it is.
      labels: function (indices [B], keys [B, 2]) -> int32 [B], in `tf.function`; None: uniform.

    Raises:
      ValueError: the batch size isn't divisible by the number of replicas, `truncation` isn't
        positive, or `psi` is negative or not finite.
    """

    def __init__(
        self,
        generator,
        *,
        strategy,
        batch_size=64,
        seed=0,
        truncation=None,
        psi=1.0,
        labels=None,
    ):
        check_truncation(truncation)
        check_psi(psi)
        self.generator = generator
        self.batch_size = batch_size
        self.strategy = strategy
        self._seed = seed
        self._truncation = truncation
        self._psi = psi
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
            psi=self._psi,
            labels=self._labels,
        )

    def inputs(self, indices, seed=None):
        """The generator's inputs for samples `indices` [B].

        Args:
          indices: integer tensor, may be negative.
          seed: integer tensor; None: the sampler's own.

        Returns:
          z [B, latent_dim] float32, labels [B] int32, keys [B, 2] of the initial bases.
        """
        parent = stateless.key(self._seed if seed is None else seed, stateless.EVALUATION)
        z, drawn, keys = stateless.generator_inputs(
            parent,
            indices,
            latent_dim=self.generator.latent_dim,
            num_classes=self.generator.num_classes,
        )
        if self._truncation is not None:
            keys_of_noise = stateless.example_keys(stateless.fold(parent, stateless.NOISE), indices)
            z = stateless.truncated_normal(
                [self.generator.latent_dim], keys_of_noise, self._truncation
            )
        if self._psi != 1:
            z = self._psi * z
        if self._labels is not None:
            keys_of_labels = stateless.example_keys(
                stateless.fold(parent, stateless.LABELS), indices
            )
            drawn = self._labels(indices, keys_of_labels)
        return z, drawn, keys

    def _offset(self):
        """Where this replica's share of a batch begins; to be asked in `strategy.run`."""
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        return replica * self._replica_batch_size

    def _share(self, value):
        """This replica's rows of [batch_size, ...]."""
        return value[self._offset() : self._offset() + self._replica_batch_size]

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
        offset = self._offset()
        indices = first + offset + tf.range(self._replica_batch_size)
        z, drawn, keys = self.inputs(indices, seed)
        if labels is not None:
            drawn = tf.slice(labels, [offset], [self._replica_batch_size])
        return self.generator(z, drawn, training=False, keys=keys), drawn

    @tf.function(autograph=False)
    def _batch(self, first, labels):
        images, drawn = self.strategy.run(self.of_replica, args=(first, labels))
        return distribution.gather(self.strategy, images), distribution.gather(self.strategy, drawn)

    @tf.function(autograph=False)
    def _numbered(self, indices, labels):
        def of_replica(indices, labels):
            z, drawn, keys = self.inputs(self._share(indices))
            drawn = drawn if labels is None else self._share(labels)
            return self.generator(z, drawn, training=False, keys=keys), drawn

        images, drawn = self.strategy.run(of_replica, args=(indices, labels))
        return distribution.gather(self.strategy, images), distribution.gather(self.strategy, drawn)

    @tf.function(autograph=False)
    def _of_inputs(self, z, labels, keys, *blend):
        def of_replica(z, labels, keys, *blend):
            z, labels, keys = (self._share(value) for value in (z, labels, keys))
            more = {}
            if blend:
                more["initial"] = self._blended_bases(*(self._share(value) for value in blend))
            return self.generator(z, labels, training=False, keys=keys, **more)

        images = self.strategy.run(of_replica, args=(z, labels, keys, *blend))
        return distribution.gather(self.strategy, images)

    def _blended_bases(self, others, share):
        """Initial bases between those of the call's keys and of `others` [B, 2], for
        `Generator.call`.
        """
        module = getattr(self.generator, "context", None)
        if not hasattr(module, "initial"):
            return None

        def initial(keys):
            parts = share[:, None, None, None]
            one, other = module.initial(keys), module.initial(others)
            return {ham: (1 - parts) * one[ham] + parts * other[ham] for ham in one}

        return initial

    def numbered(self, indices, labels=None):
        """Yields (images, labels) as NumPy arrays of samples with these numbers, batch by batch.

        Each is a function of the sampler's seed, its number and its label: to the last bit, in
        whatever company and order it is asked for.

        Args:
          indices: [N] integers from 0 to 2^31 - 1.
          labels: [N] integers; None: the sampler's own.

        Raises:
          ValueError: a label or a number is out of range.
        """
        indices = np.asarray(indices)
        labels = None if labels is None else self._checked(labels)
        bad = indices[(indices < 0) | (indices >= 2**31)]
        if bad.size:
            raise ValueError(f"Numbers of samples must be in [0, 2^31), got {bad[0]}.")
        for first in range(0, len(indices), self.batch_size):
            rows = slice(first, first + self.batch_size)
            arguments = (
                None if part is None else tf.constant(_filled(part[rows], self.batch_size))
                for part in (indices.astype(np.int32), labels)
            )
            images, drawn = self._numbered(*arguments)
            size = len(indices[rows])
            yield images.numpy()[:size], drawn.numpy()[:size]

    def of_inputs(self, z, labels, keys, *, blend=None):
        """Yields images as NumPy arrays of inputs of one's own, batch by batch.

        Args:
          z: [N, latent_dim] float32.
          labels: [N] integers, or [N, num_classes] float32, shares of the classes (see
            `normalization.BatchNorm`).
          keys: [N, 2] int32 of the initial bases.
          blend: (other keys [N, 2], shares [N] float32): the initial bases lie between the two,
            with this share of the others; None: those of `keys`.
        """
        parts = [np.asarray(part) for part in (z, labels, keys, *(blend or ()))]
        for first in range(0, len(parts[0]), self.batch_size):
            rows = [part[first : first + self.batch_size] for part in parts]
            images = self._of_inputs(*(tf.constant(_filled(r, self.batch_size)) for r in rows))
            yield images.numpy()[: len(rows[0])]

    def _checked(self, labels):
        labels = np.asarray(labels, np.int32)
        bad = labels[(labels < 0) | (labels >= self.generator.num_classes)]
        if bad.size:
            raise ValueError(
                f"Label {bad[0]} is outside the classes of this generator, 0 to "
                f"{self.generator.num_classes - 1}."
            )
        return labels

    def batches(self, count, labels=None):
        """Yields (images, labels) as NumPy arrays until exactly `count` samples are drawn.

        Args:
          count: number of samples.
          labels: [count] integers; None: the sampler's own.
        """
        if labels is not None:
            labels = self._checked(labels)
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


def _filled(rows, count):
    """`rows` [N, ...] and as often the last one as `count` rows need."""
    return np.concatenate([rows, np.repeat(rows[-1:], count - len(rows), axis=0)])


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

    # Whether a bar shows how far the moments are.
    progress = False

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
        """As `MovingAverages.applied`; computes the moments first."""
        self.compute(seed)
        with self.as_computed():
            yield

    def compute(self, seed):
        """Computes the moments, from the samples before sample 0."""
        batches = [
            self._of_batch(tf.constant(-(batch + 1) * self._sampler.batch_size), seed)
            for batch in tqdm.trange(
                self._batches, desc="moments", leave=False, disable=not self.progress
            )
        ]
        for variables, moments in zip(self._moments, zip(*batches, strict=True), strict=True):
            for variable, values in zip(variables, zip(*moments, strict=True), strict=True):
                variable.assign(np.mean(values, axis=0, dtype=np.float64))

    @contextlib.contextmanager
    def as_computed(self):
        """Sampling within has the moments that were computed last."""
        functions = [
            lambda x, of=of: tuple(tf.convert_to_tensor(v) for v in of) for of in self._moments
        ]
        with normalization.moments_from(self._layers, functions):
            yield

    @tf.function(autograph=False)
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
