"""Where records lie in TFRecord files, and reading them from there, each by itself."""

import atexit
import os
import threading
import time
import typing
from collections.abc import Iterator

import google_crc32c
import numpy as np

# TFRecord: the length as uint64 and its checksum, the record, its checksum.
_LENGTH, _BEFORE_RECORD, _CHECKSUM = 8, 12, 4
_AROUND_RECORD = _BEFORE_RECORD + _CHECKSUM

# Seconds without a read, after which none is waited for.
_QUIET = 0.05


class _Reads:
    """Reads under way, in TensorFlow's threads; none is left when Python exits.

    Python ends a thread of others' that asks for its lock once it exits, and TensorFlow, which
    drops the iterators that are left, would wait for that thread for ever.
    """

    def __init__(self):
        self._threads: set[int] = set()
        self._last = 0.0
        self._exits = False
        atexit.register(self._exit)

    def __enter__(self):
        if self._exits:
            raise StopIteration  # to TensorFlow, the end of the data, which it has no message for
        self._last = time.monotonic()
        self._threads.add(threading.get_ident())

    def __exit__(self, *_):
        self._threads.discard(threading.get_ident())
        self._last = time.monotonic()

    def _exit(self):
        self._exits = True
        if not self._last:
            return
        # Pipelines run on until their buffers are full; of errors, that is soon.
        time.sleep(_QUIET)
        while self._threads or time.monotonic() - self._last < _QUIET:
            time.sleep(_QUIET / 10)


READS = _Reads()


class Damaged(ValueError):
    """A record whose bytes aren't those that were written."""


def _masked(crc: int) -> bytes:
    """A checksum as TFRecord files hold it."""
    return ((((crc >> 15) | (crc << 17)) + 0xA282EAD8) % 2**32).to_bytes(_CHECKSUM, "little")


class Place(typing.NamedTuple):
    """Where a record is: `size` bytes of the file `path`, from the byte `start` on."""

    path: str
    start: int
    size: int

    def read(self) -> bytes:
        """The record. Raises: Damaged: it isn't what was written."""
        found = self._access(os.pread, self.size + _CHECKSUM)
        record = found[: self.size]
        if found[self.size :] != _masked(google_crc32c.value(record)):
            raise Damaged
        return record

    def read_into(self, buffers: list[np.ndarray]) -> None:
        """Fills buffers of as many bytes as the record has, one after the other.

        Raises:
          Damaged: it isn't what was written.
        """
        checksum = np.empty(_CHECKSUM, np.uint8)
        count = self._access(os.preadv, [*buffers, checksum])
        crc = 0
        for buffer in buffers:
            crc = google_crc32c.extend(crc, buffer)
        if count < self.size + _CHECKSUM or checksum.tobytes() != _masked(crc):
            raise Damaged

    def _access(self, read, what):
        # Opened anew each time: a data set has more files than a process may hold open.
        handle = os.open(self.path, os.O_RDONLY)
        try:
            return read(handle, what, self.start)
        finally:
            os.close(handle)


class RecordFinder:
    """Finds single records of local TFRecord files; reads nothing but the lengths of records, which
    it checks.

    Args:
      files: columns as `prepared.list_files` gives them.
    """

    def __init__(self, files: dict[str, np.ndarray]):
        self._files = files
        self._starts: dict[int, np.ndarray] = {}

    def find(self, numbers: np.ndarray) -> Iterator[Place]:
        """Where records are, by their numbers in the split."""
        return (self._place(file, index) for file, index in self._find(numbers))

    def name(self, number: int) -> str:
        """Where a record is, for people."""
        ((file, index),) = self._find(number)
        return f"record {index} (from 0) of {self._files['path'][file]}"

    def _find(self, numbers):
        numbers = np.ravel(numbers)
        files = file_of(self._files, numbers)
        indices = numbers - self._files["first"][files] + self._files["skip"][files]
        return zip(files.tolist(), indices.tolist(), strict=True)

    def _place(self, file, index):
        start, end = self._starts_of(file)[index : index + 2].tolist()
        return Place(
            self._files["path"][file], start + _BEFORE_RECORD, end - start - _AROUND_RECORD
        )

    def _starts_of(self, file):
        """Where the records of a file start, and where the last one ends; found when first asked
        for.
        """
        if file not in self._starts:
            path = self._files["path"][file]
            count = int(self._files["skip"][file] + self._files["take"][file])
            starts = np.zeros(count + 1, np.int64)
            handle = os.open(path, os.O_RDONLY)
            try:
                size = os.fstat(handle).st_size
                for index in range(count):
                    start = int(starts[index])
                    header = os.pread(handle, _BEFORE_RECORD, start)
                    length = header[:_LENGTH]
                    end = start + int.from_bytes(length, "little") + _AROUND_RECORD
                    whole = len(header) == _BEFORE_RECORD
                    if whole and header[_LENGTH:] != _masked(google_crc32c.value(length)):
                        raise ValueError(
                            f"record {index} (from 0) of {path} is damaged: its length isn't what "
                            "was written. Copy the file again, or prepare the data set again."
                        )
                    if end > size:
                        raise ValueError(
                            f"{path} must hold {count} records, but ends within record {index} "
                            "(from 0): it was cut "
                            "off. Copy it again, or prepare the data set again."
                        )
                    starts[index + 1] = end
            finally:
                os.close(handle)
            self._starts[file] = starts
        return self._starts[file]


class SquareReader:
    """Reads packed squares from their records straight to where they are wanted.

    Records that are the same before and behind their pixels parse the same. Those of one data set
    come in few such kinds, two a class at most, so one of each kind is parsed, and of the others
    nothing but pixels is copied.

    Args:
      max_kinds: records of more kinds aren't read so: they hold more than pixels and labels.
    """

    def __init__(self, max_kinds: int):
        self._max_kinds = max_kinds
        self._labels: dict[tuple[bytes, bytes], int] = {}
        self._before: dict[
            int, int
        ] = {}  # by the size of a record, how many bytes of it come before the pixels

    def read(self, place: Place, square: np.ndarray) -> int | None:
        """Reads a square, and gives its label; None: it is of a new kind, and what `square` now
        holds isn't right.

        Raises:
          Damaged: the record isn't what was written.
        """
        num_before = self._before.get(place.size)
        if num_before is None:
            return None
        before = np.empty(num_before, np.uint8)
        behind = np.empty(place.size - num_before - square.nbytes, np.uint8)
        place.read_into([before, square, behind])
        return self._labels.get((before.tobytes(), behind.tobytes()))

    def learn(self, record: bytes, pixels: bytes, label: int) -> None:
        """Takes note of a record's kind."""
        if len(self._labels) >= self._max_kinds:
            self._before.clear()
            return
        num_before = record.find(pixels)
        # Pixels that all equal the byte before them are found too early; a later record will show
        # the place.
        if record.find(pixels, num_before + 1) < 0:
            self._labels[record[:num_before], record[num_before + len(pixels) :]] = label
            self._before[len(record)] = num_before


def file_of(files: dict[str, np.ndarray], numbers: np.ndarray) -> np.ndarray:
    return np.searchsorted(files["first"], numbers, side="right") - 1
