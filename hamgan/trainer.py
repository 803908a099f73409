"""What a run of a GAN trains: both networks, both optimizers, the average."""

import keras
import tensorflow as tf

from hamgan import arguments, device_loop, losses
from hamgan import step as training_step
from hamgan.layers import layers_of
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


def _freeze(beginnings, **networks):
    """Has the optimizers leave the layers whose variables' names begin so.

    Raises:
      ValueError: no layer's do.
    """
    layers = {
        f"{kind}/{layer.path}": layer
        for kind, network in networks.items()
        for layer in layers_of(network, keras.layers.Layer)
        if layer.path
    }
    for beginning in beginnings:
        found = [
            layer
            for name, layer in layers.items()
            if name == beginning or name.startswith(f"{beginning}/")
        ]
        if not found:
            raise ValueError(
                f"freeze: no layer is named {beginning!r}; there are: "
                f"{', '.join(sorted(n for n in layers if n.count('/') == 1))}."
            )
        for layer in found:
            layer.trainable = False
    for kind, network in networks.items():
        if beginnings and not network.trainable_variables:
            raise ValueError(f"freeze leaves nothing of the {kind} to train.")


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
    freeze=arguments.each(arguments.text()),
    seed=arguments.seed(),
)
class Trainer(device_loop.DeviceLoop):
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
      freeze: layers that the optimizers leave as they are, by the beginnings of their variables'
        names in checkpoints, 'generator/dense' or 'discriminator/block_1'; moments and vectors of
        spectral norm go on. (After `hamgan.starting`, say.)
      seed: of initial weights, noise, labels, initial bases and the order of the images.

    Attributes:
      ema: a generator with the averaged weights, and the current spectral-norm vectors and
        batch-norm moments; or None.
      step, rollbacks: see `DeviceLoop`.

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
        freeze=(),
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
        super().__init__(
            strategy=strategy,
            batch_size=batch_size,
            seed=seed,
            batches_per_step=discriminator_steps,
            metrics=training_step.METRICS,
            checked=training_step.CHECKED,
        )
        self.discriminator_steps = discriminator_steps
        self.generator_loss = generator_loss
        self.discriminator_loss = discriminator_loss
        self.microbatches = microbatches
        self.augment = augment
        self.regularizers = tuple(regularizers)
        self.fake_labels = fake_labels
        self.ema_decay = ema_decay
        self.ema_start = ema_start
        if microbatches < 1 or self._replica_batch_size % microbatches:
            raise ValueError(
                f"microbatches ({microbatches}) must divide the batch of a replica "
                f"({self._replica_batch_size}: batch_size {batch_size}, {self._replicas} replicas)."
            )
        with strategy.scope():
            keras.utils.set_random_seed(device_loop.seed_of_weights(seed))
            self.generator = generator()
            self.discriminator = discriminator()
            _freeze(freeze, generator=self.generator, discriminator=self.discriminator)
            rates = generator_learning_rate, discriminator_learning_rate
            self.generator_optimizer, self.discriminator_optimizer = (
                self._optimizer(network, rate, adam)
                for network, rate in zip((self.generator, self.discriminator), rates, strict=True)
            )
            self.ema = None if ema_decay is None else self._copy_of_generator(generator)
            if self.ema is not None:
                _freeze([f for f in freeze if f.startswith("generator")], generator=self.ema)
        _check_weights(fake_labels, self.generator.num_classes)
        self.step_of_replica = self._training_step()

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

    def networks(self):
        """{name: network} of what is trained."""
        return {"discriminator": self.discriminator, "generator": self.generator}
