"""What a run would be, without running it: its parameters, its memory, its first batch."""

import numpy as np
import tensorflow as tf

from hamgan import pictures, watching

_NETWORKS = ("generator", "discriminator")
_ROWS, _COLUMNS = 10, 10
# Operations whose outputs are other tensors under another name or shape.
_VIEWS = {
    "Identity",
    "IdentityN",
    "Reshape",
    "ExpandDims",
    "Squeeze",
    "ReadVariableOp",
    "Placeholder",
    "Const",
}


def parameter_table(trainer):
    """Each network's variables with shape and number of entries, as text."""
    lines = []
    for name in _NETWORKS:
        network = getattr(trainer, name)
        trained = {variable.path for variable in network.trainable_variables}
        lines.append(f"{name.capitalize():<60} {'shape':>20} {'entries':>12}")
        for variable in network.variables:
            shape = "x".join(map(str, variable.shape)) or "scalar"
            note = "" if variable.path in trained else "  not trained"
            lines.append(
                f"  {variable.path:<58} {shape:>20} {np.prod(variable.shape, dtype=int):>12,}{note}"
            )
        count = sum(np.prod(variable.shape, dtype=int) for variable in network.trainable_variables)
        lines += [f"  {'trained parameters':<58} {'':>20} {count:>12,}", ""]
    return "\n".join(lines)


def memory_estimate(trainer):
    """{what: GiB} on one replica.

    Variables (weights, Adam's moments, what else a checkpoint holds) and gradients are counted.
    Activations are an
    estimate: all tensors of the forward passes that the larger of the two updates differentiates;
    the backward pass needs some more, and TensorFlow lets go of some earlier.
    """
    generator, discriminator = trainer.generator, trainer.discriminator
    size = trainer.batch_size // trainer.strategy.num_replicas_in_sync // trainer.microbatches

    def generate(batch):
        return _forward_bytes(generator, tf.TensorSpec([batch, generator.latent_dim]), batch)

    def discriminate(batch):
        image = [discriminator.image_size, discriminator.image_size, 3]
        return _forward_bytes(discriminator, tf.TensorSpec([batch, *image]), batch)

    gradients = [
        sum(_bytes(v.value) for v in getattr(trainer, name).trainable_variables)
        for name in _NETWORKS
    ]
    found = {
        "variables": sum(map(_bytes, trainer.variables().values())),
        # With microbatches, their sum so far and those of the next one.
        "gradients": max(gradients) * min(2, trainer.microbatches),
        "activations (estimate)": max(generate(size) + discriminate(size), discriminate(2 * size)),
    }
    return {
        name: count / watching.GIB
        for name, count in {**found, "together": sum(found.values())}.items()
    }


def _bytes(tensor):
    # A tensor whose number of examples isn't static has none here: it is counted as small.
    return (tensor.shape.num_elements() or 0) * tensor.dtype.size


def _forward_bytes(network, inputs, batch):
    labels, keys = tf.TensorSpec([batch], tf.int32), tf.TensorSpec([batch, 2], tf.int32)
    # Inference: the same tensors, without changing the moving averages.
    traced = tf.function(
        lambda x, y, k: network(x, y, training=False, keys=k), autograph=False
    ).get_concrete_function(inputs, labels, keys)
    operations = [op for op in traced.graph.get_operations() if op.type not in _VIEWS]
    return sum(
        _bytes(output) for op in operations for output in op.outputs if output.dtype.is_floating
    )


def draw_batch(path, batch, class_names):
    """Draws a batch {'image', 'label'} as a PNG file: a row for each of its ten most frequent
    classes.
    """
    labels = np.asarray(batch["label"])
    images = np.asarray(batch["image"])
    classes, counts = np.unique(labels, return_counts=True)
    shown = np.sort(classes[np.argsort(-counts, kind="stable")[:_ROWS]])
    grid = np.ones([len(shown), _COLUMNS, *images.shape[1:]], np.float32)
    for row, label in zip(grid, shown, strict=True):
        found = images[labels == label][:_COLUMNS]
        row[: len(found)] = found
    pictures.save_grid(
        path,
        grid.reshape(-1, *images.shape[1:]),
        columns=_COLUMNS,
        row_labels=[class_names[c] for c in shown],
    )
