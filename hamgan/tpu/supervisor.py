"""Keeps a command running on a TPU VM: starts it again when it fails, until it ends well.

    python -m hamgan.tpu.supervisor --folder=~/hamgan -- python scripts/train.py ...

A training goes on from its newest checkpoint, so starting it again is all that a failure asks for.
What can't get better ends: several failures in a row, each within a short time. Python's own
library is all this needs.

In the folder: `supervisor.pid`, `supervisor.boot` (of which start of the machine), `train.log`
(everything the command prints), `train.status` (the exit status, when it is over),
`supervisor.lock`, which the command holds too: one that outlives its supervisor is told to end
(Linux), and no other is started beside it while it saves.
"""

import argparse
import ctypes
import fcntl
import os
import pathlib
import signal
import subprocess
import sys
import time

PID, LOG, STATUS, BOOT = "supervisor.pid", "train.log", "train.status", "supervisor.boot"
_STOPPED = 128 + signal.SIGTERM
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def supervise(command, *, folder, failures=5, soon=600.0, wait=30.0, longest_wait=600.0):
    """Runs a command until it ends well, is told to stop, or fails too often.

    SIGTERM and SIGINT go to the command, which saves and ends; it isn't started again then.

    Args:
      command: its words.
      folder: where pid, log and status are kept.
      failures: so many in a row, each `soon` after its start, and no more is tried.
      soon: seconds; a command that ran for longer has got somewhere.
      wait: seconds before the second attempt, doubled after each failure in a row.
      longest_wait: seconds.

    Returns:
      The command's last exit status; 128 + number after a signal, as shells have it. Of one that
      was told to stop it is never 0: it hasn't come to its end.

    Raises:
      ValueError: no command, a number out of range, or another supervisor, or the command of one
        that was killed, is at work there.
    """
    if not command:
        raise ValueError("A command to run must follow --, got none.")
    if failures < 1:
        raise ValueError(f"failures must be at least 1, got {failures}.")
    folder = pathlib.Path(folder).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "supervisor.lock", "w") as lock, open(folder / LOG, "a", buffering=1) as log:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ValueError(
                f"Another supervisor is at work in {folder}, or one was killed and what it started "
                f"still saves. Wait for its end; its process: fuser {folder / 'supervisor.lock'}"
            ) from None
        (folder / STATUS).unlink(missing_ok=True)
        (folder / PID).write_text(f"{os.getpid()}\n")
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id")
        (folder / BOOT).write_text(boot.read_text() if boot.exists() else "")
        status = _Attempts(command, log, lock).run(failures, soon, wait, longest_wait)
        # Whole or not at all: who waits for this file reads it at once.
        unfinished = folder / f"{STATUS}.new"
        unfinished.write_text(f"{status}\n")
        unfinished.replace(folder / STATUS)
    return status


class _Attempts:
    def __init__(self, command, log, lock):
        self.command, self.log, self.lock = command, log, lock
        self.child, self.stopped = None, False

    def run(self, failures, soon, wait, longest_wait):
        previous = {s: signal.signal(s, self._stop) for s in (signal.SIGTERM, signal.SIGINT)}
        try:
            in_a_row = 0
            while True:
                start = time.monotonic()
                status = self._once()
                if self.stopped:
                    return status or _STOPPED
                if status == 0:
                    return status
                lasted = time.monotonic() - start
                in_a_row = in_a_row + 1 if lasted < soon else 1
                self._note(f"it ended with status {status} after {lasted:.0f} s")
                if in_a_row >= failures:
                    self._note(f"{in_a_row} failures in a row, each soon: no more is tried")
                    return status
                self._sleep(min(longest_wait, wait * 2 ** (in_a_row - 1)))
                if self.stopped:
                    return status
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _once(self):
        # A group of its own, so that Ctrl-C reaches it once, through this process.
        self.child = subprocess.Popen(
            self.command,
            stdout=self.log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=[self.lock.fileno()],
            preexec_fn=_ends_with_parent(),
        )
        if self.stopped:  # told so between two attempts
            self.child.terminate()
        status = self.child.wait()
        return status if status >= 0 else 128 - status

    def _stop(self, number, frame):
        self.stopped = True
        if self.child is not None and self.child.poll() is None:
            self.child.terminate()

    def _sleep(self, seconds):
        end = time.monotonic() + seconds
        while not self.stopped and time.monotonic() < end:
            time.sleep(min(1.0, seconds))

    def _note(self, text):
        print(f"supervisor {time.strftime('%Y-%m-%d %H:%M:%S')}: {text}", file=self.log)


def _ends_with_parent():
    """What a child calls before its command, so that SIGTERM comes when its parent dies."""
    if sys.platform != "linux":
        return None
    # Before the fork: loading a library isn't safe after it.
    prctl, parent = ctypes.CDLL(None).prctl, os.getpid()

    def prepare():
        prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # killed since the fork
            os._exit(_STOPPED)

    return prepare


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", default="~/hamgan", help="for pid, log and status")
    parser.add_argument("--failures", type=int, default=5, help="so many in a row end it")
    parser.add_argument("--soon", type=float, default=600.0, help="seconds: a failure counts")
    parser.add_argument("--wait", type=float, default=30.0, help="seconds before another attempt")
    parser.add_argument("command", nargs="+", help="after --")
    flags = parser.parse_args()
    try:
        status = supervise(
            flags.command,
            folder=flags.folder,
            failures=flags.failures,
            soon=flags.soon,
            wait=flags.wait,
        )
    except ValueError as error:
        sys.exit(f"ERROR: {error}")
    sys.exit(status)


if __name__ == "__main__":
    main()
