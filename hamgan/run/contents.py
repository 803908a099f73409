"""What one checkpoint holds, and how it is written and read: a TensorFlow checkpoint of named
variables, with the run's seed and identity.
"""

import contextlib
import hashlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from hamgan.run.identity import Identity

_SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"
_SEED = "seed" + _SUFFIX
_IDENTITY = "identity" + _SUFFIX
_STEP = "step" + _SUFFIX
_BOOKKEEPING = ("_CHECKPOINTABLE_OBJECT_GRAPH", "save_counter" + _SUFFIX, _SEED, _IDENTITY)
# What checkpoints of earlier versions lack: it keeps its initial value.
_ADDED_LATER = {"rollbacks"}


class Damaged(ValueError):
    """A checkpoint that can't be read: truncated, changed, or a part of it is missing."""


class NotFinite(Damaged):
    """A checkpoint that holds a NaN or an infinity."""


def network_variables(prefix: str, owner: Any) -> dict[str, tf.Variable]:
    """{name in checkpoints: tf.Variable} of a Keras model or optimizer."""
    named = {f"{prefix}/{variable.path}": variable.value for variable in owner.variables}
    if len(named) != len(owner.variables):
        raise ValueError(
            f"{prefix}: two variables have one name among "
            f"{sorted(v.path for v in owner.variables)}."
        )
    return named


def first_not_finite(variables: Mapping[str, tf.Variable]) -> str | None:
    """The name of the first of {name: tf.Variable} that holds a NaN or an infinity; None: all are
    finite.
    """
    for name, variable in variables.items():
        if variable.dtype.is_floating and not tf.reduce_all(tf.math.is_finite(variable)):
            return name
    return None


def copies(variables: Mapping[str, tf.Variable]) -> dict[str, tf.Variable]:
    """Copies of {name: tf.Variable} in the host's memory; what is written of them is the same, byte
    for byte.
    """
    with tf.device("CPU:0"):
        # A value that is read shares its memory with the variable until that is assigned to.
        return {
            name: tf.Variable(
                tf.raw_ops.DeepCopy(x=variable.read_value()),
                name=variable.name.removesuffix(":0"),
            )
            for name, variable in variables.items()
        }


def write(path: str, variables: Mapping[str, tf.Variable]) -> str:
    """Writes {name: tf.Variable} as a checkpoint; returns its prefix."""
    return tf.train.Checkpoint(**variables).write(path)


@contextlib.contextmanager
def _reader(path):
    try:
        yield tf.compat.v1.train.NewCheckpointReader(path)
    # As the reader's C++ errors arrive in Python; a file that ends too early is an IndexError.
    except (tf.errors.OpError, ValueError, RuntimeError, LookupError) as error:
        raise Damaged(f"{path} can't be read as a checkpoint: {error}") from error


def _name_of(key):
    # TensorFlow escapes "/" in names as ".S" and "." as "..".
    return re.sub(r"\.(.)", lambda m: "/" if m[1] == "S" else m[1], key.removesuffix(_SUFFIX))


def _contents(path):
    """{name: shape} of what a checkpoint holds."""
    with _reader(path) as reader:
        shapes = reader.get_variable_to_shape_map()
    return {_name_of(key): shape for key, shape in shapes.items() if key not in _BOOKKEEPING}


def owners(path: str) -> set[str]:
    """The first parts of the names in a checkpoint: its networks ('generator'), 'step', ..."""
    return {name.split("/")[0] for name in _contents(path)}


def read_seed(path: str) -> int | None:
    """The seed of a checkpoint's run; None: it keeps none."""
    with _reader(path) as reader:
        return int(reader.get_tensor(_SEED)) if reader.has_tensor(_SEED) else None


def read_identity(path: str) -> Identity | None:
    """What a checkpoint says of its run; None: it is of a version that kept nothing.

    Raises:
      Damaged: the file can't be read.
    """
    with _reader(path) as reader:
        if not reader.has_tensor(_IDENTITY):
            return None
        return Identity.from_text(reader.get_tensor(_IDENTITY).decode())


def step_in(path: str) -> int:
    """The training step of a checkpoint, whatever it is called.

    Raises:
      Damaged: the file can't be read.
      ValueError: it holds no step.
    """
    with _reader(path) as reader:
        if reader.has_tensor(_STEP):
            return int(reader.get_tensor(_STEP))
    raise ValueError(f"{path} holds no variable 'step': it isn't a checkpoint of a run.")


def read_through(
    path: str, *, names: Iterable[str] | None = None, finite: bool = False
) -> dict[str, list[int]]:
    """Reads all of a checkpoint, or the variables `names`, as TensorFlow's checksums want it;
    returns {name: shape}.

    Raises:
      Damaged: something can't be read.
      ValueError: `finite`, and something isn't.
    """
    bad = []
    with _reader(path) as reader:
        for key, dtype in reader.get_variable_to_dtype_map().items():
            if names is None or key in _BOOKKEEPING or _name_of(key) in names:
                value = reader.get_tensor(key)
                if (
                    finite
                    and dtype.is_floating
                    and not np.isfinite(value.astype(np.float32, copy=False)).all()
                ):
                    bad.append(_name_of(key))
    if bad:
        raise ValueError(f"{bad[0]} isn't finite")
    return _contents(path)


def load(path: str) -> dict[str, np.ndarray]:
    """{name: array} of all that a checkpoint holds.

    Raises:
      Damaged: the file can't be read.
    """
    with _reader(path) as reader:
        keys = [key for key in reader.get_variable_to_shape_map() if key not in _BOOKKEEPING]
        return {_name_of(key): np.asarray(reader.get_tensor(key)) for key in sorted(keys)}


def restore(path: str, variables: Mapping[str, tf.Variable], *, partial: bool = False) -> None:
    """Reads a checkpoint into variables, all of them or none.

    Args:
      path: prefix of the checkpoint.
      variables: {name: tf.Variable}.
      partial: the checkpoint may hold more than `variables` (the generator alone, say).

    Raises:
      Damaged: the file can't be read.
      ValueError: names or shapes differ; both sides of each difference are listed.
    """
    found = _contents(path)
    wanted = {name: variable.shape.as_list() for name, variable in variables.items()}
    absent = wanted.keys() - found.keys() - _ADDED_LATER
    lines = [f"  {name}: not in the checkpoint" for name in sorted(absent)]
    if not partial:
        lines += [
            f"  {name} {found[name]}: only in the checkpoint"
            for name in sorted(found.keys() - wanted.keys())
        ]
    lines += [
        f"  {name}: {found[name]} in the checkpoint, {wanted[name]} in this configuration"
        for name in sorted(wanted.keys() & found.keys())
        if found[name] != wanted[name]
    ]
    if lines:
        more = f"\n  and {len(lines) - 20} more" if len(lines) > 20 else ""
        raise ValueError(f"{path} doesn't fit this configuration:\n" + "\n".join(lines[:20]) + more)
    # Before the first variable changes.
    read_through(path, names=wanted.keys())
    taken = {name: variables[name] for name in wanted.keys() & found.keys()}
    status = tf.train.Checkpoint(**taken).read(path)
    status.assert_existing_objects_matched()
    status.expect_partial()


def digest(path: str) -> str | None:
    """SHA-256 of a checkpoint's index, 16 hexadecimal digits; None where there is no such file.

    The index holds the checksum of every tensor: another training run under the same name has
    another digest.
    """
    index = path + ".index"
    if not tf.io.gfile.exists(index):
        return None
    with tf.io.gfile.GFile(index, "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()[:16]
