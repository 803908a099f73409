"""Features in files of a few thousand rows each: work that can be interrupted, gone on with, and
shared by hosts.
"""

import dataclasses
import hashlib
import io
import json
import os
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from hamgan.run import records

# Rows of a file, or a little more: 50 MB of Inception's features and logits.
_ROWS = 4096


# (first row, end) of a file.
Range = tuple[int, int]


class NotFinite(ValueError):
    """Features with NaN or infinite values."""


@dataclasses.dataclass(frozen=True)
class Share:
    """The part of the work that this host does: every `of`-th file, beginning with file `index`.
    Host 0 collects.

    Attributes:
      index: number of this host, from 0.
      of: number of hosts.
      timeout: seconds that host 0 waits for the others' files.
    """

    index: int = 0
    of: int = 1
    timeout: float = 3600

    def __post_init__(self):
        if not 0 <= self.index < self.of:
            raise ValueError(
                f"shard_index must be in [0, num_shards), got {self.index} of {self.of}."
            )


class Shards:
    """Rows 0 to `count` - 1 of some arrays, in files that are whole or not there.

    Args:
      folder: where they are, local or gs://; None: they are held in memory.
      count: number of rows.
      batch_size: rows that are computed at a time; each file holds whole batches.
      ranges: [(first row, end)] of existing files; None: as `count` and `batch_size` have it.
      about: what the rows are of, as JSON holds it; it is kept in every file, and a file that says
        something else isn't read. Files of earlier versions say nothing.
    """

    def __init__(
        self,
        folder: str | None,
        *,
        count: int,
        batch_size: int = _ROWS,
        ranges: list[Range] | None = None,
        about: Mapping[str, Any] | None = None,
    ):
        rows = -(-_ROWS // batch_size) * batch_size
        self.folder = folder
        self.count = count
        self._about = json.dumps(about or {}, sort_keys=True)
        self.ranges = ranges or [
            (start, min(start + rows, count)) for start in range(0, count, rows)
        ]
        self._memory: dict[Range, Mapping[str, np.ndarray]] = {}

    def _path(self, part):
        return os.path.join(self.folder, "{:010d}-{:010d}.npz".format(*part))

    def _is_there(self, part):
        return tf.io.gfile.exists(self._path(part)) if self.folder else part in self._memory

    def missing(self, share: Share | None = None) -> list[Range]:
        """The ranges that aren't there yet; of a `Share`, or of all."""
        ranges = self.ranges[share.index :: share.of] if share else self.ranges
        return [part for part in ranges if not self._is_there(part)]

    def write(self, part: Range, arrays: Mapping[str, Any]) -> None:
        """Keeps {name: array} of one range.

        Raises:
          NotFinite: a value isn't; nothing is kept.
          ValueError: an array has another number of rows.
        """
        start, end = part
        for name, array in arrays.items():
            if len(array) != end - start:
                raise ValueError(
                    f"{name} must have the rows {start} to {end - 1}, {end - start} in all, got "
                    f"{len(array)}."
                )
            bad = np.count_nonzero(~np.isfinite(array))
            if bad:
                raise NotFinite(
                    f"{name} has {bad} values that aren't finite in the rows {start} to {end - 1}"
                )
        if self.folder:
            held: dict[str, Any] = {n: np.asarray(array) for n, array in arrays.items()}
            held["about"] = np.array(self._about)
            buffer = io.BytesIO()
            np.savez(buffer, **held, sha256=sha256_of(held))
            records.write_whole(self._path(part), buffer.getvalue())
        else:
            self._memory[part] = arrays

    def wait(self, share: Share, poll_seconds: float = 5) -> None:
        """Returns when every range is there.

        Raises:
          ValueError: some are still missing after `share.timeout` seconds.
        """
        end = time.monotonic() + share.timeout
        while missing := self.missing():
            if share.of == 1 or time.monotonic() > end:
                raise ValueError(
                    f"{len(missing)} of {len(self.ranges)} shards of {self.folder} are missing, "
                    "the first with rows "
                    f"{missing[0][0]} to {missing[0][1] - 1}. Start the hosts that haven't done "
                    "theirs, all with the "
                    "same batch size and num_shards: what is there is kept."
                )
            time.sleep(poll_seconds)

    def read(self, name: str) -> Iterator[np.ndarray]:
        """Yields the rows of one array, range by range, in order."""
        for part in self.ranges:
            arrays = self._read_file(part) if self.folder else self._memory[part]
            if len(arrays[name]) != part[1] - part[0]:
                raise ValueError(
                    f"{self._path(part)} must hold {part[1] - part[0]} rows, it has "
                    f"{len(arrays[name])}. Delete it."
                )
            yield arrays[name]

    def _read_file(self, part):
        path = self._path(part)
        arrays = read_npz(path)
        if "sha256" in arrays and str(arrays["sha256"]) != sha256_of(arrays):
            raise ValueError(f"{path} was changed since it was written. Delete it.")
        if "about" in arrays and self._about != "{}" and str(arrays["about"]) != self._about:
            raise ValueError(
                f"{path} holds something else than is asked for: {arrays['about']}, not "
                f"{self._about}. Delete it."
            )
        return arrays


def sha256_of(arrays: Mapping[str, np.ndarray]) -> str:
    """SHA-256 over the names, types, shapes and values of {name: array}, but for 'sha256'."""
    digest = hashlib.sha256()
    for name in sorted(arrays.keys() - {"sha256"}):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype.str} {array.shape} ".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def read_npz(path: str) -> dict[str, np.ndarray]:
    """{name: array} of an npz file.

    Raises:
      ValueError: it isn't there, is damaged, or carries pickled objects, which could run any
        program: refused.
    """
    try:
        with (
            tf.io.gfile.GFile(path, "rb") as file,
            np.load(io.BytesIO(file.read()), allow_pickle=False) as stored,
        ):
            return {name: stored[name] for name in stored.files}
    except tf.errors.NotFoundError as error:
        raise ValueError(f"There is no {path}.") from error
    except (
        Exception
    ) as error:  # zipfile, zlib, NumPy: each has its own way to say that a file is damaged
        raise ValueError(
            f"{path} must be an npz file of plain arrays, without pickled objects; it can't be "
            f"read: {error}"
        ) from error
