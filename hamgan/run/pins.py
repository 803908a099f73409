"""Small files beside a checkpoint that keep it from being deleted or rewritten while it is read."""

import contextlib
import os
import time
import uuid
from collections.abc import Iterator

import tensorflow as tf

from hamgan.run import records

_PIN = ".pinned-"
# A process that was killed can't take its pin away.
_PIN_SECONDS = 24 * 3600
# The same of one that is being read, which a writer waits for.
_READING = ".reading-"
_READING_SECONDS = 60


@contextlib.contextmanager
def pinned(path: str) -> Iterator[str]:
    """Keeps a checkpoint from being deleted by the run it belongs to, for as long as the context
    lasts.

    By a small file beside it, which is ignored after a day. In a folder that can't be written to
    there is no pin.

    Args:
      path: prefix of the checkpoint.

    Raises:
      ValueError: it isn't there, or was deleted just now.
    """
    with _marked(path, _PIN):
        if not tf.io.gfile.exists(path + ".index"):
            raise ValueError(f"No checkpoint {path}: it isn't there, or was deleted just now.")
        yield path


def being_read(path: str) -> contextlib.AbstractContextManager[None]:
    """Keeps a checkpoint from being rewritten, for the context of reading it and a minute at most:
    so long the run it belongs to waits.
    """
    return _marked(path, _READING)


def wait_for_readers(path: str) -> None:
    """Waits while a checkpoint is being read, a minute at most."""
    end = time.monotonic() + _READING_SECONDS
    while time.monotonic() < end and any(
        _pin_age(pin) <= _READING_SECONDS for pin in tf.io.gfile.glob(path + _READING + "*")
    ):
        time.sleep(0.1)


@contextlib.contextmanager
def _marked(path, kind):
    pin = f"{path}{kind}{uuid.uuid4().hex[:8]}"
    with contextlib.suppress(OSError, tf.errors.OpError):
        records.write_whole(pin, str(time.time()).encode())
    try:
        yield
    finally:
        if tf.io.gfile.exists(pin):
            tf.io.gfile.remove(pin)


def is_pinned(path: str) -> bool:
    """Whether a process keeps a checkpoint from being deleted."""
    return any(_pin_age(pin) <= _PIN_SECONDS for pin in tf.io.gfile.glob(path + _PIN + "*"))


def _pin_age(pin):
    try:
        with tf.io.gfile.GFile(pin) as file:
            return time.time() - float(file.read())
    except (tf.errors.NotFoundError, ValueError):
        # Taken away just now, or about to be written.
        return 0


def is_left_behind(path: str) -> bool:
    """Whether a file is the mark of a process that can't take it away any more."""
    name = os.path.basename(path)
    return (_PIN in name and _pin_age(path) > _PIN_SECONDS) or (
        _READING in name and _pin_age(path) > _READING_SECONDS
    )
