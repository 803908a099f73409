"""One training step: losses, gradients and updates of both networks, on one page.

    D: minimise discriminator_loss(D(x), D(G(z))) + penalties, as often as there are real batches
    G: minimise generator_loss(D(G(z)))
    the average of G's weights follows

Everything here is what one replica does; where replicas meet is said.
"""

import dataclasses
from collections.abc import Callable

import keras
import tensorflow as tf

from hamgan import guard, microbatches, regularization, stateless

# What the names of a step's values begin with: of means that are logged, in the order of the
# records, and of what is looked at for the first number that isn't finite.
METRICS = {"loss": 0, "logits": 1, "regularizer": 2, "gradient_norm": 3, "residual": 3}
CHECKED = ("images", "loss", "gradient", "discriminator", "generator")


def update_key(seed, step, rollbacks, update):
    """The key of an update's random numbers; others after a rollback, which the same ones would
    lead to again.
    """
    return tf.where(
        rollbacks == 0,
        stateless.key(seed, stateless.TRAINING, step, update),
        stateless.key(seed, stateless.ROLLED_BACK, rollbacks, step, update),
    )


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class TrainingStep:
    """One training step of one replica: discriminator updates, the generator's, the average's.

    Attributes: as `trainer.Trainer` has them, and
      batch_size: examples over all replicas.
      replicas: how many.
    """

    generator: keras.Model
    discriminator: keras.Model
    generator_optimizer: keras.optimizers.Optimizer
    discriminator_optimizer: keras.optimizers.Optimizer
    generator_loss: Callable
    discriminator_loss: Callable
    batch_size: int
    replicas: int
    microbatches: int = 1
    augment: Callable | None = None
    regularizers: tuple = ()
    fake_labels: Callable | None = None
    ema: keras.Model | None = None
    ema_decay: float | None = None
    ema_start: int = 0
    seed: int = 0

    def __call__(self, reals, step, rollbacks):
        """Takes the step.

        Args:
          reals: for each discriminator update this replica's {'image': [b, S, S, 3], 'label': [b]}.
          step, rollbacks: int64 scalars, the step before this one and how often the run went back.

        Returns:
          {(update, name): float32 scalar} in the order of the computation; the generator's update
          comes last. Names are those of `Trainer.train_steps`, and half the squared norm of what is
          looked at for numbers that aren't finite: 'images', 'gradient/NETWORK/VARIABLE' from the
          network's output back, and 'NETWORK/VARIABLE' after the update.
        """
        size = self.batch_size // self.replicas
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        # Keyed by the index in the global batch: the same examples however many replicas share
        # them.
        indices = replica * size + tf.range(size)
        values = {}
        for update, real in enumerate(reals):
            key = update_key(self.seed, step, rollbacks, update)
            values[update, "images"] = guard.sizes({"images": real["image"]})["images"]
            of_update = self._update(
                "discriminator",
                lambda *part, key=key: self._discriminator_gradients(*part, key, step),
                real,
                indices,
            )
            values |= {(update, name): value for name, value in of_update.items()}

        key = update_key(self.seed, step, rollbacks, len(reals))
        of_update = self._update(
            "generator", lambda *part: self._generator_gradients(*part, key), real, indices
        )
        values |= {(len(reals), name): value for name, value in of_update.items()}
        if self.ema is not None:
            self._average(step)
        return values

    def _discriminator_gradients(self, real, indices, key, step):
        """(gradients of the discriminator's loss and penalties, {name: value}) of a microbatch."""
        images, labels, _ = self._fakes(real, key, indices)
        images = tf.stop_gradient(images)
        fake_indices = indices + self.batch_size
        with tf.GradientTape() as tape:
            # One pass over both halves: the discriminator has no batch statistics, so it is the
            # same as two.
            logits, residuals = self._judge(
                tf.concat([real["image"], images], axis=0),
                tf.concat([real["label"], labels], axis=0),
                key,
                tf.concat([indices, fake_indices], axis=0),
            )
            real_logits, fake_logits = tf.split(logits, 2)
            loss = self.discriminator_loss(real_logits, fake_logits)
        values = {
            "loss/discriminator": loss,
            "logits/real": tf.reduce_mean(real_logits),
            "logits/fake": tf.reduce_mean(fake_logits),
            **residuals,
        }
        gradients = self._gradients(tape, loss, self.discriminator.trainable_variables)
        for penalty in self.regularizers:
            halves = (
                (real["image"], real["label"], indices),
                (images, labels, fake_indices),
            )
            examples = [self._examples(key, *half) for half in halves]
            value, more = self._penalty(penalty, examples, step)
            values[f"regularizer/{penalty.name}"] = value
            gradients = [a + b for a, b in zip(gradients, more, strict=True)]
        return gradients, values

    def _generator_gradients(self, real, indices, key):
        """(gradients of the generator's loss, {name: value}) of a microbatch."""
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            variables = self.generator.trainable_variables
            tape.watch([variable.value for variable in variables])
            images, labels, residuals = self._fakes(real, key, indices)
            logits, _ = self._judge(images, labels, key, indices + self.batch_size)
            loss = self.generator_loss(logits)
        return self._gradients(tape, loss, variables), {"loss/generator": loss, **residuals}

    def _update(self, kind, function, real, indices):
        """One update of a network by the gradients that `function` gives of the parts of a batch,
        see `microbatches.total`: {name: value}.
        """
        network = getattr(self, kind)
        variables = network.trainable_variables
        gradients, values = microbatches.total(
            function,
            real,
            indices,
            count=self.microbatches,
            networks=(self.generator, self.discriminator),
        )
        if self.replicas > 1:
            gradients = tf.distribute.get_replica_context().all_reduce("sum", gradients)
        # From the output back: there a gradient that isn't finite comes from.
        names = [f"gradient/{kind}/{variable.path}" for variable in variables]
        sizes = guard.sizes(dict(zip(names[::-1], gradients[::-1], strict=True)))
        getattr(self, f"{kind}_optimizer").apply(gradients, variables)
        norm = {f"gradient_norm/{kind}": guard.norm(sizes)}
        return {**norm, **values, **sizes, **guard.sizes_of_variables(kind, network)}

    def _average(self, step):
        """The average of the generator's weights follows them; what isn't trained is copied."""
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

    # What the losses are made of

    def _fakes(self, real, key, indices):
        """(generated images, their labels, {name: residual})."""
        z, labels, keys = stateless.generator_inputs(
            key,
            indices,
            latent_dim=self.generator.latent_dim,
            num_classes=self.generator.num_classes,
        )
        if self.fake_labels is not None:
            label_keys = stateless.example_keys(stateless.fold(key, stateless.LABELS), indices)
            labels = self.fake_labels(label_keys, real["label"])
        images, residuals = _run("generator", self.generator, z, labels, keys)
        return images, labels, residuals

    def _judge(self, images, labels, key, indices):
        """(logits [B, 1], {name: residual}); indices in the global batch, where generated images
        follow the real ones.
        """
        if self.augment is not None:
            keys = stateless.example_keys(stateless.fold(key, stateless.AUGMENTATION), indices)
            images = self.augment(images, keys)
        keys = self._bases_keys(key, indices)
        return _run("discriminator", self.discriminator, images, labels, keys)

    def _bases_keys(self, key, indices):
        return stateless.example_keys(stateless.fold(key, stateless.DISCRIMINATOR_BASES), indices)

    def _examples(self, key, images, labels, indices):
        """What a penalty sees of one half of a batch."""
        augmentation_keys = stateless.example_keys(
            stateless.fold(key, stateless.CONSISTENCY), indices
        )
        bases_keys = self._bases_keys(key, indices)
        return regularization.Examples(images, labels, bases_keys, augmentation_keys)

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

    def _gradients(self, tape, loss, variables):
        """This microbatch's part of the gradients, which are summed over microbatches and
        replicas.
        """
        share = tf.constant(1 / (self.replicas * self.microbatches))
        values = [variable.value for variable in variables]
        gradients = tape.gradient(
            loss, values, output_gradients=share, unconnected_gradients=tf.UnconnectedGradients.ZERO
        )
        # Dense: of a row that occurs several times, Keras' Adam would add up the squares, not
        # square the sum.
        return [tf.convert_to_tensor(gradient) for gradient in gradients]


def _run(kind, network, inputs, labels, keys):
    """(a network's output in training, {name: residual} of its hams)."""
    if not hasattr(network.context, "hams"):
        return network(inputs, labels, training=True, keys=keys), {}
    output, seen = network(inputs, labels, training=True, keys=keys, return_context=True)
    residuals = {f"residual/{kind}/{ham}": found.residual() for ham, found in seen.hams.items()}
    return output, residuals
