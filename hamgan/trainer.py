"""The device step: both networks, both optimizers, and many training steps in one `tf.function`."""

import keras
import numpy as np
import tensorflow as tf

from hamgan import checkpoints, distribution, guard, losses, regularization, stateless


class SummedAdam(keras.optimizers.Adam):
    """Adam for gradients that have been summed over the replicas, which the guard wants to see
    first.
    """

    def _all_reduce_sum_gradients(self, grads_and_vars):
        return grads_and_vars


class Trainer:
    """Everything a training step changes, created in the strategy's scope.

    Args:
      strategy: a `tf.distribute` strategy.
      generator: constructor of the generator.
      discriminator: constructor of the discriminator.
      batch_size: examples per step over all replicas.
      microbatches: parts that a replica's batch is computed in, one after the other, for less
        memory. Gradients are those of the whole batch, with one exception: batch norm takes the
        moments of a part, and updates its moving averages once for each (bases that learn online do
        too).
      discriminator_steps: discriminator updates before each generator update, each with real images
        of its own.
      generator_learning_rate: of the generator's Adam, a number or a function of the step
        (`hamgan.schedules`). (Two time scales: Heusel et al. 2017.)
      discriminator_learning_rate: of the discriminator's Adam, likewise.
      beta_1, beta_2, epsilon: of both.
      generator_loss: function (fake_logits) -> scalar.
      discriminator_loss: function (real_logits, fake_logits) -> scalar.
      augment: function (images, keys) -> images for all that the discriminator sees, real and
        generated, in both networks' updates (`augmentation.DiffAugment`); None: nothing.
      regularizers: penalties added to the discriminator's loss (`hamgan.regularization`).
      fake_labels: where labels of generated images come from (`hamgan.labels`); None: uniform.
      ema_decay: of an exponential moving average of the generator's weights; None: none is kept.
      ema_start: until this step the average is a copy.
      seed: of initial weights, noise, labels, initial bases and the order of the images.

    Attributes:
      ema: a generator with the averaged weights, and the current spectral-norm vectors and
        batch-norm moments; or None.
      rollbacks: int64 variable, how often the run went back to a checkpoint after a failure. The
        host counts, and all random numbers and the order of the images follow.

    Raises:
      ValueError: the batch size isn't divisible by the number of replicas, or a replica's not by
        microbatches; a number is out of range; two regularizers have one name; as many weights of
        labels as classes weren't given.
    """

    def __init__(
        self,
        *,
        strategy,
        generator,
        discriminator,
        batch_size=256,
        microbatches=1,
        discriminator_steps=1,
        generator_learning_rate=1e-4,
        discriminator_learning_rate=4e-4,
        beta_1=0.0,
        beta_2=0.999,
        epsilon=1e-8,
        generator_loss=losses.hinge_generator,
        discriminator_loss=losses.hinge_discriminator,
        augment=None,
        regularizers=(),
        fake_labels=None,
        ema_decay=None,
        ema_start=0,
        seed=0,
    ):
        if discriminator_steps < 1:
            raise ValueError(f"discriminator_steps must be at least 1, got {discriminator_steps}.")
        if ema_decay is not None and not 0 <= ema_decay < 1:
            raise ValueError(
                f"ema_decay must be in [0, 1), or None for no average; got {ema_decay}."
            )
        if ema_start < 0:
            raise ValueError(f"ema_start must not be negative, got {ema_start}.")
        names = [part.name for part in regularizers]
        if len(set(names)) < len(names):
            raise ValueError(f"regularizers must have names that differ, got {names}.")
        self.strategy = strategy
        self.batch_size = batch_size
        self.discriminator_steps = discriminator_steps
        self.generator_loss = generator_loss
        self.discriminator_loss = discriminator_loss
        self.microbatches = microbatches
        self.augment = augment
        self.regularizers = tuple(regularizers)
        self.fake_labels = fake_labels
        self.ema_decay = ema_decay
        self.ema_start = ema_start
        self.seed = seed
        self._replicas = strategy.num_replicas_in_sync
        self._replica_batch_size = distribution.per_replica_batch_size(batch_size, self._replicas)
        if microbatches < 1 or self._replica_batch_size % microbatches:
            raise ValueError(
                f"microbatches ({microbatches}) must divide the batch of a replica "
                f"({self._replica_batch_size}: "
                f"batch_size {batch_size} on {self._replicas} replicas)."
            )
        with strategy.scope():
            keras.utils.set_random_seed(seed)
            self.generator = generator()
            self.discriminator = discriminator()
            counter = dict(
                dtype=tf.int64,
                trainable=False,
                aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
            )
            self.step = tf.Variable(0, **counter)
            self.rollbacks = tf.Variable(0, **counter)
            adam = dict(beta_1=beta_1, beta_2=beta_2, epsilon=epsilon, name="adam")
            self.generator_optimizer = SummedAdam(
                self._learning_rate(generator_learning_rate), **adam
            )
            self.generator_optimizer.build(self.generator.trainable_variables)
            self.discriminator_optimizer = SummedAdam(
                self._learning_rate(discriminator_learning_rate), **adam
            )
            self.discriminator_optimizer.build(self.discriminator.trainable_variables)
            self.ema = None if ema_decay is None else self._copy_of_generator(generator)
        weights = getattr(fake_labels, "weights", None)
        if weights is not None and len(weights) != self.generator.num_classes:
            raise ValueError(
                "fake_labels: as many weights are needed as there are classes, "
                f"{self.generator.num_classes}; got "
                f"{len(weights)}."
            )
        self._name_outputs()

    def _learning_rate(self, rate):
        return (lambda: rate(tf.convert_to_tensor(self.step))) if callable(rate) else rate

    def _copy_of_generator(self, constructor):
        # Every replica computes the same averages, so one of them is enough to store.
        def creator(create, **kwargs):
            return create(**{**kwargs, "aggregation": tf.VariableAggregation.ONLY_FIRST_REPLICA})

        with tf.variable_creator_scope(creator):
            copy = constructor()
        for ours, original in zip(copy.variables, self.generator.variables, strict=True):
            ours.assign(original)
        return copy

    def variables(self):
        """Every variable of a run by its name in checkpoints: {name: tf.Variable}."""
        named = {"step": self.step, "rollbacks": self.rollbacks}
        for name in (
            "generator",
            "discriminator",
            "generator_optimizer",
            "discriminator_optimizer",
        ):
            named.update(checkpoints.network_variables(name, getattr(self, name)))
        if self.ema is not None:
            named.update(checkpoints.network_variables("generator_ema", self.ema))
        return named

    def gates(self):
        """{name: value} of the context modules' gates: how much of the ham each network lets
        through.
        """
        networks = {"generator": self.generator, "discriminator": self.discriminator}
        return {
            f"gate/{name}": float(network.context.gate.numpy())
            for name, network in networks.items()
            if network.context
        }

    def batches(self, dataset):
        """An iterator over the real batches that follow the current step, in the order of this seed
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
                start_batch=step * self.discriminator_steps,
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
          {name: float}. Means over these steps: losses, discriminator outputs,
            'gradient_norm/NETWORK' (of the global
          batch, as the optimizer gets it), 'residual/NETWORK/HAM' (see `decomposition.Factors`),
          'regularizer/NAME'.
          After them: 'sigma/NETWORK/LAYER', the largest singular value of each normalised kernel.
            'first_bad_step' is
          the first step with a number that isn't finite (-1: none); where there is one, 'first_bad'
            (str) names the
          first such tensor or variable in the order of the computation: a variable that was so
          before, 'images', 'loss/NETWORK', 'gradient/NETWORK/VARIABLE' (from the network's output
          back), 'NETWORK/VARIABLE' after the update.

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
        metrics = dict(
            zip(
                self._metric_names + self._sigma_names,
                [*means.numpy(), *sigmas.numpy()],
                strict=True,
            )
        )
        metrics = {name: float(value) for name, value in metrics.items()}
        metrics["first_bad_step"] = float(bad_step.numpy())
        if bad_index >= 0:
            metrics["first_bad"] = self._checked_names[int(bad_index.numpy())]
        return metrics

    @tf.function
    def _train_steps(self, batches, num_steps):
        sums = tf.zeros([len(self._metric_names)])
        at_start = self._of_one_replica(self.strategy.run(self._sizes_of_variables))
        bad_index = guard.first_bad(at_start)
        bad_step = tf.where(bad_index >= 0, self.step + 1, -1)
        for _ in tf.range(num_steps):
            reals = [next(batches) for _ in range(self.discriminator_steps)]
            args = (reals, tf.identity(self.step), tf.identity(self.rollbacks))
            # One vector, so that replicas are summed once.
            total = self.strategy.reduce(
                "sum", self.strategy.run(self._replica_step, args=args), axis=None
            )
            step_metrics, checked = (
                total[: len(self._metric_names)],
                total[len(self._metric_names) :],
            )
            self.step.assign_add(1)
            index = guard.first_bad(checked)
            is_first = (index >= 0) & (bad_index < 0)
            bad_index = tf.where(is_first, index + tf.size(at_start), bad_index)
            bad_step = tf.where(is_first, tf.identity(self.step), bad_step)
            sums += step_metrics / self._replicas
        sigmas = self._of_one_replica(self.strategy.run(self._sigmas))
        return sums / tf.cast(num_steps, tf.float32), sigmas, bad_step, bad_index

    def _of_one_replica(self, value):
        """What is the same on all replicas, once."""
        return self.strategy.experimental_local_results(value)[0]

    def _name_outputs(self):
        """Names of what `_train_steps` gives as vectors."""
        networks = {"discriminator": self.discriminator, "generator": self.generator}
        self._metric_names = ["loss/discriminator", "loss/generator", "logits/real", "logits/fake"]
        self._metric_names += [f"regularizer/{part.name}" for part in self.regularizers]
        self._sigma_names, variables, updates = [], [], {}
        for kind, network in networks.items():
            self._metric_names.append(f"gradient_norm/{kind}")
            self._metric_names += [
                f"residual/{kind}/{ham}" for ham in getattr(network.context, "hams", ())
            ]
            self._sigma_names += [f"sigma/{kind}/{name}" for name in guard.spectral_layers(network)]
            of_network = [f"{kind}/{variable.path}" for variable in network.variables]
            gradients = [
                f"gradient/{kind}/{variable.path}" for variable in network.trainable_variables
            ]
            variables += of_network
            updates[kind] = [f"loss/{kind}", *reversed(gradients), *of_network]
        discriminator_updates = ["images", *updates["discriminator"]] * self.discriminator_steps
        self._checked_names = [*variables, *discriminator_updates, *updates["generator"]]

    def _sizes_of_variables(self):
        return guard.sizes(self.discriminator.variables + self.generator.variables)

    def _sigmas(self):
        networks = (self.discriminator, self.generator)
        return tf.stack(
            [
                layer.sigma()
                for network in networks
                for layer in guard.spectral_layers(network).values()
            ]
        )

    def _key(self, step, rollbacks, update):
        """The key of an update's random numbers; others after a rollback, which the same ones would
        lead to again.
        """
        return tf.where(
            rollbacks == 0,
            stateless.key(self.seed, stateless.TRAINING, step, update),
            stateless.key(self.seed, stateless.ROLLED_BACK, rollbacks, step, update),
        )

    def _replica_step(self, reals, step, rollbacks):
        """One training step of one replica: discriminator updates, then the generator's.

        Returns:
          [len(metrics) + len(checked)] float32: metrics of the last discriminator update and of the
          generator's, then for each update what isn't finite if something in it isn't, in the order
          of `_checked_names`.
        """
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        # Keyed by the index in the global batch: the same examples however many replicas share
        # them.
        indices = replica * self._replica_batch_size + tf.range(self._replica_batch_size)
        checked = []
        for update, real in enumerate(reals):
            key = self._key(step, rollbacks, update)
            metrics, values = self._update(
                "discriminator", self._discriminator_gradients, real, key, indices, step
            )
            checked += [guard.sizes([real["image"]]), values]
        key = self._key(step, rollbacks, len(reals))
        more, values = self._update(
            "generator", self._generator_gradients, real, key, indices, step
        )
        if self.ema is not None:
            self._update_ema(step)
        metrics = {**metrics, **more}
        return tf.concat(
            [tf.stack([metrics[name] for name in self._metric_names]), *checked, values], axis=0
        )

    def _update(self, kind, compute, real, key, indices, step):
        """One update of a network.

        Args:
          kind: 'generator' or 'discriminator'.
          compute: function (real, key, indices, step) -> (gradients, metrics), of a microbatch or
            the whole batch.
          real: this replica's real images and labels.
          key: of the update's random numbers.
          indices: [b] of this replica's examples in the global batch.
          step: the step before this one.

        Returns:
          (metrics, vector of what `_checked_names` has of an update).
        """
        network = getattr(self, kind)
        gradients, metrics = self._accumulate(compute, real, key, indices, step)
        if self._replicas > 1:
            gradients = tf.distribute.get_replica_context().all_reduce("sum", gradients)
        # From the output back: there a gradient that isn't finite comes from.
        gradient_sizes = guard.sizes(gradients[::-1])
        getattr(self, f"{kind}_optimizer").apply(gradients, network.trainable_variables)
        metrics[f"gradient_norm/{kind}"] = guard.norm(gradient_sizes)
        checked = [[metrics[f"loss/{kind}"]], gradient_sizes, guard.sizes(network.variables)]
        return metrics, tf.concat(checked, axis=0)

    def _accumulate(self, compute, real, key, indices, step):
        """(sum of gradients, mean of metrics) of `compute` over microbatches."""
        if self.microbatches == 1:
            return compute(real, key, indices, step)
        networks = (self.generator, self.discriminator)
        layers = [
            layer for network in networks for layer in guard.spectral_layers(network).values()
        ]
        vectors = [tf.convert_to_tensor(layer.u) for layer in layers]
        size = self._replica_batch_size // self.microbatches
        gradients, sums = None, None
        for first in range(0, self._replica_batch_size, size):
            rows = slice(first, first + size)
            # One after the other: side by side they would take the memory of the whole batch.
            with tf.control_dependencies(gradients or []):
                # All parts normalise by the same sigma, and u moves on once, as with the whole
                # batch.
                for layer, u in zip(layers, vectors, strict=True):
                    layer.u.assign(u)
                part = {name: value[rows] for name, value in real.items()}
                new_gradients, metrics = compute(part, key, indices[rows], step)
            if gradients is None:
                gradients, sums = new_gradients, metrics
            else:
                gradients = [a + b for a, b in zip(gradients, new_gradients, strict=True)]
                sums = {name: sums[name] + metrics[name] for name in metrics}
        return gradients, {name: value / self.microbatches for name, value in sums.items()}

    def _update_ema(self, step):
        decay = tf.where(step < self.ema_start, 0.0, self.ema_decay)
        for average, weight in zip(
            self.ema.trainable_variables, self.generator.trainable_variables, strict=True
        ):
            average.assign(
                decay * tf.convert_to_tensor(average) + (1 - decay) * tf.convert_to_tensor(weight)
            )
        for ours, original in zip(
            self.ema.non_trainable_variables, self.generator.non_trainable_variables, strict=True
        ):
            ours.assign(original)

    def _fakes(self, real, key, indices):
        z, labels, keys = stateless.generator_inputs(
            key,
            indices,
            latent_dim=self.generator.latent_dim,
            num_classes=self.generator.num_classes,
        )
        if self.fake_labels is not None:
            label_keys = stateless.example_keys(stateless.fold(key, stateless.LABELS), indices)
            labels = self.fake_labels(label_keys, real["label"])
        images, residuals = self._run("generator", z, labels, keys)
        return images, labels, residuals

    def _judge(self, images, labels, key, indices):
        """(logits [B, 1], residuals) in training; indices in the global batch, where generated
        images follow the real ones.
        """
        if self.augment is not None:
            images = self.augment(
                images, stateless.example_keys(stateless.fold(key, stateless.AUGMENTATION), indices)
            )
        return self._run("discriminator", images, labels, self._bases_keys(key, indices))

    def _run(self, kind, inputs, labels, keys):
        """(a network's output in training, {name: residual} of its hams)."""
        network = getattr(self, kind)
        if not hasattr(network.context, "hams"):
            return network(inputs, labels, training=True, keys=keys), {}
        output, seen = network(inputs, labels, training=True, keys=keys, return_context=True)
        residuals = {f"residual/{kind}/{ham}": found.residual() for ham, found in seen.hams.items()}
        return output, residuals

    def _bases_keys(self, key, indices):
        return stateless.example_keys(stateless.fold(key, stateless.DISCRIMINATOR_BASES), indices)

    def _discriminator_gradients(self, real, key, indices, step):
        images, labels, _ = self._fakes(real, key, indices)
        images = tf.stop_gradient(images)
        with tf.GradientTape() as tape:
            # One pass over both halves: the discriminator has no batch statistics, so it is the
            # same as two.
            logits, residuals = self._judge(
                tf.concat([real["image"], images], axis=0),
                tf.concat([real["label"], labels], axis=0),
                key,
                tf.concat([indices, indices + self.batch_size], axis=0),
            )
            real_logits, fake_logits = tf.split(logits, 2)
            loss = self.discriminator_loss(real_logits, fake_logits)
        metrics = {
            "loss/discriminator": loss,
            "logits/real": tf.reduce_mean(real_logits),
            "logits/fake": tf.reduce_mean(fake_logits),
            **residuals,
        }
        gradients = self._gradients(tape, loss, self.discriminator.trainable_variables)
        for part in self.regularizers:
            examples = [
                regularization.Examples(
                    images,
                    labels,
                    self._bases_keys(key, indices),
                    stateless.example_keys(stateless.fold(key, stateless.CONSISTENCY), indices),
                )
                for images, labels, indices in (
                    (real["image"], real["label"], indices),
                    (images, labels, indices + self.batch_size),
                )
            ]
            penalty, more = self._penalty(part, examples, step)
            metrics[f"regularizer/{part.name}"] = penalty
            gradients = [a + b for a, b in zip(gradients, more, strict=True)]
        return gradients, metrics

    def _gradients(self, tape, loss, variables):
        """This microbatch's part of the gradients, which are summed over microbatches and
        replicas.
        """
        share = tf.constant(1 / (self._replicas * self.microbatches))
        values = [variable.value for variable in variables]
        gradients = tape.gradient(
            loss, values, output_gradients=share, unconnected_gradients=tf.UnconnectedGradients.ZERO
        )
        # Dense: of a row that occurs several times, Keras' Adam would add up the squares, not
        # square the sum.
        return [tf.convert_to_tensor(gradient) for gradient in gradients]

    def _penalty(self, part, examples, step):
        """(penalty, its gradients), zeros in steps where it isn't due."""
        variables = self.discriminator.trainable_variables

        def due():
            with tf.GradientTape() as tape:
                penalty = part.interval * part(self.discriminator, *examples)
            return penalty, self._gradients(tape, penalty, variables)

        def not_due():
            return tf.zeros([]), [tf.zeros(variable.shape) for variable in variables]

        return due() if part.interval == 1 else tf.cond(step % part.interval == 0, due, not_due)

    def _generator_gradients(self, real, key, indices, step):
        del step
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            variables = self.generator.trainable_variables
            tape.watch([v.value for v in variables])
            images, labels, residuals = self._fakes(real, key, indices)
            logits, _ = self._judge(images, labels, key, indices + self.batch_size)
            loss = self.generator_loss(logits)
        return self._gradients(tape, loss, variables), {"loss/generator": loss, **residuals}
