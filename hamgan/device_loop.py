"""The loop on the device that trainers share: many steps a host call, their means, and the first
number that isn't finite.
"""

import numpy as np
import tensorflow as tf

from hamgan import distribution, guard, normalization


class Packing:
    """Named scalars as one vector, so that replicas are summed once.

    Attributes:
      names: of its entries, a list; None until something was packed.
    """

    names = None

    def pack(self, values):
        """{name: float32 scalar} -> [n] float32."""
        self.names = list(values)
        return tf.stack(list(values.values())) if values else tf.zeros([0])


def seed_of_weights(seed):
    """A seed as Keras takes it, of 32 bits: wider ones are mixed into as many, none is cut."""
    return seed if seed < 2**32 else int(np.random.SeedSequence(seed).generate_state(1)[0])


def counter():
    """An int64 variable that counts, the same on all replicas."""
    return tf.Variable(
        0, dtype=tf.int64, trainable=False, aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA
    )


class DeviceLoop:
    """What trainers have in common. A subclass makes its networks and `step_of_replica` in
    `strategy.scope()`, and says by `networks` what it trains.

    Args:
      strategy: a `tf.distribute` strategy.
      batch_size: examples per step over all replicas.
      seed: of all that is random.
      batches_per_step: batches of `train_batches` that a step takes.
      metrics: {first part of a value's name: place in the records} of what is logged.
      checked: first parts of the names of what must be finite.

    Attributes:
      step: int64 variable, steps so far.
      rollbacks: int64 variable, how often the run went back to a checkpoint after a failure. The
        host counts, and all random numbers and the order of the images follow.
      step_of_replica: one step of one replica, function (batches, step, rollbacks) -> {(update,
        name): float32 scalar}.

    Raises:
      ValueError: the batch size isn't divisible by the number of replicas.
    """

    step_of_replica = None

    def __init__(self, *, strategy, batch_size, seed, batches_per_step=1, metrics, checked):
        self.strategy = strategy
        self.batch_size = batch_size
        self.seed = seed
        self._batches_per_step = batches_per_step
        self._logged, self._guarded = dict(metrics), tuple(checked)
        self._replicas = strategy.num_replicas_in_sync
        self._replica_batch_size = distribution.per_replica_batch_size(batch_size, self._replicas)
        self._values, self._at_start, self._sigmas = (Packing() for _ in range(3))
        with strategy.scope():
            self.step, self.rollbacks = counter(), counter()

    def networks(self):
        """{name: network} of what is trained."""
        raise NotImplementedError

    def batches(self, dataset):
        """An iterator over the batches that follow the current step, in the order of this seed
        and rollback.
        """
        step, rollbacks = int(self.step.numpy()), int(self.rollbacks.numpy())
        seed = self.seed
        if rollbacks:
            seed = int(
                np.random.SeedSequence([self.seed, rollbacks]).generate_state(1, np.uint64)[0] >> 1
            )

        def of_host(host):
            host_replicas = self._replicas // host.num_input_pipelines
            # A host's rows of every global batch, then those of its replicas: they are numbered
            # host after host.
            batches = dataset.train_batches(
                batch_size=self._replica_batch_size * host_replicas,
                seed=seed,
                start_batch=step * self._batches_per_step,
                shard_index=host.input_pipeline_id,
                num_shards=host.num_input_pipelines,
            )
            return batches.rebatch(self._replica_batch_size, drop_remainder=True)

        return iter(self.strategy.distribute_datasets_from_function(of_host))

    def train_steps(self, batches, num_steps):
        """Trains for `num_steps` steps in one host call.

        Args:
          batches: what `batches()` gave.
          num_steps: Python integer.

        Returns:
          {name: float}. Means over these steps: losses, 'gradient_norm/NETWORK' (of the global
          batch, as the optimizer gets it), 'residual/NETWORK/HAM' (see `decomposition.Factors`)
          and what else the step gives: of GANs the discriminator's outputs and
          'regularizer/NAME', of segmentation 'accuracy/pixel' and 'rate/learning'.
          After them: 'sigma/NETWORK/LAYER', the largest singular value of each normalised kernel.
          'first_bad_step' is the first step with a number that isn't finite (-1: none); where there
          is one, 'first_bad' (str) names the first such tensor or variable in the order of the
          computation: a variable that was so before, 'images', 'loss/NETWORK',
          'gradient/NETWORK/VARIABLE' (from the network's output back), 'NETWORK/VARIABLE' after the
          update.

        Raises:
          RuntimeError: the step counter didn't advance by `num_steps`.
        """
        before = int(self.step.numpy())
        means, sigmas, bad_step, bad_index = self._train_steps(
            batches, tf.constant(num_steps, tf.int64)
        )
        after = int(self.step.numpy())
        if after - before != num_steps:
            raise RuntimeError(
                f"{num_steps} steps were asked for, but the step went from {before} to {after}."
            )
        metrics = dict(zip(self._metrics(), means.numpy(), strict=True))
        rank = self._logged
        metrics = {n: metrics[n] for n in sorted(metrics, key=lambda n: rank[n.split("/")[0]])}
        metrics.update(zip(self._sigmas.names, sigmas.numpy(), strict=True))
        metrics = {name: float(value) for name, value in metrics.items()}
        metrics["first_bad_step"] = float(bad_step.numpy())
        if bad_index >= 0:
            metrics["first_bad"] = self._checked_names[int(bad_index.numpy())]
        return metrics

    @tf.function
    def _train_steps(self, batches, num_steps):
        at_start = self._of_one_replica(self.strategy.run(self._sizes_of_variables))
        bad_index = guard.first_bad(at_start)
        bad_step = tf.where(bad_index >= 0, self.step + 1, -1)
        # How many metrics there are is known when the first step has been traced.
        sums = tf.zeros([1])
        for _ in tf.range(num_steps):
            tf.autograph.experimental.set_loop_options(
                shape_invariants=[(sums, tf.TensorShape([None]))]
            )
            reals = [next(batches) for _ in range(self._batches_per_step)]
            args = (reals, tf.identity(self.step), tf.identity(self.rollbacks))
            # One vector, so that replicas are summed once.
            with normalization.one_kernel():
                values = self.strategy.run(self._values_of_step, args=args)
            total = self.strategy.reduce("sum", values, axis=None)
            self.step.assign_add(1)
            index = guard.first_bad(tf.gather(total, list(self._checked())))
            is_first = (index >= 0) & (bad_index < 0)
            bad_index = tf.where(is_first, index + tf.size(at_start), bad_index)
            bad_step = tf.where(is_first, tf.identity(self.step), bad_step)
            sums += tf.gather(total, list(self._metrics().values())) / self._replicas
        sigmas = self._of_one_replica(self.strategy.run(self._sigmas_of_layers))
        return sums / tf.cast(num_steps, tf.float32), sigmas, bad_step, bad_index

    def _of_one_replica(self, value):
        """What is the same on all replicas, once."""
        return self.strategy.experimental_local_results(value)[0]

    # What replicas compute, each as a vector; its names are kept by the packing. AutoGraph would
    # take a third of the time to the first step to rewrite it, and finds no Python control flow on
    # tensors.

    @tf.autograph.experimental.do_not_convert
    def _values_of_step(self, *args):
        return self._values.pack(self.step_of_replica(*args))

    @tf.autograph.experimental.do_not_convert
    def _sizes_of_variables(self):
        sizes = {}
        for kind, network in self.networks().items():
            sizes |= guard.sizes_of_variables(kind, network)
        return self._at_start.pack(sizes)

    @tf.autograph.experimental.do_not_convert
    def _sigmas_of_layers(self):
        return self._sigmas.pack(
            {
                f"sigma/{kind}/{name}": layer.sigma()
                for kind, network in self.networks().items()
                for name, layer in guard.spectral_layers(network).items()
            }
        )

    def _metrics(self):
        """{name: its index among a step's values} of what is logged; of several updates of a
        network the last counts.
        """
        return {
            name: index
            for index, (_, name) in enumerate(self._values.names)
            if name.split("/")[0] in self._logged
        }

    def _checked(self):
        """{index among a step's values: name} of what must be finite."""
        return {
            index: name
            for index, (_, name) in enumerate(self._values.names)
            if name.split("/")[0] in self._guarded
        }

    @property
    def _checked_names(self):
        """Names of what may be the first that isn't finite, variables at the start first."""
        return [*self._at_start.names, *self._checked().values()]
