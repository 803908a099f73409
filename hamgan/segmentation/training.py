"""What a segmentation run trains: the network and its optimizer, one step, the loop on the device.

    N: minimise the mean over the batch of loss(N(image), label)

As in the published code, batch norm's moments are those of the global batch, and the loss is that
of `losses.SegmentationLoss`: ignored pixels count in its mean.
"""

import dataclasses
from collections.abc import Callable

import keras
import tensorflow as tf

from hamgan import arguments, device_loop, guard, stateless
from hamgan.run import contents
from hamgan.segmentation import losses as losses_of_pixels
from hamgan.segmentation import optimizers, schedules, segmenter
from hamgan.step import update_key

# As `hamgan.step` has them: of the logged means, in order, and of what must be finite.
METRICS = {"loss": 0, "accuracy": 1, "rate": 2, "gradient_norm": 3, "residual": 4}
CHECKED = ("images", "loss", "gradient", "network")

# What begins the names of a network's variables in checkpoints.
NETWORK = "network"

# The published recipe of HamNet on VOC.
HAMNET_RATE = schedules.Poly(initial=9e-3, steps=60_000, every=10)
HAMNET_LOSS = losses_of_pixels.SegmentationLoss()


def published_name(variable):
    """A variable's path with the published word for its norm: `gn` in heads, `norm` in backbones.

    For `optimizers.MMSegmentationGroups`: Light-Ham's backbone norms don't decay, the group norms
    of its head do.
    """
    parts = variable.path.split("/")
    if {"head", "auxiliary"} & set(parts):
        parts = ["gn" if part == "norm" else part for part in parts]
    return "/".join(parts)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class SegmentationStep:
    """One training step of one replica.

    Attributes: as `SegmentationTrainer` has them, and
      rate: function step -> the learning rate.
      replicas: how many.
    """

    network: keras.Model
    optimizer: keras.optimizers.Optimizer
    loss: Callable
    rate: Callable
    batch_size: int
    replicas: int
    seed: int = 0

    def __call__(self, batches, step, rollbacks):
        """Takes the step.

        Args:
          batches: [this replica's {'image': [b, S, S, 3], 'label': [b, S, S]}].
          step, rollbacks: int64 scalars, the step before this one and how often the run went back.

        Returns:
          {(0, name): float32 scalar} in the order of the computation; names as those of
          `hamgan.step.TrainingStep`.
        """
        (batch,) = batches
        size = self.batch_size // self.replicas
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        # Keyed by the index in the global batch: the same numbers however many replicas share it.
        key = update_key(self.seed, step, rollbacks, 0)
        keys = stateless.example_keys(key, replica * size + tf.range(size))
        gradients, values = self._gradients(batch, keys)
        sizes = {"images": guard.sizes({"images": batch["image"]})["images"]}
        values = {**values, "rate/learning": tf.cast(self.rate(step), tf.float32)}
        values = {**sizes, **values, **self._apply(gradients)}
        return {(0, name): value for name, value in values.items()}

    def _gradients(self, batch, keys):
        """(this replica's part of the gradients, {name: value})."""
        images, labels = batch["image"], batch["label"]
        variables = self.network.trainable_variables
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch([variable.value for variable in variables])
            found = self.network(images, training=True, keys=keys)
            losses = self.loss(found.logits, labels, found.auxiliary)
            losses = {name: tf.reduce_mean(of) for name, of in losses.items()}
            total = tf.add_n([*losses.values()])
        share = tf.constant(1 / self.replicas, total.dtype)
        gradients = tape.gradient(
            total,
            [variable.value for variable in variables],
            output_gradients=share,
            unconnected_gradients=tf.UnconnectedGradients.ZERO,
        )
        # At the head's resolution, where enlarging the logits costs nothing.
        shape = tf.shape(found.logits)[1:3]
        nearest = tf.image.resize(labels[..., None], shape, method="nearest")[..., 0]
        accuracy = losses_of_pixels.pixel_accuracy(found.logits, nearest)
        residuals = {f"residual/network/{n}": ham.residual() for n, ham in found.hams.items()}
        values = {"loss/network": total, **losses, "accuracy/pixel": accuracy, **residuals}
        values = {name: tf.cast(value, tf.float32) for name, value in values.items()}
        return [tf.convert_to_tensor(gradient) for gradient in gradients], values

    def _apply(self, gradients):
        """One update: {name: value}."""
        if self.replicas > 1:
            gradients = tf.distribute.get_replica_context().all_reduce("sum", gradients)
        variables = self.network.trainable_variables
        # From the output back: there a gradient that isn't finite comes from.
        names = [f"gradient/network/{variable.path}" for variable in variables]
        sizes = guard.sizes(dict(zip(names[::-1], gradients[::-1], strict=True)))
        self.optimizer.apply(gradients, variables)
        norm = {"gradient_norm/network": guard.norm(sizes)}
        return {**norm, **sizes, **guard.sizes_of_variables(NETWORK, self.network)}


@arguments.take(
    batch_size=arguments.whole(1),
    optimizer=arguments.constructor("@optimizers.SGD", of=keras.optimizers.Optimizer),
    learning_rate=arguments.either(
        arguments.number(0), arguments.function("@schedules.Poly(initial=9e-3, steps=60000)")
    ),
    loss=arguments.function("@losses.SegmentationLoss()"),
    seed=arguments.seed(),
)
class SegmentationTrainer(device_loop.DeviceLoop):
    """Everything a training step changes, created in the strategy's scope.

    Args:
      strategy: a `tf.distribute` strategy.
      network: constructor of the `segmenter.Segmenter`.
      batch_size: images per step over all replicas.
      optimizer: constructor, called with the learning rate: of `optimizers`, whose gradients are
        summed over the replicas.
      learning_rate: a number or a function of the step (`schedules`).
      loss: function (logits, labels, auxiliary logits or None) -> {name: [B]}.
      seed: of initial weights, bases, dropout, crops and the order of the images.

    Attributes:
      step, rollbacks: see `DeviceLoop`.

    Raises:
      ValueError: the batch size isn't divisible by the number of replicas; a number is out of
        range.
    """

    def __init__(
        self,
        *,
        strategy,
        network=segmenter.Segmenter,
        batch_size=16,
        optimizer=optimizers.SGD,
        learning_rate=HAMNET_RATE,
        loss=HAMNET_LOSS,
        seed=0,
    ):
        arguments.check(
            "SegmentationTrainer",
            self.ARGUMENTS,
            batch_size=batch_size,
            learning_rate=learning_rate,
            seed=seed,
        )
        super().__init__(
            strategy=strategy, batch_size=batch_size, seed=seed, metrics=METRICS, checked=CHECKED
        )
        self.learning_rate = learning_rate
        with strategy.scope():
            keras.utils.set_random_seed(device_loop.seed_of_weights(seed))
            self.network = network()
            # The run's own step, which a restored checkpoint sets.
            self.optimizer = optimizer(lambda: self._rate(tf.convert_to_tensor(self.step)))
            self.optimizer.build(self.network.trainable_variables)
        self.step_of_replica = SegmentationStep(
            network=self.network,
            optimizer=self.optimizer,
            loss=loss,
            rate=self._rate,
            batch_size=batch_size,
            replicas=strategy.num_replicas_in_sync,
            seed=seed,
        )

    def _rate(self, step):
        return self.learning_rate(step) if callable(self.learning_rate) else self.learning_rate

    def networks(self):
        """{name: network} of what is trained."""
        return {NETWORK: self.network}

    def variables(self):
        """Every variable of a run by its name in checkpoints: {name: tf.Variable}."""
        return {
            "step": self.step,
            "rollbacks": self.rollbacks,
            **contents.network_variables(NETWORK, self.network),
            **contents.network_variables("optimizer", self.optimizer),
        }

    def gates(self):
        """{name: value}: how much of the context the network lets through, where it is learned."""
        module = getattr(self.network.head, "hamburger", None)
        gate = getattr(module, "coef_ham", getattr(module, "gate", None))
        return {} if gate is None else {"gate/network": float(tf.squeeze(gate.value).numpy())}


def start_from(network, path):
    """Gives a network the weights of another run's checkpoint, whose step and optimizer are left.

    All that the checkpoint has of a network is taken: of an imported backbone that part alone.

    Args:
      network: a `segmenter.Segmenter`.
      path: of the checkpoint.

    Returns:
      (number of variables that were set, names of the parts of the network that keep their initial
      values).

    Raises:
      ValueError: it holds no network, or one of other names or shapes: all are listed.
    """
    held = [name for name in contents.load(path) if name.startswith(f"{NETWORK}/")]
    if not held:
        raise ValueError(f"{path} holds no variables network/...: it is of no segmentation run.")
    ours = contents.network_variables(NETWORK, network)
    strange = sorted(set(held) - set(ours))
    if strange:
        listed = ", ".join(strange[:5]) + (f" and {len(strange) - 5} more" * (len(strange) > 5))
        raise ValueError(f"{path} holds what this network hasn't: {listed}.")
    # Of a part that the checkpoint has something of, it must have all.
    parts = {_part(name) for name in held}
    wanted = {name: value for name, value in ours.items() if _part(name) in parts}
    contents.restore(path, wanted, partial=True)
    return len(wanted), sorted({_part(name) for name in ours} - parts)


def _part(name):
    """'backbone' of 'network/backbone/stem/...'."""
    return name.split("/")[1]
