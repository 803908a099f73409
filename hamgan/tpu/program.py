"""The train step of one replica as an XLA program, for a compiler that runs elsewhere.

The program is that of `step.TrainingStep`, which the loop on the device runs; only how replicas add
up is this module's: `CollectiveReduceV2`, which becomes XLA's all-reduce. `TPUStrategy` itself
takes `CrossReplicaSum`, which becomes the same all-reduce, but only where there is a TPU.
"""

import dataclasses

import tensorflow as tf
from tensorflow.python.distribute import one_device_strategy  # the public class takes no extended

from hamgan import devices
from hamgan.tpu import plan


class PlannedStrategy(tf.distribute.Strategy):
    """A strategy of many replicas that exist on paper: one is traced, and its sums are XLA's.

    Args:
      replicas: how many.
    """

    def __init__(self, replicas):
        if replicas < 1:
            raise ValueError(f"replicas must be at least 1, got {replicas}.")
        super().__init__(_Extended(self, replicas))


class _Extended(one_device_strategy.OneDeviceExtended):
    def __init__(self, strategy, replicas):
        super().__init__(strategy, "/device:CPU:0")
        self._replicas = replicas
        self._keys = 0

    @property
    def _num_replicas_in_sync(self):
        return self._replicas

    def _use_merge_call(self):
        return False

    def _replica_ctx_all_reduce(self, reduce_op, value, options=None):
        """A sum over all replicas; TensorFlow's gradient of an all-reduce comes back here too."""

        def reduced(tensor):
            self._keys += 1
            total = tf.raw_ops.CollectiveReduceV2(
                input=tensor,
                group_size=self._replicas,
                group_key=1,
                instance_key=self._keys,
                ordering_token=[],
                merge_op="Add",
                final_op="Id",
            )
            mean = reduce_op == tf.distribute.ReduceOp.MEAN
            return total / tf.cast(self._replicas, total.dtype) if mean else total

        return tf.nest.map_structure(reduced, value)


@dataclasses.dataclass(frozen=True)
class Step:
    """A lowered step: a serialised `HloModuleProto`, and what it was made of."""

    hlo: bytes
    batch_size: int
    discriminator_steps: int
    image_size: int
    microbatches: int


def lower(experiment, *, replicas, batch_size=None, device="TPU"):
    """The step of an experiment for many replicas, as one replica's program.

    Args:
      experiment: an `experiment.Experiment`.
      replicas: how many cores compute together.
      batch_size: over all replicas; None: the experiment's.
      device: the kind of device whose forms of the layers are taken; None: this host's.

    Returns:
      A `Step`. The program's arguments are images, labels, the step, the number of
      rollbacks, and all variables.

    Raises:
      ValueError: the batch can't be divided among the replicas; what has no XLA form (a dynamic
        shape, a callback to the host, an unsupported operation), with the layer's name.
    """
    trainer = build(experiment, replicas=replicas, batch_size=batch_size)
    size = trainer.generator.image_size
    share = trainer.batch_size // replicas
    images = tf.TensorSpec([share, size, size, 3], tf.float32)
    labels = tf.TensorSpec([share], tf.int32)
    counter = tf.TensorSpec([], tf.int64)
    # Flat: the compiler's door takes tensors only.
    arguments = [counter, counter, *[images, labels] * trainer.discriminator_steps]

    @tf.function(jit_compile=True, autograph=False)
    def program(number, rollbacks, *batches):
        reals = [
            {"image": image, "label": label}
            for image, label in zip(batches[::2], batches[1::2], strict=True)
        ]
        values = trainer.strategy.run(trainer.step_of_replica, args=(reals, number, rollbacks))
        return tf.stack(list(values.values()))

    try:
        with devices.planned(device):
            hlo = program.experimental_get_compiler_ir(*arguments)(stage="hlo_serialized")
    except (ValueError, tf.errors.OpError, TypeError, NotImplementedError) as error:
        # TensorFlow names every operation on the way to the one that has no form.
        raise ValueError(f"The step has no XLA form: {plan.named(str(error))}") from error
    step = trainer.discriminator_steps
    return Step(hlo, trainer.batch_size, step, size, trainer.microbatches)


def build(experiment, *, replicas, batch_size=None):
    """The trainer of an experiment on replicas that exist on paper."""
    more = {} if batch_size is None else {"batch_size": batch_size}
    return experiment.trainer(
        strategy=PlannedStrategy(replicas),
        generator=experiment.generator,
        discriminator=experiment.discriminator,
        **more,
    )
