"""What a run writes down: metrics.jsonl, one JSON object a line, and files that are always whole.

Every record has "kind" ("train", "evaluation", "event"), "step" (int) and "time" (Unix seconds).
Paths may be remote (`gs://...`), as `tf.io.gfile` knows them.
"""

import contextlib
import errno
import fcntl
import json
import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf


def append(
    path: str | os.PathLike,
    record: Mapping[str, Any],
    *,
    unless: Callable[[list[dict[str, Any]]], bool] | None = None,
) -> bool:
    """Adds one record as one line; a file that isn't there yet is begun. Returns whether it was
    added.

    A line is written at once and by a single call, so a killed run cuts at most its own last line,
    and a later append starts a new one behind it. Remote file systems have no append: there the
    file is read and written anew, which takes one writer at a time, and time in proportion to the
    file.

    Args:
      path: the file, e.g. `model_dir/metrics.jsonl`.
      record: mapping with "kind" (string), "step" (integer) and anything that JSON can hold; NumPy
        and TensorFlow scalars and arrays are converted. "time" is added if it is missing. JSON has
        no NaN and no infinity: they are written as null, because losing the record of a diverging
        run would be worse.
      unless: function (records that are there) -> whether to leave this one out. Of processes that
        ask so at once, one adds it where files can be locked; remotely two may.

    Raises:
      ValueError: "kind" or "step" is missing or of another type, or a value has no form in JSON.
      OSError: the record can't be written; what was written before stays.
    """
    path = os.fspath(path)
    plain = plain_record(record)
    kind, step = plain.get("kind"), plain.get("step")
    if not isinstance(kind, str) or not kind:
        raise ValueError(
            f'record["kind"] must be a string like "train" or "evaluation", got {kind!r}'
        )
    if not isinstance(step, int) or isinstance(step, bool):
        raise ValueError(f'record["step"] must be an integer, got {step!r}')
    plain = {"kind": kind, "step": step, "time": plain.pop("time", time.time()), **plain}
    line = json.dumps(plain, allow_nan=False).encode() + b"\n"

    if "://" in path:
        before = _read_bytes(path) if tf.io.gfile.exists(path) else b""
        if unless is not None and unless(_parse(path, before)):
            return False
        write_whole(path, before + _line_break(before[-1:]) + line)
        return True
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    with open(path, "a+b", buffering=0) as file:
        with contextlib.suppress(OSError):  # a file system without locks: one writer at a time
            fcntl.flock(file, fcntl.LOCK_EX)
        if unless is not None and unless(_parse(path, _read_bytes(path))):
            return False
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            line = _line_break(file.read(1)) + line
        if file.write(line) < len(line):
            raise OSError(errno.ENOSPC, "Only a part of a record could be written", path)
    return True


def plain_record(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record in the types of JSON: what isn't finite is None.

    Raises:
      ValueError: a value has no form in JSON.
    """
    return {str(key): _plain(value, name=key) for key, value in record.items()}


def read(path: str | os.PathLike, kind: str | None = None) -> list[dict[str, Any]]:
    """The records of a file, oldest first.

    Lines that were cut, as a killed run leaves them, are passed over.

    Args:
      path: the file, local or remote.
      kind: only records of this kind, e.g. "evaluation"; None for all.

    Returns:
      A list of dictionaries. A number that was NaN or infinite is None.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file holds something else than JSON objects.
    """
    path = os.fspath(path)
    if not tf.io.gfile.exists(path):
        raise FileNotFoundError(f"There is no file of records {path!r}")
    return [r for r in _parse(path, _read_bytes(path)) if kind is None or r.get("kind") == kind]


def _parse(path, content):
    records = []
    for number, line in enumerate(content.split(b"\n"), start=1):
        line = line.decode("utf-8", errors="replace").strip()
        if not line:
            continue
        # The beginning of an object is no object, so a cut line is never taken for a record.
        if not line.startswith("{"):
            raise ValueError(
                f"Each line of {path!r} must be a JSON object, but line {number} is {line[:80]!r}"
            )
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        records.append(record)
    return records


def scalars(record: Mapping[str, Any]) -> dict[str, float]:
    """{tag: number} of a record for TensorBoard; two records of one step have no tag in common.

    Scores of an evaluation stand under its kind and protocol; those of repeats, which differ by
    their seed, under the seed too, so that no curve has several values at a step. An aggregate's
    are its means and standard deviations.
    """
    kind = record["kind"]
    parts = [] if kind == "train" else [kind]
    protocol = record.get("protocol")
    if isinstance(protocol, dict) and "name" in protocol:
        parts.append(protocol["name"])
    generator = record.get("generator")
    if isinstance(generator, dict) and "words" in generator:  # not the run's own settings
        parts.append(f"generator {generator['digest']}")
    if record.get("seed"):
        parts.append(f"seed {record['seed']}")
    numbers = {name: value for name, value in record.items() if name != "time"}
    for name, of in record.get("scores", {}).items():
        numbers[f"{name}_std"] = of["std"]
    return {
        "/".join([*parts, name]): float(v)
        for name, v in numbers.items()
        if isinstance(v, float | np.floating)
    }


def set_damage_aside(path: str | os.PathLike) -> list[tuple[int, str]]:
    """Takes lines that are no records out of a file, so that everybody can read it.

    A power loss leaves zeros, an editor or another program anything. The lines are added to
    `path.damaged` and overwritten by spaces where they stand, in place: records that another
    process appends meanwhile stay.

    Args:
      path: the file, local or remote; nothing is done where it isn't there.

    Returns:
      [(number of the line, its first characters)], empty where nothing was damaged.

    Raises:
      OSError: the file can't be written.
    """
    path = os.fspath(path)
    if not tf.io.gfile.exists(path):
        return []
    content = _read_bytes(path)
    damaged, kept, start = [], bytearray(content), 0
    for number, line in enumerate(content.split(b"\n"), start=1):
        if line.strip() and not _is_record(line):
            damaged.append((number, line, start))
        start += len(line) + 1
    if not damaged:
        return []
    for _, line, start in damaged:
        kept[start : start + len(line)] = b" " * len(line)
    aside = path + ".damaged"
    before = _read_bytes(aside) if tf.io.gfile.exists(aside) else b""
    write_whole(aside, before + b"".join(line + b"\n" for _, line, _ in damaged))
    if "://" in path:
        write_whole(path, bytes(kept))
    else:
        with open(path, "r+b", buffering=0) as file:
            for _, line, start in damaged:
                os.pwrite(file.fileno(), b" " * len(line), start)
            os.fsync(file.fileno())
    shown = [(number, line.decode("utf-8", errors="replace")[:80]) for number, line, _ in damaged]
    return shown


def _is_record(line):
    try:
        return isinstance(json.loads(line), dict)
    except (json.JSONDecodeError, UnicodeDecodeError):
        # A cut record is passed over where it stands, as a killed run leaves it.
        return line.lstrip().startswith(b"{")


def can_write(folder: str | os.PathLike) -> bool:
    """Whether files can be made in a folder, which is made if it isn't there. It is tried: what a
    file's mode says isn't all that decides.
    """
    probe = os.path.join(os.fspath(folder), f".probe-{uuid.uuid4().hex}")
    try:
        tf.io.gfile.makedirs(os.fspath(folder))
        with tf.io.gfile.GFile(probe, "wb") as file:
            file.write(b"probe")
        tf.io.gfile.remove(probe)
    except (OSError, tf.errors.OpError):
        return False
    return True


@contextlib.contextmanager
def writing_folder(path: str) -> Iterator[str]:
    """Gives a folder beside `path` to write into, which gets that name at the end: what has it is
    whole. What a writer that was killed has left there is removed first.

    Args:
      path: the folder, local or remote, which isn't there or is empty.
    """
    unfinished = path.rstrip("/") + ".unfinished"
    if tf.io.gfile.exists(unfinished):
        tf.io.gfile.rmtree(unfinished)
    tf.io.gfile.makedirs(unfinished)
    yield unfinished
    if tf.io.gfile.isdir(path) and not tf.io.gfile.listdir(path):
        tf.io.gfile.rmtree(path)
    tf.io.gfile.rename(unfinished, path)


def write_whole(path: str | os.PathLike, data: bytes) -> None:
    """Writes a file under a temporary name and renames it, so that nobody ever reads half of it.

    What has its name is on the disk: file and folder are flushed to it, so that a power loss
    leaves the old file or the new one.

    Args:
      path: the file, local or remote; missing folders are made, an existing file is replaced.
      data: bytes.
    """
    path = os.fspath(path)
    folder = os.path.dirname(path)
    if folder:
        tf.io.gfile.makedirs(folder)
    temporary = f"{path}.{uuid.uuid4().hex}.tmp"  # hosts may have equal process numbers
    try:
        with tf.io.gfile.GFile(temporary, "wb") as file:
            file.write(data)
        rename_whole(temporary, path)
    except BaseException:
        if tf.io.gfile.exists(temporary):
            tf.io.gfile.remove(temporary)
        raise


def rename_whole(temporary: str, path: str) -> None:
    """Gives a file that is complete its name; both it and the name are on the disk afterwards.

    Remote file systems do so by themselves.
    """
    flush(temporary)
    tf.io.gfile.rename(temporary, path, overwrite=True)
    flush(os.path.dirname(path) or ".")


def flush(path: str) -> None:
    """Sees to it that a local file or folder is on the disk, not in memory only."""
    if "://" in path:
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some file systems can't flush a folder, or refuse for a file that is read only.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EROFS):
            raise
    finally:
        os.close(descriptor)


def _line_break(last_byte):
    return b"" if last_byte in (b"", b"\n") else b"\n"


def _read_bytes(path):
    with tf.io.gfile.GFile(path, "rb") as file:
        return file.read()


def _plain(value, *, name):
    """`value` in the types of JSON; `name` is the key it stands under, for the error."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, dict):
        return {str(key): _plain(part, name=f"{name}.{key}") for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part, name=name) for part in value]
    # np.asarray fails on a bfloat16 tensor of rank 0.
    array = np.asarray(value.numpy() if tf.is_tensor(value) else value)
    if array.dtype.kind in "biuU":
        return array.tolist()
    if array.dtype.kind == "f" or array.dtype.name == "bfloat16":
        # By way of float64, because bfloat16 has no Python number of its own.
        array = array.astype(np.float64)
        return np.where(np.isfinite(array), array.astype(object), None).tolist()
    raise ValueError(
        f"record[{name!r}] must be a number, a string, or lists and dictionaries of them, got "
        f"{value!r}"
    )
