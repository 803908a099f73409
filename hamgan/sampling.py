"""Images from a generator: sample i is a function of (seed, i) alone."""

import numpy as np
import tensorflow as tf

from hamgan import distribution, stateless


class Sampler:
    """Draws images on all replicas of a strategy.

    The generator runs in inference mode (moving averages). The result depends neither on the batch size nor on the
    number of replicas.

    Args:
      generator: a `hamgan.networks.Generator`.
      strategy: the strategy in whose scope it was made.
      batch_size: images per call over all replicas.
      seed: of noise, labels and initial bases.
    """

    def __init__(self, generator, *, strategy, batch_size=64, seed=0):
        self.generator = generator
        self.batch_size = batch_size
        self._strategy = strategy
        self._seed = seed
        self._replica_batch_size = distribution.per_replica_batch_size(batch_size, strategy.num_replicas_in_sync)

    def of_replica(self, first, labels=None):
        """Images of this replica for the batch that begins with sample `first`; to be called in `strategy.run`.

        Returns:
          (images [b, S, S, 3] float32, labels [b] int32), b the replica's share of the batch.
        """
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        offset = replica * self._replica_batch_size
        indices = first + offset + tf.range(self._replica_batch_size)
        z, drawn, keys = stateless.generator_inputs(
            stateless.key(self._seed, stateless.EVALUATION),
            indices,
            latent_dim=self.generator.latent_dim,
            num_classes=self.generator.num_classes,
        )
        if labels is not None:
            drawn = tf.slice(labels, [offset], [self._replica_batch_size])
        return self.generator(z, drawn, training=False, keys=keys), drawn

    @tf.function
    def _batch(self, first, labels):
        images, drawn = self._strategy.run(self.of_replica, args=(first, labels))
        return distribution.gather(self._strategy, images), distribution.gather(self._strategy, drawn)

    def batches(self, count, labels=None):
        """Yields (images, labels) as NumPy arrays until exactly `count` samples are drawn.

        Args:
          count: number of samples.
          labels: [count] integers; None: uniform at random.
        """
        if labels is not None:
            labels = np.asarray(labels, np.int32)
            bad = labels[(labels < 0) | (labels >= self.generator.num_classes)]
            if bad.size:
                raise ValueError(
                    f"Label {bad[0]} is outside the classes of this generator, 0 to {self.generator.num_classes - 1}."
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
