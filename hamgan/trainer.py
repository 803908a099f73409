"""What a run trains: both networks, both optimizers, the average; and the loop on the device."""

import keras
import numpy as np
import tensorflow as tf

from hamgan import arguments, distribution, guard, losses
from hamgan import step as training_step
from hamgan.run import contents


class SummedAdam(keras.optimizers.Adam):
    """Adam for gradients that have been summed over the replicas, which the guard wants to see
    first. (Keras' own `apply` sums them once more.)

    One kernel of TensorFlow's updates a variable and both of its moments, where Keras has a dozen
    operations that each go through memory; the formula is the same.
    """

    def build(self, variables):
        """Args: variables, those that are trained."""
        before = {id(variable) for variable in self.variables}
        super().build(variables)
        # For each variable its momentum, then its velocity.
        slots = [variable for variable in self.variables if id(variable) not in before]
        slots = [slot for slot in slots if slot.path.endswith(("_momentum", "_velocity"))]
        self._slots = list(zip(slots[::2], slots[1::2], strict=True))

    def apply(self, grads, trainable_variables):
        """Args: one gradient for each variable, the same on every replica."""
        variables = [variable.value for variable in trainable_variables]
        slots = [(momentum.value, velocity.value) for momentum, velocity in self._slots]

        def update(variable, gradient, momentum, velocity, settings):
            tf.raw_ops.ResourceApplyAdam(
                var=variable.handle,
                m=momentum.handle,
                v=velocity.handle,
                grad=gradient,
                **settings,
            )

        def update_all(strategy, gradients, settings):
            for variable, gradient, pair in zip(variables, gradients, slots, strict=True):
                args = (gradient, *pair, settings)
                strategy.extended.update(variable, update, args=args, group=False)

        replicas = tf.distribute.get_replica_context()
        replicas.merge_call(update_all, args=(list(grads), self._settings()))
        self.iterations.assign_add(1)

    def _settings(self):
        """What the kernel takes, as float32 scalars."""
        step = tf.cast(self.iterations.value, tf.float32) + 1
        beta_1, beta_2 = tf.constant(self.beta_1), tf.constant(self.beta_2)
        return dict(
            beta1_power=tf.pow(beta_1, step),
            beta2_power=tf.pow(beta_2, step),
            lr=tf.cast(self.learning_rate, tf.float32),
            beta1=beta_1,
            beta2=beta_2,
            epsilon=tf.constant(self.epsilon),
        )


class Packing:
    """Named scalars as one vector, so that replicas are summed once.

    Attributes:
      names: of its entries, a list; None until something was packed.
    """

    names = None

    def pack(self, values):
        """{name: float32 scalar} -> [n] float32."""
        self.names = list(values)
        return tf.stack(list(values.values()))


def _check(regularizers, **values):
    ema_decay, ema_start = values["ema_decay"], values["ema_start"]
    if isinstance(ema_decay, int | float) and not 0 <= ema_decay < 1:
        raise ValueError(f"ema_decay must be in [0, 1), or None for no average; got {ema_decay}.")
    if isinstance(ema_start, int) and ema_start < 0:
        raise ValueError(f"ema_start must not be negative, got {ema_start}.")
    arguments.check("Trainer", Trainer.ARGUMENTS, **values)
    names = [part.name for part in regularizers]
    if len(set(names)) < len(names):
        raise ValueError(f"regularizers must have names that differ, got {names}.")


def _check_weights(fake_labels, num_classes):
    weights = getattr(fake_labels, "weights", None)
    if weights is not None and len(weights) != num_classes:
        raise ValueError(
            "fake_labels: as many weights are needed as there are classes, "
            f"{num_classes}; got "
            f"{len(weights)}."
        )


def _seed_of_weights(seed):
    """A seed as Keras takes it, of 32 bits: wider ones are mixed into as many, none is cut."""
    return seed if seed < 2**32 else int(np.random.SeedSequence(seed).generate_state(1)[0])


def _counter():
    return tf.Variable(
        0, dtype=tf.int64, trainable=False, aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA
    )


_RATE = arguments.either(arguments.number(0), arguments.function("@schedules.LinearDecay()"))


@arguments.take(
    **dict.fromkeys(("batch_size", "microbatches", "discriminator_steps"), arguments.whole(1)),
    generator_learning_rate=_RATE,
    discriminator_learning_rate=_RATE,
    beta_1=arguments.number(0, below=1),
    beta_2=arguments.number(0, below=1),
    epsilon=arguments.number(above=0),
    generator_loss=arguments.function("@losses.hinge_generator"),
    discriminator_loss=arguments.function("@losses.hinge_discriminator"),
    augment=arguments.optional(arguments.function("@augmentation.DiffAugment()")),
    regularizers=arguments.each(arguments.function("@regularization.R1()")),
    fake_labels=arguments.optional(arguments.function("@labels.of_data")),
    ema_decay=arguments.optional(arguments.number(0, below=1)),
    ema_start=arguments.whole(0),
    seed=arguments.seed(),
)
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
        adam = dict(beta_1=beta_1, beta_2=beta_2, epsilon=epsilon)
        _check(
            regularizers,
            discriminator_steps=discriminator_steps,
            generator_learning_rate=generator_learning_rate,
            discriminator_learning_rate=discriminator_learning_rate,
            **adam,
            ema_decay=ema_decay,
            ema_start=ema_start,
            seed=seed,
        )
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
            keras.utils.set_random_seed(_seed_of_weights(seed))
            self.generator = generator()
            self.discriminator = discriminator()
            self.step, self.rollbacks = _counter(), _counter()
            self.generator_optimizer = self._optimizer(
                self.generator, generator_learning_rate, adam
            )
            self.discriminator_optimizer = self._optimizer(
                self.discriminator, discriminator_learning_rate, adam
            )
            self.ema = None if ema_decay is None else self._copy_of_generator(generator)
        _check_weights(fake_labels, self.generator.num_classes)
        self.step_of_replica = self._training_step()
        self._values, self._at_start, self._sigmas = (Packing() for _ in range(3))

    def _optimizer(self, network, rate, adam):
        # A rate that depends on the step is asked for at every step.
        optimizer = SummedAdam(
            (lambda: rate(tf.convert_to_tensor(self.step))) if callable(rate) else rate,
            **adam,
            name="adam",
        )
        optimizer.build(network.trainable_variables)
        return optimizer

    def _training_step(self):
        return training_step.TrainingStep(
            generator=self.generator,
            discriminator=self.discriminator,
            generator_optimizer=self.generator_optimizer,
            discriminator_optimizer=self.discriminator_optimizer,
            generator_loss=self.generator_loss,
            discriminator_loss=self.discriminator_loss,
            batch_size=self.batch_size,
            replicas=self._replicas,
            microbatches=self.microbatches,
            augment=self.augment,
            regularizers=self.regularizers,
            fake_labels=self.fake_labels,
            ema=self.ema,
            ema_decay=self.ema_decay,
            ema_start=self.ema_start,
            seed=self.seed,
        )

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
            named.update(contents.network_variables(name, getattr(self, name)))
        if self.ema is not None:
            named.update(contents.network_variables("generator_ema", self.ema))
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
        metrics = dict(zip(self._metrics(), means.numpy(), strict=True))
        rank = training_step.METRICS
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
            reals = [next(batches) for _ in range(self.discriminator_steps)]
            args = (reals, tf.identity(self.step), tf.identity(self.rollbacks))
            # One vector, so that replicas are summed once.
            values = self.strategy.run(
                lambda *a: self._values.pack(self.step_of_replica(*a)), args=args
            )
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

    def _networks(self):
        return {"discriminator": self.discriminator, "generator": self.generator}

    # What replicas compute, each as a vector; its names are kept by the packing.

    def _sizes_of_variables(self):
        sizes = {}
        for kind, network in self._networks().items():
            sizes |= guard.sizes_of_variables(kind, network)
        return self._at_start.pack(sizes)

    def _sigmas_of_layers(self):
        return self._sigmas.pack(
            {
                f"sigma/{kind}/{name}": layer.sigma()
                for kind, network in self._networks().items()
                for name, layer in guard.spectral_layers(network).items()
            }
        )

    def _metrics(self):
        """{name: its index among a step's values} of what is logged; of several discriminator
        updates the last counts.
        """
        return {
            name: index
            for index, (_, name) in enumerate(self._values.names)
            if name.split("/")[0] in training_step.METRICS
        }

    def _checked(self):
        """{index among a step's values: name} of what must be finite."""
        return {
            index: name
            for index, (_, name) in enumerate(self._values.names)
            if name.split("/")[0] in training_step.CHECKED
        }

    @property
    def _checked_names(self):
        """Names of what may be the first that isn't finite, variables at the start first."""
        return [*self._at_start.names, *self._checked().values()]
