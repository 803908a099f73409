"""What a ham starts from: its initial bases, drawn, kept, learned, or following the solved ones."""

import random

import keras
import tensorflow as tf

from hamgan import arguments, parts, stateless
from hamgan import decomposition as decompositions
from hamgan.parts import registered


@registered
class RandomBases(keras.layers.Layer):
    """Initial bases drawn anew in every forward pass, the paper's choice: keys [B, 2] -> [B,
    *shape] float32.

    Args:
      shape: of one example's bases, (S, D, R).
      draw: function of `hamgan.stateless`, (shape, keys) -> [B, *shape].
    """

    # Whether `update` is to be called with what the decomposition made of these bases, in training.
    learns_online = False

    def __init__(self, shape, *, draw, **kwargs):
        super().__init__(**kwargs)
        self.shape = tuple(shape)
        self.draw = parts.resolve(draw, f"{type(self).__name__}: draw")

    def build(self, input_shape=None):
        del input_shape

    def call(self, keys):
        return self.draw(self.shape, keys)

    def get_config(self):
        draw = parts.name_of(self.draw, f"{type(self).__name__}: draw")
        return {**super().get_config(), "shape": self.shape, "draw": draw}


@arguments.take(seed=arguments.optional(arguments.seed()))
@registered
class FixedBases(RandomBases):
    """Initial bases drawn once and kept, the same for every example; as `RandomBases` otherwise.

    Args:
      shape, draw: as in `RandomBases`.
      seed: of the draw; None: one that follows `keras.utils.set_random_seed`, as those of other
        initial weights do.
    """

    # Whether the optimizer changes the bases.
    trained = False

    def __init__(self, shape, *, draw, seed=None, **kwargs):
        super().__init__(shape, draw=draw, **kwargs)
        self.seed = random.randint(0, 2**31 - 1) if seed is None else seed

    def build(self, input_shape=None):
        del input_shape

        def initializer(shape, dtype):
            del dtype  # float32, as every weight is
            return self.draw(shape, stateless.key(self.seed)[None])[0]

        # Every replica computes the same bases, so one of them is enough to store.
        aggregation = "none" if self.trained else "only_first_replica"
        self.bases = self.add_weight(
            name="bases",
            shape=self.shape,
            initializer=initializer,
            trainable=self.trained,
            autocast=False,
            aggregation=aggregation,
        )

    def call(self, keys):
        return tf.broadcast_to(self.bases, [tf.shape(keys)[0], *self.shape])

    def get_config(self):
        return {**super().get_config(), "seed": self.seed}


@registered
class LearnedBases(FixedBases):
    """Initial bases that the optimizer trains, which needs a gradient through all updates
    (`decomposition.unrolled`).

    The paper's worst initialisation. Arguments as in `FixedBases`.
    """

    trained = True


@arguments.take(rate=arguments.number(above=0, most=1))
@registered
class WarmStartBases(FixedBases):
    """Initial bases that follow the solved ones: bases += rate * (batch mean - bases), then columns
    of length 1.

    The mean is over the global batch. Evaluation changes nothing.

    Args:
      shape, draw, seed: as in `FixedBases`.
      rate: 1 forgets all earlier batches.

    Raises:
      ValueError: the rate isn't in (0, 1].
    """

    learns_online = True

    def __init__(self, shape, *, draw, seed=None, rate=0.9, **kwargs):
        super().__init__(shape, draw=draw, seed=seed, **kwargs)
        if not 0 < rate <= 1:
            raise ValueError(f"WarmStartBases: rate must be in (0, 1], got {rate}.")
        self.rate = rate

    def update(self, solved):
        """Args: solved [B, *shape] of this replica; every replica holds the same B."""
        mean = tf.reduce_mean(tf.stop_gradient(solved), axis=0)
        replicas = tf.distribute.get_replica_context()
        if replicas is not None and replicas.num_replicas_in_sync > 1:
            mean = replicas.all_reduce("mean", mean)
        bases = tf.convert_to_tensor(self.bases)
        mean = tf.cast(mean, bases.dtype)
        # An empty batch has no mean.
        mean = tf.where(tf.shape(solved)[0] > 0, mean, bases)
        self.bases.assign(decompositions.normalize_bases(bases + self.rate * (mean - bases)))

    def get_config(self):
        return {**super().get_config(), "rate": self.rate}
