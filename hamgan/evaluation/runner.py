"""From a checkpoint to a record: exactly N samples, their features, and the scores."""

import sys
import time

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from hamgan import checkpoints, distribution, sampling
from hamgan.evaluation import metrics, reference


class Evaluator:
    """Scores a generator against real images under one protocol.

    Args:
      generator: the networks' generator; its weights are those of the moment `evaluate` is called.
      strategy: the strategy in whose scope it was made.
      dataset: a `hamgan.data.ImageDataset`.
      protocol: a `Protocol`.
      data_dir: where reference features are kept, and what '{data_dir}' in the network's handle stands for.
      progress: draw progress bars.
    """

    def __init__(self, *, generator, strategy, dataset, protocol, data_dir=None, progress=True):
        self.protocol = protocol
        self._strategy = strategy
        self._dataset = dataset
        self._data_dir = data_dir
        self._progress = progress
        # A batch that every number of replicas divides would need a common multiple; padding costs less thought.
        replicas = strategy.num_replicas_in_sync
        self._batch_size = -(-protocol.batch_size // replicas) * replicas
        self._sampler = sampling.Sampler(generator, strategy=strategy, batch_size=self._batch_size, seed=protocol.seed)
        with strategy.scope():
            self.network = protocol.features(data_dir=data_dir)
        self._reference = None

    def _bar(self, iterable, description, total):
        interval = 0.1 if sys.stderr.isatty() else 15
        return tqdm(iterable, description, total, False, unit="batch", disable=not self._progress, mininterval=interval)

    def _features_of(self, images):
        if self.protocol.quantize:
            images = tf.round((tf.clip_by_value(images, -1.0, 1.0) + 1.0) * 127.5) / 127.5 - 1.0
        return self.network.outputs(images)

    @tf.function
    def _embed_generated(self, first):
        def of_replica(first):
            images, _ = self._sampler.of_replica(first)
            return self._features_of(images)

        outputs = self._strategy.run(of_replica, args=(first,))
        return {name: distribution.gather(self._strategy, value) for name, value in outputs.items()}

    @tf.function
    def _embed_given(self, images):
        share = self._batch_size // self._strategy.num_replicas_in_sync

        def of_replica(images):
            replica = tf.distribute.get_replica_context().replica_id_in_sync_group
            return self._features_of(tf.slice(images, [replica * share, 0, 0, 0], [share, *images.shape[1:]]))

        # On the replicas, as for generated images: the same arithmetic on both sides of the distance.
        outputs = self._strategy.run(of_replica, args=(images,))
        return {name: distribution.gather(self._strategy, value) for name, value in outputs.items()}

    def _embed(self, images):
        # Padded to the full batch: one compiled program serves every batch.
        padded = np.pad(images, [(0, self._batch_size - len(images)), (0, 0), (0, 0), (0, 0)])
        return {name: v.numpy()[: len(images)] for name, v in self._embed_given(tf.constant(padded)).items()}

    def reference(self):
        """The real images' features; built at the first use."""
        if self._reference is None:
            self._reference = reference.load_or_build(
                self._dataset,
                network=self.network,
                embed=self._embed,
                protocol=self.protocol,
                cache_dir=self._data_dir,
                progress=self._bar,
            )
        return self._reference

    def generated_outputs(self):
        """{'pool_3': [N, D], 'logits': [N, C]} of the samples 0 to N - 1."""
        count = self.protocol.num_samples
        parts = {"pool_3": [], "logits": []}
        starts = range(0, count, self._batch_size)
        for first in self._bar(starts, "samples", len(starts)):
            for name, value in self._embed_generated(tf.constant(first)).items():
                parts[name].append(value.numpy()[: count - first])
        return {name: np.concatenate(values) for name, values in parts.items()}

    def evaluate(self, *, checkpoint, step):
        """Scores the generator as it is.

        Args:
          checkpoint: the path its weights came from, for the record.
          step: the training step of these weights.

        Returns:
          The record, a dictionary for `records.append`.

        Raises:
          ValueError: features that aren't finite.
        """
        real = self.reference()
        start = time.monotonic()
        generated = self.generated_outputs()
        for name, values in generated.items():
            if not np.isfinite(values).all():
                raise ValueError(
                    f"{name} of {checkpoint} has {np.count_nonzero(~np.isfinite(values))} values that aren't finite: "
                    "the generator has diverged at this checkpoint."
                )
        fid = metrics.frechet_distance(real.factor, metrics.Moments.from_features(generated["pool_3"]))
        kid, kid_stderr = metrics.kernel_distance(_shuffled(real.features), generated["pool_3"])
        return {
            "kind": "evaluation",
            "step": step,
            "checkpoint": checkpoint,
            "fid": fid,
            "inception_score": metrics.inception_score(generated["logits"]),
            "kid": kid,
            "kid_stderr": kid_stderr,
            "num_samples": len(generated["pool_3"]),
            "seed": self.protocol.seed,
            "quantize": self.protocol.quantize,
            "labels": "uniform",
            "batch_norm": "moving averages",
            "weights": "raw",
            "features": self.network.identity(),
            "reference": real.fingerprint,
            "seconds": round(time.monotonic() - start, 2),
        }


def _shuffled(features):
    """The rows in a fixed random order: KID's blocks are only valid on shuffled features, and data sets are sorted."""
    return features[np.random.default_rng(0).permutation(len(features))]


def evaluate_new_checkpoints(
    evaluator, variables, *, model_dir, publish, final_step, done=(), timeout=3600, poll_seconds=10
):
    """Scores every checkpoint of a run as it appears, oldest first, until the one of `final_step`.

    Args:
      evaluator: the `Evaluator`.
      variables: {name: tf.Variable} of the generator, as `checkpoints.restore` takes them.
      model_dir: the run's folder.
      publish: function (record), called for each.
      final_step: the step at which training ends.
      done: steps that have been scored already.
      timeout: seconds without a new checkpoint after which to stop.
      poll_seconds: pause between looks.
    """
    done = set(done)
    last_news = time.monotonic()
    while not done or max(done) < final_step:
        names = [name for name in checkpoints.available(model_dir) if checkpoints.step_of(name) not in done]
        for name in names:
            checkpoint = checkpoints.find(model_dir, name)
            step = checkpoints.step_of(checkpoint)
            checkpoints.restore(checkpoint, variables, partial=True)
            publish(evaluator.evaluate(checkpoint=checkpoint, step=step))
            done.add(step)
            last_news = time.monotonic()
        if time.monotonic() - last_news > timeout:
            return
        if not names:
            time.sleep(poll_seconds)
