"""The names of a run's classes, for those who sample without the data."""

import json
from collections.abc import Sequence

import tensorflow as tf

from hamgan.run import records
from hamgan.run.folder import Folder


def write(model_dir: str, names: Sequence[str]) -> None:
    """Keeps the names of the classes with the run, one a line."""
    text = "\n".join(map(_line_of, names))
    records.write_whole(Folder(model_dir).class_names, text.encode())


def read(model_dir: str, num_classes: int) -> list[str]:
    """The names of a run's classes; their numbers where the run has kept none, or not so many."""
    path = Folder(model_dir).class_names
    numbers = [str(label) for label in range(num_classes)]
    if not tf.io.gfile.exists(path):
        return numbers
    with tf.io.gfile.GFile(path, "rb") as file:
        names = [_name_of(line) for line in file.read().decode(errors="replace").split("\n")]
    return names if len(names) == num_classes else numbers


def _line_of(name: str) -> str:
    """A name as a line: as it is, or as a JSON string where it couldn't be read back."""
    return json.dumps(name) if "\n" in name or name.startswith('"') else name


def _name_of(line: str) -> str:
    if not line.startswith('"'):
        return line
    try:
        return str(json.loads(line))
    except ValueError:  # of an earlier version, which wrote every name as it is
        return line
