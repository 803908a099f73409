"""A run that begins with another run's weights: class rows by name, the rest as it is."""

import os
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from hamgan.layers import layers_of
from hamgan.normalization import BatchNorm
from hamgan.run import checkpoints, class_names, contents
from hamgan.run.folder import Folder
from hamgan.spectral import SpectralEmbedding


class Taken(NamedTuple):
    """What a run began with.

    Attributes:
      checkpoint: path of the checkpoint.
      variables: how many were taken.
      classes: names of the classes whose rows were taken.
      new_classes: names of those that the other run hasn't: they begin with the mean of its rows.
    """

    checkpoint: str
    variables: int
    classes: list
    new_classes: list

    def words(self):
        """As a line."""
        new = f"; new: {', '.join(self.new_classes)}" if self.new_classes else ""
        return (
            f"{self.variables} variables of {self.checkpoint}; rows of {len(self.classes)} classes "
            f"by name{new}"
        )


def find(source):
    """(checkpoint's path, the folder of its run) of a run's folder or a checkpoint's path.

    Raises:
      ValueError: there is no checkpoint.
    """
    if tf.io.gfile.isdir(Folder(source).checkpoints):
        return checkpoints.find(source), source
    path = checkpoints.find("", source if "/" in source else f"./{source}")
    return path, os.path.dirname(os.path.dirname(path))


def take(trainer, source, names):
    """Puts another run's weights into the networks of a trainer; optimizers begin anew.

    Args:
      trainer: a `hamgan.trainer.Trainer`, before its first step.
      source: as of `find`.
      names: the names of this run's classes, by label.

    Returns:
      `Taken`.

    Raises:
      ValueError: the networks aren't of the same sizes; each difference is listed. Nothing has been
        taken then.
    """
    path, folder = find(source)
    held = contents.load(path)
    theirs = class_names.read(folder, _num_classes(held, trainer))
    rows = [theirs.index(name) if name in theirs else None for name in names]
    networks = {"generator": trainer.generator, "discriminator": trainer.discriminator}
    wanted, by_class = {}, set()
    for prefix, network in networks.items():
        wanted |= contents.network_variables(prefix, network)
        by_class |= {f"{prefix}/{path}" for path in _paths_by_class(network)}
    values, faults = {}, []
    for name, variable in wanted.items():
        value = held.get(name)
        if value is not None and name in by_class:
            value = _rows_of(value, rows)
        if value is None or value.shape != tuple(variable.shape):
            there = "isn't there" if value is None else f"is {list(value.shape)} there"
            faults.append(f"  {name} {there}, {list(variable.shape)} here")
        else:
            values[name] = value
    if faults:
        more = f"\n  and {len(faults) - 20} more" if len(faults) > 20 else ""
        raise ValueError(
            f"--init_from={source} holds other networks than these:\n"
            + "\n".join(faults[:20])
            + more
        )
    for name, value in values.items():
        wanted[name].assign(value)
    if trainer.ema is not None:
        _take_average(trainer, held, by_class, rows)
    return Taken(
        path,
        len(values),
        [name for name, row in zip(names, rows, strict=True) if row is not None],
        [name for name, row in zip(names, rows, strict=True) if row is None],
    )


def _take_average(trainer, held, by_class, rows):
    """The other run's average where it has one, else the weights; these too of what isn't trained,
    frozen layers among them: the average of what stays is what stays.
    """
    averaged = {variable.path for variable in trainer.ema.trainable_variables}
    for path, variable in contents.network_variables("", trainer.ema).items():
        name = f"generator{path}"
        value = held[name]
        if path.removeprefix("/") in averaged:
            value = held.get(f"generator_ema{path}", value)
        variable.assign(_rows_of(value, rows) if name in by_class else value)


def _paths_by_class(network):
    """The paths of the variables that have a row for each class."""
    found = set()
    for layer in layers_of(network, BatchNorm):
        if layer.num_classes:
            found |= {layer.gamma.path, layer.beta.path}
    for layer in layers_of(network, SpectralEmbedding):
        found.add(layer.kernel.path)
    return found


def _num_classes(held, trainer):
    """How many classes the networks of a checkpoint know."""
    for path in _paths_by_class(trainer.discriminator) | _paths_by_class(trainer.generator):
        for prefix in ("discriminator", "generator"):
            if f"{prefix}/{path}" in held:
                return len(held[f"{prefix}/{path}"])
    return trainer.generator.num_classes


def _rows_of(value, rows):
    """The rows of these numbers; of None the mean of all."""
    mean = value.mean(axis=0)
    return np.stack([mean if row is None else value[row] for row in rows]).astype(value.dtype)
