"""One writer for a run's folder.

Locally the lock is the kernel's (`flock` on a file in the folder): a process that ends, however it
ends, frees it. Where there is no such lock - gs://, and file systems that don't know `flock` - it
is a lease: a file that its holder renews, and that nobody heeds once it wasn't renewed for a while.
`tf.io.gfile` can't create an object only if there is none (a generation precondition), so two
processes that start a lease within the same moments could both miss the other; the lease is
therefore read back after a pause, and again at every renewal, and whoever finds another's stops.
"""

import contextlib
import errno
import fcntl
import json
import os
import shutil
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from hamgan.run import records
from hamgan.run.folder import Folder

LEASE_SECONDS = 120
_PAUSE_SECONDS = 2

# {whole path of a folder: lock} of this process, which may ask again for what it holds.
_held: dict[str, "Lock"] = {}


class Held(ValueError):
    """Another process writes to this folder."""


class Lost(ValueError):
    """Another process took over; this one must not write any more."""


class Lock:
    """What a process holds that writes to a run's folder. Made by `writing`."""

    def __init__(self, path: str):
        self._path = path
        self._word = {
            "token": uuid.uuid4().hex,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "since": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        }

    def _said(self, **more: Any) -> bytes:
        return json.dumps({**self._word, **more}).encode()

    def check(self) -> None:
        """Asks whether the lock is still held.

        Raises:
          Lost: another process took over.
        """
        raise NotImplementedError

    def release(self, *, remove: bool = False) -> None:
        """Lets the folder go; `remove`: without a trace."""
        raise NotImplementedError


class _FileLock(Lock):
    """`flock` on a file, whose content is for people."""

    def __init__(self, path: str, *, take_over: bool):
        super().__init__(path)
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        if take_over and os.path.exists(path):
            # The holder keeps the old file, and finds at its next write that it isn't this one.
            os.replace(path, f"{path}.taken")
        while True:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                os.close(self._file)
                if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                    raise Held(_refusal(path, _read(path))) from error
                raise
            if self._is_there():
                break
            os.close(self._file)  # taken over or removed between opening and locking
        with contextlib.suppress(OSError):  # a full disk: the lock holds without words
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, self._said(), 0)

    def _is_there(self):
        try:
            return os.path.samestat(os.fstat(self._file), os.stat(self._path))
        except FileNotFoundError:
            return False

    def check(self) -> None:
        if not self._is_there():
            raise Lost(_loss(self._path, _read(self._path)))

    def release(self, *, remove: bool = False) -> None:
        # Another who has just opened a file that is removed here finds out when he has locked it.
        with contextlib.suppress(OSError):
            if self._is_there():
                os.unlink(self._path) if remove else os.ftruncate(self._file, 0)
        os.close(self._file)


class _Lease(Lock):
    """A file with a time, renewed by a thread."""

    def __init__(self, path: str, *, take_over: bool):
        super().__init__(path)
        holder = _read(path)
        if _is_renewed(holder) and not take_over:
            raise Held(_refusal(path, holder))
        self._renew()
        if holder:
            time.sleep(_PAUSE_SECONDS)  # another may have found the same lease out of date
            if not self._is_mine():
                raise Held(_refusal(path, _read(path)))
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep, daemon=True)
        self._thread.start()

    def _renew(self):
        records.write_whole(self._path, self._said(renewed=time.time()))

    def _is_mine(self):
        return _read(self._path).get("token") == self._word["token"]

    def _keep(self):
        while not self._over.wait(LEASE_SECONDS / 4):
            # A bucket that fails for a moment ends no training; `check` asks again.
            with contextlib.suppress(OSError, tf.errors.OpError):
                if not self._is_mine():
                    return
                self._renew()

    def check(self) -> None:
        try:
            holder = _read(self._path)
        except tf.errors.OpError:  # it can't be asked now, as little as it could be written
            return
        if holder.get("token") != self._word["token"]:
            raise Lost(_loss(self._path, holder))

    def release(self, *, remove: bool = False) -> None:
        del remove  # always
        self._over.set()
        self._thread.join()
        with contextlib.suppress(OSError, tf.errors.OpError):
            if self._is_mine():
                tf.io.gfile.remove(self._path)


def _read(path: str) -> dict[str, Any]:
    """Who holds a lock, as far as it says so."""
    try:
        with tf.io.gfile.GFile(path, "rb") as file:
            found = json.loads(file.read())
    except (tf.errors.NotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _is_renewed(holder: dict[str, Any]) -> bool:
    return time.time() - holder.get("renewed", 0) < LEASE_SECONDS


def _who(holder: dict[str, Any]) -> str:
    if not holder:
        return "a process that doesn't say which"
    return "process {pid} on {host} since {since}".format(
        **{"pid": "?", "host": "?", "since": "?", **holder}
    )


def _refusal(path, holder):
    how = (
        f"its lease runs out {LEASE_SECONDS} seconds after its end"
        if "renewed" in holder
        else "a process that ends, or crashes, frees the folder by itself"
    )
    return (
        f"{os.path.dirname(path)} is being written by {_who(holder)}. Two writers would delete "
        f"each other's files: wait until it has ended ({how}), choose another --model_dir, or, "
        "where it is known to be dead (a host that vanished), take over with --take_over."
    )


def _loss(path, holder):
    return (
        f"{os.path.dirname(path)} was taken over by {_who(holder)}: this process stops, and writes "
        "nothing more there."
    )


def _acquire(model_dir: str, take_over: bool) -> Lock:
    path = Folder(model_dir).lock
    if "://" in path:
        return _Lease(path, take_over=take_over)
    try:
        return _FileLock(path, take_over=take_over)
    except OSError as error:
        if error.errno in (errno.ENOTSUP, errno.ENOLCK, errno.ENOSYS):
            return _Lease(path, take_over=take_over)
        raise ValueError(f"--model_dir={model_dir} can't be written: {error}") from error


@contextlib.contextmanager
def writing(model_dir: str, *, take_over: bool = False) -> Iterator[Lock]:
    """Makes this process the only writer of a run's folder, for as long as the context lasts.

    Reading, sampling and evaluating need no lock. A process that holds the folder already goes on
    with what it has.

    Args:
      model_dir: the run's folder, local or gs://; it is made if it isn't there.
      take_over: write even if another process holds the folder; that one stops at its next
        checkpoint.

    Yields:
      The `Lock`.

    Raises:
      Held: another process writes there; says which, since when, and how to take over.
      ValueError: the folder can't be written to.
    """
    whole = model_dir if "://" in model_dir else os.path.realpath(model_dir)
    if whole in _held:
        yield _held[whole]
        return
    is_new = "://" not in whole and not os.path.exists(whole)
    # What fails leaves nothing behind that wasn't there before.
    was_locked = os.path.exists(Folder(whole).lock)
    lock = _held[whole] = _acquire(model_dir, take_over)
    ended = False
    try:
        yield lock
        ended = True
    finally:
        del _held[whole]
        lock.release(remove=not (ended or was_locked))
        name = os.path.basename(Folder(whole).lock)
        if is_new and os.listdir(whole) in ([], [name]):
            shutil.rmtree(whole)
