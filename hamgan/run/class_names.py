"""The names of a run's classes, for those who sample without the data."""

from collections.abc import Sequence

import tensorflow as tf

from hamgan.run import records
from hamgan.run.folder import Folder


def write(model_dir: str, names: Sequence[str]) -> None:
    """Keeps the names of the classes with the run."""
    records.write_whole(Folder(model_dir).class_names, "\n".join(names).encode())


def read(model_dir: str, num_classes: int) -> list[str]:
    """The names of a run's classes; their numbers where the run has kept none."""
    path = Folder(model_dir).class_names
    if not tf.io.gfile.exists(path):
        return [str(label) for label in range(num_classes)]
    with tf.io.gfile.GFile(path) as file:
        return file.read().split("\n")
