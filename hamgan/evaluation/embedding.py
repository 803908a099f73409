"""Features of images under a protocol, on all replicas of a strategy."""

import sys
from collections.abc import Iterable

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from hamgan import distribution
from hamgan.evaluation import reference, shards
from hamgan.evaluation.protocol import Protocol


class Embedder:
    """Features of images under a protocol, on all replicas of a strategy.

    With several hosts, each embeds real images alone: one may have kept what another has to
    compute.

    Args:
      strategy: the strategy.
      protocol: a `Protocol`.
      data_dir: what '{data_dir}' in the network's handle stands for.
      progress: draw progress bars.
    """

    def __init__(
        self,
        *,
        strategy: tf.distribute.Strategy,
        protocol: Protocol,
        data_dir: str | None = None,
        progress: bool = True,
    ):
        self.protocol = protocol
        self._strategy = (
            strategy if distribution.num_hosts(strategy) == 1 else tf.distribute.get_strategy()
        )
        self._progress = progress
        # A batch that every number of replicas divides would need a common multiple; padding costs
        # less thought.
        replicas = strategy.num_replicas_in_sync
        self.batch_size = -(-protocol.batch_size // replicas) * replicas
        with strategy.scope():
            self.network = protocol.features(data_dir=data_dir)

    def bar(self, iterable: Iterable, description: str, total: int) -> Iterable:
        """The iterable with a progress bar of batches."""
        interval = 0.1 if sys.stderr.isatty() else 15
        return tqdm(
            iterable,
            description,
            total,
            False,
            unit="batch",
            disable=not self._progress,
            mininterval=interval,
        )

    def outputs(self, images: tf.Tensor) -> dict[str, tf.Tensor]:
        """Features of images [B, S, S, 3]; to be called in `strategy.run`."""
        if self.protocol.quantize:
            images = tf.round((tf.clip_by_value(images, -1.0, 1.0) + 1.0) * 127.5) / 127.5 - 1.0
        if images.shape[1] != self.network.size:
            images = self.protocol.resize(images, self.network.size)
        return self.network.outputs(images)

    @tf.function(autograph=False)
    def _of_batch(self, images):
        share = self.batch_size // self._strategy.num_replicas_in_sync

        def of_replica(images):
            replica = tf.distribute.get_replica_context().replica_id_in_sync_group
            return self.outputs(
                tf.slice(images, [replica * share, 0, 0, 0], [share, *images.shape[1:]])
            )

        # On the replicas, as for generated images: the same arithmetic on both sides of the
        # distance.
        outputs = self._strategy.run(of_replica, args=(images,))
        return {name: distribution.gather(self._strategy, value) for name, value in outputs.items()}

    def __call__(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """{'pool_3': [n, D], 'logits': [n, C]} NumPy arrays of at most `batch_size` images [n, S,
        S, 3].
        """
        # Padded to the full batch: one compiled program serves every batch.
        padded = np.pad(images, [(0, self.batch_size - len(images)), (0, 0), (0, 0), (0, 0)])
        return {
            name: v.numpy()[: len(images)]
            for name, v in self._of_batch(tf.constant(padded)).items()
        }

    def reference(
        self,
        dataset,
        *,
        data_dir: str | None = None,
        spare_dir: str | None = None,
        share: shards.Share | None = None,
    ) -> reference.Reference | None:
        """The real images' features, as `reference.load_or_build`."""
        return reference.load_or_build(
            dataset,
            network=self.network,
            embed=self,
            protocol=self.protocol,
            batch_size=self.batch_size,
            cache_dir=data_dir,
            spare_dir=spare_dir,
            share=share,
            progress=self.bar,
        )
